"""Prompts of Higgs TTS 3: against Boson's serving code (tests/golden/higgs3_lm), control tags, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from higgs_native.convention import Convention
from higgs_native.errors import PromptError
from higgs_native.prompt.chat import (
    build_prompt,
    check_plain_text,
    normalized_text,
    speech_messages,
    spoken_turns,
    tagged_text,
)
from higgs_native.prompt.conventions.higgs_tts_3 import control_tags
from higgs_native.prompt.messages import AudioContent, Message
from higgs_native.prompt.voices import Voice


TTS_3 = Convention.HIGGS_TTS_3
FOLDER = Path(__file__).parents[2] / "golden" / "higgs3_lm"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"]
TENSORS = load_file(FOLDER / "cases.safetensors")
TOKENIZER = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.mark.parametrize("name", CASES)
def test_prompts_equal_the_original(name):
    case, codes = CASES[name], TENSORS.get(f"{name}.reference_codes")
    voices = [] if codes is None else [Voice("voice.wav", case["reference_text"])]
    *opening, last = speech_messages(normalized_text(case["text"], TTS_3), voices, convention=TTS_3)
    for message in opening:
        message.contents()[-1].codes = codes
    context = [(text, TENSORS[f"{name}.context_codes.{i}"]) for i, text in enumerate(case.get("context", []))]
    prompt = build_prompt([*opening, *spoken_turns(context), last], TOKENIZER, TTS_3)
    assert len(prompt.audio) == (codes is not None) + len(context)
    lengths = iter([item.codes.shape[1] + 7 for item in prompt.audio])
    expanded = [i for token in prompt.input_ids[0].tolist() for i in [token] * (next(lengths) if token == -100 else 1)]
    assert expanded == TENSORS[f"{name}.prompt_ids"].tolist()


def test_the_tokenizer_tells_the_tags():
    tags = control_tags(TOKENIZER)
    assert len(tags) == 43
    counts = {
        category: sum(f"<|{category}:" in tag for tag in tags) for category in ("emotion", "style", "sfx", "prosody")
    }
    assert counts == {"emotion": 21, "style": 3, "sfx": 9, "prosody": 10}
    for tag in tags:
        check_plain_text(f"{tag}Well.", TOKENIZER, convention=TTS_3)
        assert TOKENIZER.token_to_id(tag) in build_prompt([Message("user", f"{tag}Well.")], TOKENIZER, TTS_3).input_ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<|emotion:joy|>Hi.",
            r"text must hold tags that the model knows, got <\|emotion:joy\|>; they are emotion: affe",
        ),
        ("Hi. <|audio|>", r"text must hold tags that the model knows, got <\|audio\|>"),
        ("<|env:music|>Hi.", r"text must hold tags that the model knows, got <\|env:music\|>"),
        ("<||>", r"text must hold tags that the model knows, got <\|\|>"),
        ("A <tool_call>.", "text must be text and control tags, got the special token <tool_call>"),
    ],
)
def test_other_tags_and_tokens_are_refused(text, message):
    with pytest.raises(PromptError, match=message):
        check_plain_text(text, TOKENIZER, convention=TTS_3)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("Well [laugh] yes", "Well <|sfx:laughter|>Haha yes"),
        ("[cough] Sorry.", "<|sfx:cough|>Ahem Sorry."),
        ("[humming start][humming end] Hm (no) °C “so”", "<|sfx:humming|>Hmm Hm (no) °C “so”"),
        ("[sing start]La la[sing end]", "<|style:singing|>La la"),
        ("  Two  spaces,\nand a line ", "  Two  spaces,\nand a line "),
    ],
)
def test_only_sound_effects_are_rewritten(text, normalized):
    assert normalized_text(text, TTS_3) == normalized


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Hi [applause]", r"text must hold sound effects that Higgs TTS 3 has \(\[laugh\], .*\), got \[applause\]"),
        ("[SPEAKER0] Hi.", r"text must have one speaker with Higgs TTS 3, got \[SPEAKER0\]"),
        ("<|prosody:pause|>...", "text must hold something to say"),
        ("", "text must hold something to say"),
    ],
)
def test_what_it_cannot_say_is_refused(text, message):
    with pytest.raises(PromptError, match=message):
        normalized_text(text, TTS_3)


def test_tags_begin_every_sentence():
    text = "Hello there. How are you?\nFine, 3.5 of it!"
    tagged = tagged_text(text, TOKENIZER, TTS_3, emotion="amusement", style="whispering")
    tags = "<|emotion:amusement|><|style:whispering|>"
    assert tagged == f"{tags}Hello there. {tags}How are you?\n{tags}Fine, 3.5 of it!"
    assert tagged_text(text, TOKENIZER, TTS_3) == text
    with pytest.raises(PromptError, match="style must be one of shouting, singing, whispering, got 'loud'"):
        tagged_text(text, TOKENIZER, TTS_3, style="loud")
    with pytest.raises(PromptError, match="emotion must be None for this model, got 'anger'"):
        tagged_text(text, TOKENIZER, Convention.BOSON, emotion="anger")


def test_without_ref_text_the_words_are_left_out():
    raw = json.loads(TOKENIZER.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "<|ref_text|>"]
    old = Tokenizer.from_str(json.dumps(raw))
    audio = AudioContent(codes=torch.zeros(8, 2, dtype=torch.int64))
    with_words = [Message("system", ["Hello.", audio]), Message("user", "Hi.")]
    without = [Message("system", audio), Message("user", "Hi.")]
    assert torch.equal(build_prompt(with_words, old, TTS_3).input_ids, build_prompt(without, old, TTS_3).input_ids)
    assert (
        build_prompt(with_words, TOKENIZER, TTS_3).input_ids.shape
        > build_prompt(without, TOKENIZER, TTS_3).input_ids.shape
    )


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([Message("system", "Speak.")], "role of the last message must be 'user', got 'system'"),
        (
            [Message("system", "Speak."), Message("user", "Hi.")],
            "a message must be of role user with a text, .* got role 'system' with text",
        ),
        ([Message("assistant", "Hi."), Message("user", "Hi.")], "got role 'assistant' with text"),
        ([Message("user", AudioContent("a.wav"))], "got role 'user' with audio"),
        ([Message("user", "Hi.", recipient="me")], "recipient must be None in the higgs_tts_3 convention, got 'me'"),
    ],
)
def test_other_conversations_are_refused(messages, message):
    with pytest.raises(PromptError, match=message):
        build_prompt(messages, TOKENIZER, TTS_3)


def test_other_voices_and_scenes_are_refused():
    recorded, described = Voice("a.wav"), Voice(profile="male")
    for voices, scene, message in (
        ([recorded], "A quiet room.", "scene must be None with Higgs TTS 3, which takes control tags"),
        ([recorded, recorded], None, "voice must be one with Higgs TTS 3, got 2"),
        ([described], None, "voice must be a recording with Higgs TTS 3, got the description 'male'"),
    ):
        with pytest.raises(PromptError, match=message):
            speech_messages("Hi.", voices, scene, TTS_3)


def test_more_recordings_are_earlier_turns():
    voice = Voice("a.wav", more_recordings=[Voice("b.wav", "Ho.")])
    prompt = build_prompt(speech_messages("Hi.", [voice], None, TTS_3), TOKENIZER, TTS_3)
    expected = [
        Message("system", AudioContent("a.wav")),
        Message("user", "Ho."),
        Message("assistant", AudioContent("b.wav")),
        Message("user", "Hi."),
    ]
    assert torch.equal(prompt.input_ids, build_prompt(expected, TOKENIZER, TTS_3).input_ids)
    assert [audio.audio_url for audio in prompt.audio] == ["a.wav", "b.wav"]
    with pytest.raises(PromptError, match="reference_text must be given for all recordings after the first one"):
        speech_messages("Hi.", [Voice("a.wav", more_recordings=[Voice("b.wav")])], None, TTS_3)


@pytest.mark.parametrize(
    ("text", "tagged"),
    [
        ("Dr. Brown paid J. Smith. He left.", "#Dr. Brown paid J. Smith. #He left."),
        ("Wait... what? (Yes.) No.", "#Wait... what? #(Yes.) #No."),
        ("The sun\nrises. It\nsets.\n\nThe end", "#The sun\nrises. #It\nsets.\n\n#The end"),
        ('"Stop!" he said. “No.” She left.', '#"Stop!" he said. #“No.” #She left.'),
        ("他走了。她笑了。", "#他走了。#她笑了。"),
    ],
)
def test_no_tag_is_within_a_sentence(text, tagged):
    tag = "<|emotion:anger|>"
    assert tagged_text(text, TOKENIZER, TTS_3, emotion="anger") == tagged.replace("#", tag)


def test_another_tokenizer_is_refused():
    with pytest.raises(
        PromptError, match=r"tokenizer must be that of Higgs TTS 3, got one without the token <\|tts\|>"
    ):
        build_prompt(
            [Message("user", "Hi.")], Tokenizer.from_file(str(FOLDER.with_name("boson_lm") / "tokenizer.json")), TTS_3
        )


@pytest.mark.parametrize(
    ("text", "tagged"),
    [
        ("[pause:1s] Hello.", "[pause:1s] <|emotion:anger|>Hello."),
        ("Hello.[pause:1s]World.", "<|emotion:anger|>Hello.[pause:1s]<|emotion:anger|>World."),
        ("Hello. [speed:2] World.", "<|emotion:anger|>Hello. [speed:2] <|emotion:anger|>World."),
        (" Hello.  Bye.", " <|emotion:anger|>Hello.  <|emotion:anger|>Bye."),
    ],
)
def test_a_pause_is_not_tagged(text, tagged):
    assert tagged_text(text, TOKENIZER, TTS_3, emotion="anger") == tagged
