"""Where sentences end, in several scripts."""

import pytest

from higgs_native.prompt.normalize import normalize_text
from higgs_native.prompt.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four.", ["One.", "Two!", "Three?", "Four."]),
        ("Dr. No paid 3.50 dollars. He left.", ["Dr. No paid 3.50 dollars.", "He left."]),
        ("J. R. R. Tolkien wrote, e.g. letters. Yes.", ["J. R. R. Tolkien wrote, e.g. letters.", "Yes."]),
        ('"Stop!" he said. "No." She left.', ['"Stop!" he said.', '"No."', "She left."]),
        ("I can't. O'Neill can't. It's a T-shirt. So.", ["I can't.", "O'Neill can't.", "It's a T-shirt.", "So."]),
        ("Wait... what? (Yes.) No.", ["Wait... what?", "Yes.", "No."]),
        ("Am 3. Oktober kam er. »Gut.« Er ging.", ["Am 3. Oktober kam er.", "»Gut.«", "Er ging."]),
        ("„Ja.“ Sie blieb, z.B. hier.", ['„Ja."', "Sie blieb, z.B. hier."]),
        ("¿Qué? ¡No! El Sr. Gil: «Ven.» Fin.", ["¿Qué?", "¡No!", "El Sr. Gil: «Ven.»", "Fin."]),
        ("« Oui ! » Il part.", ["« Oui ! »", "Il part."]),
        ("هل أنت بخير؟ نعم. شكرا!", ["هل أنت بخير؟", "نعم.", "شكرا!"]),
        ("他说：“你好。”她笑了。“走吧！”他走了。", ['他说:"你好."', "她笑了.", '"走吧!"', "他走了."]),
        ("一共3.5公里。看example.com吧。", ["一共3.5公里.", "看example.com吧."]),
        ("等等……然后呢？好。", ["等等......然后呢?", "好."]),
        ("「彼は『はい』と言った。」帰った。本当？", ['"彼は"はい"と言った."', "帰った.", "本当?"]),
        ("그는 갔다. 나는 3.5킬로를 걸었다. 정말?", ["그는 갔다.", "나는 3.5킬로를 걸었다.", "정말?"]),
        ("यह घर है। वह गया।", ["यह घर है।", "वह गया।."]),
    ],
)
def test_sentences(text, expected):
    assert [sentence.strip() for sentence in split_sentences(normalize_text(text))] == expected
