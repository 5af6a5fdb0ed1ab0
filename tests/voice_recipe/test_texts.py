"""What the voice's recipe lets the teacher say."""

import hashlib
import json
import random
import re

import pytest
from recipe import dictionary, sentences, texts
from recipe import materials as materials_step
from recipe.composed import Composer

from tests.voice_recipe.helpers import WORDS


@pytest.fixture(scope="module")
def writer(materials):
    return texts.make_writer(materials, seed=0)


def test_an_utterance_depends_on_its_number_alone(writer, materials):
    forward = [writer.utterance(index) for index in range(100)]
    again = texts.make_writer(materials, seed=0)
    assert [again.utterance(index) for index in reversed(range(100))] == forward[::-1]
    assert texts.make_writer(materials, seed=1).utterance(3) != forward[3]
    assert json.loads(json.dumps(forward)) == forward


def test_any_beginning_of_the_utterances_is_a_sample_of_all(writer):
    made = [writer.utterance(index) for index in range(600)]
    heart = sum(utterance["voice"] == "af_heart" for utterance in made)
    assert {utterance["voice"] for utterance in made[:60]} == set(texts.VOICES)
    assert 0.33 < heart / 600 < 0.47
    assert sum(utterance["kind"] in sentences.SOURCES for utterance in made) == 300
    assert all(0.9 <= utterance["speed"] <= 1.1 for utterance in made)
    assert {utterance["text"][-1] for utterance in made} >= set(".?!")
    assert 4 < sum(utterance["held_out"] for utterance in made) < 40


def test_real_sentences_come_once_before_any_comes_twice(writer):
    count = len(writer.sentences["bible"])
    rounds = count // sentences.SOURCES["bible"]
    seen = [writer._real(turn, random.Random("long"))[1] for turn in range(20 * rounds)]
    first = [text.split(". ")[0].rstrip(".") for text in seen]
    per_source = {source: set() for source in sentences.SOURCES}
    for text in first:
        for source, known in per_source.items():
            if any(sentence.startswith(text) for sentence in writer.sentences[source]):
                known.add(text)
    assert len(per_source["bible"]) == rounds * sentences.SOURCES["bible"]


def test_a_held_out_text_is_held_out_in_any_voice_and_punctuation(writer):
    assert texts.is_held_out("The cat, the dog!") == texts.is_held_out("the cat the dog")
    verdicts = {}
    for index in range(2000):
        utterance = writer.utterance(index)
        words = " ".join(re.sub(r"[^\w']", "", word) for word in utterance["normalized"].lower().split())
        assert verdicts.setdefault(" ".join(words.split()), utterance["held_out"]) == utterance["held_out"]


def test_no_utterance_is_too_long_or_has_unknown_words(writer, materials):
    pronouncers = dictionary.read_pronouncers(materials)
    for index in range(300):
        utterance = writer.utterance(index)
        assert 2 <= len(utterance["phonemes"]) <= texts.LONGEST
        spoken, missing = pronouncers[dictionary.accent_of(utterance["voice"])].phonemes(utterance["normalized"])
        assert (spoken, missing) == (utterance["phonemes"], [])
        assert "wrong" not in spoken
    assert not any("xylophone" in sentence for known in writer.sentences.values() for sentence in known)
    long = "The cat sees the dog, " * 40 + "and the dog hears the cat."
    cut = writer._shortened(long, pronouncers["us"])
    assert len(pronouncers["us"].phonemes(cut)[0]) <= texts.LONGEST
    assert long.startswith(cut.rstrip("."))


def test_sentences_of_a_paragraph():
    paragraph = 'Mr. Dog came at 5 p.m. to see. "Is it you?" he said. J. Cat--who else?--ran! The end'
    assert sentences.split_sentences(paragraph) == [
        "Mr. Dog came at 5 p.m. to see.",
        '"Is it you?"',
        "he said.",
        "J. Cat — who else?",
        "— ran!",
        "The end",
    ]
    assert sentences.clean('"is it you?') == "Is it you?"
    assert sentences.clean("a list of things;") == "A list of things."
    for no_sentence in ("Too short.", "12 34 56 (7) 8", "WHY IS THIS SO LOUD?", "für alle Tage", "Births 5.2 7.1 9 3"):
        assert sentences.clean(no_sentence) is None


def test_every_template_can_be_filled(materials):
    known = list(dictionary.read_pronouncers(materials).values())
    composer = Composer(WORDS, known)
    rng = random.Random(0)
    filled = [composer.sentence(rng) for _ in range(3000)]
    assert not any("{" in sentence or "  " in sentence for sentence in filled)
    assert all(sentence[-1] in ".?!" for sentence in filled)


def test_materials_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(materials_step, "CHECKSUMS", {"judges/b": hashlib.sha256(b"right").hexdigest()})
    with pytest.raises(SystemExit, match="judges/b must be in"):
        materials_step.check(tmp_path)
    (tmp_path / "judges").mkdir()
    (tmp_path / "judges" / "b").write_bytes(b"wrong")
    with pytest.raises(SystemExit, match="judges/b must have SHA-256"):
        materials_step.check(tmp_path)
    (tmp_path / "judges" / "b").write_bytes(b"right")
    assert materials_step.check(tmp_path)["judges/b"]["bytes"] == 5
    (tmp_path / "judges" / "b").write_bytes(b"wrong")
    assert materials_step.check(tmp_path, ["teacher"])  # others are not looked at
