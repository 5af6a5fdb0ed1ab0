import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from higgs_native.convention import Convention
from higgs_native.errors import ParameterError, PromptError
from higgs_native.prompt.chat import build_prompt, check_plain_text, speech_messages
from higgs_native.prompt.messages import AudioContent, ChatMLSample, Message, TextContent
from higgs_native.prompt.voices import Voice


GOLDEN = Path(__file__).parents[1] / "golden" / "boson_lm"
CASES = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["cases"]

SYSTEM = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
USER = "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
AUDIO_IN = "<|audio_bos|><|AUDIO|><|audio_eos|>"
AUDIO_OUT = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>"
SEVERAL = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)
RECORDING = AudioContent("a.wav")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(GOLDEN / "tokenizer.json"))


def rendered(prompt, tokenizer):
    """Return the prompt's text. The tokenizer is byte-level, so decoding is lossless."""
    return tokenizer.decode(prompt.input_ids[0].tolist(), skip_special_tokens=False)


def message_from(case):
    contents = [
        item
        if isinstance(item, str)
        else TextContent(item["text"])
        if item["type"] == "text"
        else AudioContent(audio_url="reference.wav")
        for item in case["content"]
    ]
    return Message(case["role"], contents)


@pytest.mark.parametrize("name", CASES)
def test_prompts_equal_the_original_implementation(name, tokenizer):
    case, tensors = CASES[name], load_file(GOLDEN / "cases.safetensors")
    sample = ChatMLSample([message_from(message) for message in case["messages"]])
    prompt = build_prompt(sample, tokenizer, force_audio_gen=case["force_audio_gen"])
    assert prompt.input_ids.dtype == torch.int64
    assert prompt.input_ids.tolist() == [tensors[f"{name}.input_ids"].flatten().tolist()]
    assert len(prompt.audio) == sum(key.startswith(f"{name}.reference_codes.") for key in tensors)


def test_content_is_a_text_an_item_or_a_list(tokenizer):
    prompts = [
        build_prompt([Message("user", content)], tokenizer).input_ids.tolist()
        for content in ("a", TextContent("a"), ["a"], [TextContent("a")])
    ]
    assert prompts == [prompts[0]] * 4
    prompt = build_prompt([Message("user", RECORDING)], tokenizer)
    assert rendered(prompt, tokenizer) == (
        f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{AUDIO_IN}{ASSISTANT}"
    )


def test_recordings_come_in_the_order_of_their_placeholders(tokenizer):
    recordings = [AudioContent(f"{index}.wav") for index in range(4)]
    prompt = build_prompt(
        [
            Message("system", ["x", recordings[0], "y"]),
            Message("user", [recordings[1], "z"]),
            Message("assistant", ["w", recordings[2], recordings[3]]),
        ],
        tokenizer,
    )
    assert prompt.audio == recordings
    assert rendered(prompt, tokenizer) == (
        f"{SYSTEM}x{AUDIO_IN}y{USER}{AUDIO_IN}z{ASSISTANT}w{AUDIO_OUT}{AUDIO_OUT}{ASSISTANT}"
    )


def test_two_assistant_messages_in_a_row_and_a_recipient(tokenizer):
    messages = [
        Message("user", "a"),
        Message("assistant", "b", recipient="someone"),
        Message("assistant", "c"),
    ]
    assert rendered(build_prompt(messages, tokenizer), tokenizer) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na"
        f"{ASSISTANT}someone<|recipient|>b<|eom_id|>{ASSISTANT.removeprefix('<|eot_id|>')}c{ASSISTANT}"
    )


