"""Manifests, and the codes of their recordings: what is read, and one line for what can't be."""

import os

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.checkpoint.files import load_tokenizer
from higgs_native.convention import Convention
from higgs_native.errors import AudioError, CheckpointError, ConfigError, PromptError
from higgs_native.manuscript.phonemes import PhonemeReader
from higgs_native.pipeline import EMBEDDED_VOICE
from higgs_native.prompt.voices import Voice
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer
from higgs_native.training.data.codes import CodesCache
from higgs_native.training.data.manifest import read_manifest
from tests.training.conftest import RATE, write_manifest, write_recording


@pytest.fixture(scope="module")
def audio_tokenizer(base):
    return HiggsAudioTokenizer.from_pretrained(base / "audio_tokenizer")


@pytest.fixture
def read(base, recordings):
    """Reads lines as a manifest in the folder of recordings."""

    def read(*lines, convention=Convention.BOSON, phonemes=None):
        write_manifest(recordings / "some.jsonl", lines)
        return read_manifest(recordings / "some.jsonl", load_tokenizer(base), convention, phonemes)

    return read


def test_texts_are_written_as_the_model_reads_them(read):
    phonemes = PhonemeReader.from_folder(EMBEDDED_VOICE)
    reply = {"role": "assistant", "content": {"type": "audio", "audio_url": "0.wav"}}
    entries = read(
        {"audio": "0.wav", "text": "Hello, 2 dogs", "speaker": "heart"},
        {"audio": "0.wav", "text": "Hello.", "speaker": "emma"},
        {"audio": "0.wav", "text": "Hello.", "ref_audio": "1.wav", "ref_text": "Two dogs."},
        {"messages": [{"role": "system", "content": "Speak."}, {"role": "user", "content": "Hello."}, reply]},
        phonemes=phonemes,
    )
    american, british = (entry.messages[1].content for entry in entries[:2])
    assert american == phonemes.spell("Hello, two dogs.")
    assert american != "Hello, 2 dogs."
    assert british == phonemes.spell("Hello.", [Voice(profile="emma")]) != phonemes.spell("Hello.")
    assert entries[0].text == "Hello, 2 dogs."
    shown = [item.text for message in entries[2].messages for item in message.contents() if hasattr(item, "text")]
    assert phonemes.spell("Two dogs.") in shown
    said = [[item.text for item in message.contents()] for message in entries[3].messages[:2]]
    assert said == [["Speak."], [phonemes.spell("Hello.")]]
    with pytest.raises(
        PromptError, match=r"some.jsonl, line 1: text must hold words that the voice can read, got '你好"
    ):
        read({"audio": "0.wav", "text": "你好"}, phonemes=phonemes)


def test_a_line_becomes_the_conversation_that_speaks_it(read):
    (entry,) = read({"audio": "0.wav", "text": "Hello", "speaker": "anna", "scene": "A quiet room.", "id": 7})
    assert [message.role for message in entry.messages] == ["system", "user", "assistant"]
    assert entry.messages[1].content == "Hello."
    assert "A quiet room.\n\nSPEAKER0: anna" in entry.messages[0].contents()[0].text
    assert (entry.start_index, entry.text, entry.speaker) == (2, "Hello.", "anna")
    (clip,) = entry.clips()
    assert clip.read().samples.shape == (round(0.4 * RATE),)