def test_only_the_boson_convention_tokenizes_texts_one_by_one():
    # A tokenizer with the merge "a b" -> "ab" shows where a text was split.
    data = json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))
    data["model"]["vocab"]["ab"] = 300
    data["model"]["merges"] = [["a", "b"]]
    merging = Tokenizer.from_str(json.dumps(data))
    whole = build_prompt([Message("system", ["ab"])], merging).input_ids.shape[1]
    cut = [Message("system", ["a", "b"])]
    assert build_prompt(cut, merging).input_ids.shape[1] == whole + 1
    scene = [Message("system", "s"), Message("user", ["a", "b"])]
    assert 300 in build_prompt(scene, merging, convention="transformers").input_ids
    assert 300 not in build_prompt(scene, merging, convention=Convention.BOSON).input_ids


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (
            [
                Message("system", " Generate audio following instruction.\n"),
                Message("scene", "Audio is recorded from a quiet room. "),
                Message("user", [" Hi. ", "Ho."]),
            ],
            f"{SYSTEM}Generate audio following instruction.\n\n<|scene_desc_start|>\nAudio is recorded from a quiet "
            f"room.\n<|scene_desc_end|>{USER}Hi.Ho.{ASSISTANT}<|audio_out_bos|>",
        ),
        (
            [
                Message("system", "s"),
                Message("scene", ["room", "SPEAKER0: feminine", "SPEAKER1: masculine", "SPEAKER2: old"]),
                Message("user", "t"),
            ],
            f"{SYSTEM}s\n\n<|scene_desc_start|>\nroom\n\nSPEAKER0: feminine\nSPEAKER1: masculine\nSPEAKER2: old"
            f"\n<|scene_desc_end|>{USER}t{ASSISTANT}<|audio_out_bos|>",
        ),
        (
            [
                Message("system", "s"),
                Message("scene", ["room", "SPEAKER0:", RECORDING, "SPEAKER1:", RECORDING]),
                Message("user", "t"),
            ],
            f"{SYSTEM}s\n\n<|scene_desc_start|>\nroom\n\nSPEAKER0: {AUDIO_OUT}\nSPEAKER1: {AUDIO_OUT}\n"
            f"<|scene_desc_end|>{USER}t{ASSISTANT}<|audio_out_bos|>",
        ),
        (
            [Message("system", "s"), Message("user", "a"), Message("assistant", RECORDING), Message("user", "b")],
            f"{SYSTEM}s{USER}a{ASSISTANT}{AUDIO_OUT}{USER}b{ASSISTANT}<|audio_out_bos|>",
        ),
        ([Message("system", "s")], f"{SYSTEM}s{ASSISTANT}<|audio_out_bos|>"),
    ],
)
def test_the_transformers_convention(messages, text, tokenizer):
    prompt = build_prompt(messages, tokenizer, convention="transformers", force_audio_gen=True)
    assert rendered(prompt, tokenizer) == text


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([Message("user", "a")], "role of the first message must be 'system', got 'user'"),
        ([Message("system", ["a", "b"])], "system message must hold exactly one text .*, got text, text"),
        ([Message("system", ["a", RECORDING])], "system message must hold exactly one text .*, got text, audio"),
        ([Message("system", "a"), Message("user", RECORDING)], "user message must hold only text .*, got audio"),
        (
            [Message("system", "a"), Message("assistant", "b")],
            "must hold exactly one recording .*, got text",
        ),
        (
            [Message("system", "a"), Message("assistant", [RECORDING] * 2)],
            "one recording .*, got audio, audio",
        ),
        (
            [Message("system", "a"), Message("user", "b"), Message("scene", "c")],
            "a scene must be message 1, .* got message 2",
        ),
        (
            [Message("system", "a"), Message("assistant", RECORDING, "someone")],
            "recipient must be None .*, got 'someone'",
        ),
    ],
)
def test_the_transformers_convention_refuses_what_its_template_drops(messages, error, tokenizer):
    with pytest.raises(PromptError, match=error):
        build_prompt(messages, tokenizer, convention="transformers")


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "conversation must hold at least one message, got none"),
        ([Message("user", "a", recipient="someone")], "recipient of a user message must be None, got 'someone'"),
        ([Message("tool", RECORDING)], "role of a message with audio must be system, user or assistant, got 'tool'"),
        ([Message("user", [3])], "content of a user message must be str, TextContent or AudioContent, got 3"),
        ([Message("user", "see <|AUDIO|>")], "got 1 audio placeholders for 0 recordings"),
    ],
)
def test_conversations_that_make_no_prompt(messages, error, tokenizer):
    with pytest.raises(PromptError, match=error):
        build_prompt(messages, tokenizer)


def test_an_unknown_convention_is_refused(tokenizer):
    error = "convention must be 'boson', 'transformers' or 'higgs_tts_3', got 'chatml'"
    with pytest.raises(ParameterError, match=error):
        build_prompt([Message("user", "a")], tokenizer, convention="chatml")
    with pytest.raises(ParameterError, match=error):
        speech_messages("Hi.", convention="chatml")


def test_a_tokenizer_of_another_model_is_refused():
    data = json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "<|audio_out_bos|>"]
    with pytest.raises(PromptError, match=r"got one without the token <\|audio_out_bos\|>"):
        build_prompt([Message("user", "a")], Tokenizer.from_str(json.dumps(data)))


PAIR = Voice("a.wav", "Hello.")
OTHER = Voice("b.wav", "Ho.")
BARE = Voice("c.wav")
OLD = Voice(profile="male; british accent")
ROOM = "Audio is recorded from a quiet room."
INSTRUCTION = "Generate audio following instruction."


def test_a_speaker_s_number_has_at_most_nine_digits():
    tags = [f"[SPEAKER{digits}]" for digits in ("0", "007", "123456789", "1234567890", "1" * 4301)]
    messages = speech_messages(" a ".join(tags))
    assert (
        messages[0]
        .content[0]
        .endswith("SPEAKER0: feminine\nSPEAKER007: masculine\nSPEAKER123456789: feminine\n<|scene_desc_end|>")
    )