def test_a_reference_becomes_a_turn_before_it(read):
    (entry,) = read({"audio": "0.wav", "text": "Hello.", "ref_audio": "1.wav", "ref_text": "Number one."})
    assert [message.role for message in entry.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert entry.start_index == 4
    assert [clip.read().name.rpartition("/")[2] for clip in entry.clips()] == ["1.wav", "0.wav"]


@pytest.mark.parametrize("convention", [Convention.BOSON, Convention.TRANSFORMERS])
def test_a_reference_without_words_stands_in_the_scene(read, convention):
    (entry,) = read({"audio": "0.wav", "text": "Hello.", "ref_audio": "1.wav"}, convention=convention)
    assert entry.start_index == len(entry.messages) - 1
    assert len(entry.clips()) == 2


def test_conversations_of_boson_are_read(read):
    audio = {"type": "audio", "audio_url": "0.wav", "offset": 0.1, "duration": 0.2}
    (entry,) = read(
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hello."}]},
                {"role": "assistant", "content": audio},
            ],
            "start_index": 1,
            "speaker": "ben",
            "misc": {},
        }
    )
    assert (entry.start_index, entry.speaker) == (1, "ben")
    assert len(entry.clips()[0].read().samples) == pytest.approx(0.2 * RATE)


GOOD = {"audio": "0.wav", "text": "Hello."}
CONVERSATION = {"role": "assistant", "content": {"type": "audio", "audio_url": "0.wav"}}
WRONG_LINES = {
    "no object": (["a"], ConfigError, "must be a JSON object"),
    "no audio": ({"text": "Hello."}, ConfigError, "must have audio or codes, got neither"),
    "no text": ({"audio": "0.wav"}, ConfigError, "has no 'text'"),
    "empty text": ({"audio": "0.wav", "text": " "}, PromptError, "text must be the words spoken"),
    "special token": ({"audio": "0.wav", "text": "Hi. <|eot_id|>"}, PromptError, "text must be plain text"),
    "number": ({"audio": 5, "text": "Hello."}, ConfigError, "audio must be a string, got 5"),
    "words of no reference": ({**GOOD, "ref_text": "Hi."}, ConfigError, "ref_text must be given with ref_audio"),
    "no messages": ({"messages": []}, ConfigError, "messages must be a list of messages"),
    "no reply": (
        {"messages": [{"role": "user", "content": "Hi."}]},
        ConfigError,
        "must be a conversation with a reply",
    ),
    "start": ({"messages": [CONVERSATION], "start_index": 3}, ConfigError, "start_index must be from 0 to 0, got 3"),
    "kind": ({"messages": [{"role": "assistant", "content": {"type": "video"}}]}, ConfigError, "must be 'text' or"),
    "no url": ({"messages": [{"role": "assistant", "content": {"type": "audio"}}]}, ConfigError, "got neither"),
}


@pytest.mark.parametrize(("line", "error", "message"), WRONG_LINES.values(), ids=WRONG_LINES.keys())
def test_a_wrong_line_is_named(read, line, error, message):
    with pytest.raises(error) as raised:
        read(GOOD, line)
    assert "some.jsonl, line 2" in str(raised.value)
    assert message in str(raised.value)


def test_files_that_are_no_manifests_are_refused(base, tmp_path):
    tokenizer = load_tokenizer(base)
    for contents, message in ((b"", "got none"), (b"{", "must be JSON"), (b"\xff\xff", "must be UTF-8")):
        (tmp_path / "m.jsonl").write_bytes(contents)
        with pytest.raises(ConfigError, match=message):
            read_manifest(tmp_path / "m.jsonl", tokenizer, Convention.BOSON)
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, reason in (
        ("missing", "No such file"),
        ("device", "it is not a regular file"),
        ("pipe", "it is not a regular file"),
    ):
        with pytest.raises(ConfigError, match=f"can't be read: {reason}"):
            read_manifest(tmp_path / f"{name}.jsonl", tokenizer, Convention.BOSON)


def check(audio_tokenizer, recordings, entries) -> list[str]:
    advice: list[str] = []
    CodesCache(audio_tokenizer, recordings).check(entries, advice.append)
    return advice