@pytest.mark.parametrize(
    ("text", "voices", "scene", "boson", "transformers"),
    [
        ("Hi.", [], None, f"{INSTRUCTION}{USER}", None),
        ("Hi.", [], ROOM, f"{INSTRUCTION}\n\n<|scene_desc_start|>\n{ROOM}\n<|scene_desc_end|>{USER}", None),
        ("[SPEAKER3] Hi.", [], None, f"{INSTRUCTION}{USER}", None),
        (
            "[SPEAKER1] Hi.\n[SPEAKER0] Ho.\n[SPEAKER10] Hm.",
            [],
            ROOM,
            f"{SEVERAL}\n\n<|scene_desc_start|>\n{ROOM}\n\nSPEAKER0: feminine\nSPEAKER1: masculine\n"
            f"SPEAKER10: feminine\n<|scene_desc_end|>{USER}",
            None,
        ),
        ("Hi.", [PAIR], None, f"{INSTRUCTION}{USER}Hello.{ASSISTANT}{AUDIO_OUT}{USER}", None),
        (
            "[SPEAKER0] Hi.\n[SPEAKER1] Ho.",
            [PAIR, OTHER],
            None,
            f"{INSTRUCTION}{USER}[SPEAKER0] Hello.{ASSISTANT}{AUDIO_OUT}"
            f"{USER}[SPEAKER1] Ho.{ASSISTANT}{AUDIO_OUT}{USER}",
            None,
        ),
        (
            "Hi.",
            [BARE],
            ROOM,
            f"{INSTRUCTION}\n\n<|scene_desc_start|>\n{ROOM}\n\nSPEAKER0: {AUDIO_IN}\n<|scene_desc_end|>{USER}",
            f"{INSTRUCTION}\n\n<|scene_desc_start|>\n{ROOM}\n\nSPEAKER0: {AUDIO_OUT}\n<|scene_desc_end|>{USER}",
        ),
        (
            "Hi.",
            [OLD],
            None,
            f"{INSTRUCTION}\n\n<|scene_desc_start|>\nSPEAKER0: male; british accent\n<|scene_desc_end|>{USER}",
            None,
        ),
        (
            "[SPEAKER0] Hi.\n[SPEAKER1] Ho.\n[SPEAKER2] Hm.",
            [PAIR, OLD, BARE],
            ROOM,
            f"{INSTRUCTION}\n\n<|scene_desc_start|>\n{ROOM}\n\nSPEAKER0: {AUDIO_IN}\nSPEAKER1: male; british accent\n"
            f"SPEAKER2: {AUDIO_IN}\n<|scene_desc_end|>{USER}",
            f"{INSTRUCTION}\n\n<|scene_desc_start|>\n{ROOM}\n\nSPEAKER0: {AUDIO_OUT}\nSPEAKER1: male; british accent\n"
            f"SPEAKER2: {AUDIO_OUT}\n<|scene_desc_end|>{USER}",
        ),
    ],
)
def test_speech_messages(text, voices, scene, boson, transformers, tokenizer):
    for convention, expected in ((Convention.BOSON, boson), (Convention.TRANSFORMERS, transformers or boson)):
        prompt = build_prompt(speech_messages(text, voices, scene, convention), tokenizer, convention)
        assert rendered(prompt, tokenizer) == f"{SYSTEM}{expected}{text}{ASSISTANT}"
        recordings = [voice.reference_audio for voice in voices if voice.profile is None]
        assert [audio.audio_url for audio in prompt.audio] == recordings


def test_speech_messages_cut_the_system_text_only_at_recordings():
    system = speech_messages("Hi.", [BARE, OLD], ROOM)[0]
    assert [type(item).__name__ for item in system.contents()] == ["TextContent", "AudioContent", "TextContent"]


@pytest.mark.parametrize("convention", [Convention.BOSON, Convention.TRANSFORMERS])
def test_each_recording_of_a_voice_is_a_turn(convention, tokenizer):
    voices = [replace(PAIR, more_recordings=[Voice("d.wav", "Hey.")]), OTHER]
    prompt = build_prompt(speech_messages("Hi.", voices, None, convention), tokenizer, convention)
    turns = [("[SPEAKER0] Hello."), ("[SPEAKER0] Hey."), ("[SPEAKER1] Ho.")]
    expected = "".join(f"{USER}{words}{ASSISTANT}{AUDIO_OUT}" for words in turns)
    assert rendered(prompt, tokenizer) == f"{SYSTEM}{INSTRUCTION}{expected}{USER}Hi.{ASSISTANT}"
    assert [audio.audio_url for audio in prompt.audio] == ["a.wav", "d.wav", "b.wav"]
    error = "reference_text must be given for all recordings if a voice has several, got one without it"
    for wrong in ([voices[0], BARE], [voices[0], OLD], [replace(PAIR, more_recordings=[BARE])]):
        with pytest.raises(PromptError, match=error):
            speech_messages("Hi.", wrong, None, convention)


def test_samples_are_carried_as_raw_audio():
    samples = torch.zeros(100)
    messages = speech_messages("Hi.", [Voice((samples, 24000), "words")])
    assert messages[2].content.raw_audio == (samples, 24000)
    assert messages[2].content.audio_url is None


@pytest.mark.parametrize("token", ["<|eot_id|>", "<|AUDIO|>", "<|scene_desc_end|>"])
def test_special_tokens_are_not_plain_text(token, tokenizer):
    with pytest.raises(PromptError, match=r"scene must be plain text, got the special token <\|"):
        check_plain_text(f"a{token}b", tokenizer, "scene")


def test_plain_text_may_look_like_a_special_token(tokenizer):
    check_plain_text("a <|eot_id |> b <SE>[Cough]</SE> <|unknown|>", tokenizer)