@pytest.mark.parametrize(
    ("name", "samples", "message"),
    [
        ("empty.wav", np.zeros(0), "empty.wav"),
        ("silent.wav", np.zeros(RATE), "audio must be heard, got silence in .*silent.wav"),
        ("short.wav", np.ones(100) * 0.1, "short.wav"),
        ("missing.wav", None, "missing.wav"),
    ],
)
def test_recordings_that_can_not_be_learned_are_named_with_their_line(
    read, recordings, audio_tokenizer, name, samples, message
):
    if samples is not None:
        soundfile.write(recordings / name, samples, RATE)
    entries = read(GOOD, {"audio": name, "text": "Hello."})
    with pytest.raises(AudioError, match=message) as raised:
        check(audio_tokenizer, recordings, entries)
    assert "some.jsonl, line 2: " in str(raised.value)


def test_poor_recordings_are_named(read, recordings, audio_tokenizer):
    write_recording(recordings / "soft.wav", 4, 1, level=0.01)
    (advice,) = [
        line
        for line in check(audio_tokenizer, recordings, read({"audio": "soft.wav", "text": "Words " * 8}))
        if "soft, at" in line
    ]
    assert "some.jsonl, line 1: " in advice


def test_codes_are_computed_once_and_cached_beside_the_recording(read, recordings, audio_tokenizer, monkeypatch):
    (entry,) = read(GOOD)
    (clip,) = entry.clips()
    codes = CodesCache(audio_tokenizer, recordings).codes(clip)
    assert torch.equal(codes, audio_tokenizer.encode(recordings / "0.wav"))
    (cached,) = recordings.glob("0.wav.*.codes")
    monkeypatch.setattr(audio_tokenizer, "encode", None)
    assert torch.equal(CodesCache(audio_tokenizer, recordings).codes(clip), codes)
    # In a manifest, the file of codes replaces the recording.
    (from_codes,) = read({"codes": cached.name, "text": "Hello."})
    check(audio_tokenizer, recordings, [from_codes])
    assert torch.equal(CodesCache(audio_tokenizer, recordings).codes(from_codes.clips()[0]), codes)
    # Another recording of that name has other codes.
    write_recording(recordings / "0.wav", 0.4, 99)
    with pytest.raises(TypeError):
        CodesCache(audio_tokenizer, recordings).codes(clip)


def test_codes_of_another_tokenizer_are_refused(read, recordings, audio_tokenizer, tmp_path):
    write_audio_tokenizer(tmp_path / "other", DEMO_AUDIO_TOKENIZER_CONFIG, seed=5)
    other = CodesCache(HiggsAudioTokenizer.from_pretrained(tmp_path / "other"), recordings)
    other.codes(read(GOOD)[0].clips()[0])
    (theirs,) = recordings.glob("0.wav.*.codes")
    entries = read(GOOD, {"codes": theirs.name, "text": "Hello."})
    with pytest.raises(CheckpointError, match="line 2: codes must be those of this audio tokenizer"):
        check(audio_tokenizer, recordings, entries)
    # The recording itself is encoded again, with this tokenizer.
    assert torch.equal(
        CodesCache(audio_tokenizer, recordings).codes(entries[0].clips()[0]),
        audio_tokenizer.encode(recordings / "0.wav"),
    )


def test_files_that_hold_no_codes_are_refused(read, recordings, audio_tokenizer):
    cache = CodesCache(audio_tokenizer, recordings)
    cache.codes(read(GOOD)[0].clips()[0])
    (good,) = recordings.glob("0.wav.*.codes")
    from safetensors import safe_open

    with safe_open(good, framework="pt") as file:
        metadata, codes = file.metadata(), file.get_tensor("codes")
    save_file({"codes": codes[:4].contiguous()}, recordings / "few.codes", metadata)
    save_file({"codes": codes + 2000}, recordings / "large.codes", metadata)
    save_file({"other": codes}, recordings / "name.codes", metadata)
    (recordings / "damaged.codes").write_bytes(b"x")
    for name in ("few", "large", "name", "damaged", "missing"):
        with pytest.raises(CheckpointError, match="line 1: codes must be"):
            check(audio_tokenizer, recordings, read({"codes": f"{name}.codes", "text": "Hello."}))
