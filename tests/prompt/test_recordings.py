"""Recordings: where they come from, and what they keep."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from higgs_native.audio import quality
from higgs_native.audio.quality import check_recording
from higgs_native.compat.boson.audio_tokenizer import BosonAudioTokenizer
from higgs_native.errors import AudioError, PromptError
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.messages import AudioContent, Message
from higgs_native.prompt.recordings import Recording, read_recording
from higgs_native.prompt.voices import Voice, check_voice, read_voice
from higgs_native.testing.random_checkpoint import write_demo_checkpoint
from tests.audio.test_quality import WORDS, syllables


RATE = 24000
TEXT = "The sun rises in the east."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    return HiggsAudio.from_pretrained(folder)


@pytest.fixture
def path(tmp_path):
    soundfile.write(tmp_path / "anna.wav", syllables(5), RATE, subtype="FLOAT")
    return tmp_path / "anna.wav"


def test_what_was_checked_is_what_is_spoken_with(engine, path):
    options = {"seed": 1, "max_new_tokens": 12}
    expected = engine.speak(TEXT, reference_audio=path, reference_text=WORDS, **options)
    voice = read_voice(Voice(path, WORDS))
    samples = syllables(5)
    recording = Recording(samples, RATE)
    path.write_bytes(b"another file")
    samples[:] = 0
    assert torch.equal(engine.speak(TEXT, voice=voice, **options).codes, expected.codes)
    spoken = engine.speak(TEXT, reference_audio=recording, reference_text=WORDS, **options)
    assert torch.equal(spoken.codes, expected.codes)
    with pytest.raises(ValueError, match="read-only"):
        recording.samples[0] = 1


def test_a_recording_is_measured_once(engine, path, monkeypatch):
    measured = []

    def measure(samples, sampling_rate):
        measured.append(len(samples))
        return quality.measure(samples, sampling_rate)

    monkeypatch.setattr("higgs_native.prompt.recordings.measure", measure)
    voice = read_voice(Voice(path, "Hi."))
    assert measured == []
    for _ in range(2):
        assert check_voice(voice) == ["its words are too few for 5.0 s of speech"]
    assert voice.reference_audio.advice() == ["its words are not given; with them a clone is closer"]
    with pytest.warns(UserWarning, match="its words are too few"):
        engine.speak(TEXT, voice=voice, max_new_tokens=10)
    assert measured == [5 * RATE]


def test_the_advice_is_that_of_the_samples():
    for samples in (syllables(5), syllables(2), np.zeros(RATE, dtype=np.float32)):
        for words in (None, WORDS, "Hi."):
            assert Recording(samples, RATE).advice(words) == check_recording(samples, RATE, words)


def test_channels_are_averaged_and_integers_scaled():
    recording = Recording(np.array([[16384, -32768] * 6000, [0, 0] * 6000], dtype=np.int16), 24000.0)
    assert recording.samples.dtype == np.float32
    assert recording.samples.tolist() == [0.25, -0.5] * 6000
    assert recording.sampling_rate == 24000
    assert isinstance(recording.sampling_rate, int)


def test_the_name_is_the_path_as_it_was_given(path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    assert Recording.read("~/anna.wav").name == "~/anna.wav"
    assert Recording.read(path).name == str(path)
    assert Recording(syllables(1), RATE).name == "the reference audio"


def test_the_digest_depends_on_the_samples_alone(path):
    assert Recording.read(path).sha256 == Recording(syllables(5), 48000).sha256
    assert Recording(syllables(4), RATE).sha256 != Recording(syllables(5), RATE).sha256


def test_parts():
    recording = Recording(np.arange(24000, dtype=np.float32), RATE, "ramp")
    assert recording.part() is recording
    part = recording.part(0.25, 0.5)
    assert (part.samples[0], len(part.samples), part.sampling_rate, part.name) == (6000, 12000, RATE, "ramp")
    assert recording.part(duration=0.5).samples.tolist() == list(range(12000))
    content = AudioContent(raw_audio=recording)
    assert read_recording(content) is recording
    content.offset = 0.5
    assert read_recording(content).samples.tolist() == list(range(12000, 24000))
    with pytest.raises(AudioError, match="ramp"):
        recording.part(1.0)
    with pytest.raises(AudioError, match="offset must be a number of seconds, at least 0, got "):
        recording.part(np.zeros(2))


def test_voices_keep_what_they_have(path):
    profile, read = Voice(profile="old"), read_voice(Voice(path, WORDS))
    assert read_voice(profile) is profile
    assert read_voice(read) is read
    assert read.reference_text == WORDS
    np.testing.assert_array_equal(read.reference_audio.samples, syllables(5))


def test_recordings_come_from_files_base64_and_arrays(path):
    samples = syllables(5)
    encoded = io.BytesIO()
    soundfile.write(encoded, np.stack([samples, samples], axis=1), 16000, format="WAV", subtype="FLOAT")
    raw = base64.b64encode(encoded.getvalue()).decode()
    for content, expected, rate in (
        (AudioContent(str(path)), samples, RATE),
        (AudioContent(str(path), offset=0.25, duration=0.5), samples[6000:18000], RATE),
        (AudioContent(raw_audio=(samples, RATE), offset=0.5), samples[12000:], RATE),
        (AudioContent("placeholder", raw), samples, 16000),
        (AudioContent("", raw_audio=raw, duration=0.5), samples[:8000], 16000),
        (AudioContent(raw_audio=base64.encodebytes(encoded.getvalue()).decode()), samples, 16000),  # in lines
        (AudioContent(raw_audio=base64.encodebytes(encoded.getvalue())), samples, 16000),
        (AudioContent(raw_audio=(np.stack([samples, samples]), RATE), offset=0.5), samples[12000:], RATE),
        (AudioContent(raw_audio=(torch.from_numpy(samples), RATE)), samples, RATE),
    ):
        read = read_recording(content)
        assert read.sampling_rate == rate
        np.testing.assert_array_equal(read.samples, expected)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (AudioContent("missing.wav"), AudioError, "audio must be an existing file .*, got missing.wav"),
        (AudioContent(__file__), AudioError, "can't be read as audio"),
        (AudioContent(raw_audio="not base64!"), AudioError, "raw_audio must be base64"),
        (
            AudioContent(raw_audio=base64.b64encode(b"noise").decode()),
            AudioError,
            "the audio file can't be read as audio: Format not recognised",
        ),
        (AudioContent(str(Path(__file__).parent), duration=1), AudioError, "existing file"),
        (AudioContent(), PromptError, "audio_url or raw_audio must name a recording, got neither"),
        (AudioContent("placeholder"), PromptError, "audio_url or raw_audio must name a recording, got neither"),
        (AudioContent("https://example.org/a.wav"), AudioError, "existing file .*, got https://example.org/a.wav"),
        (AudioContent(5), AudioError, "audio must be a file's path, its contents, .*, got int"),
        (
            AudioContent(raw_audio=5),
            AudioError,
            r"audio must be .* base64, \(samples, sampling rate\) or .*, got int",
        ),
        (AudioContent(raw_audio=(1, 2, 3)), AudioError, "audio must be .*, got tuple"),
        (AudioContent(raw_audio=([0.1], RATE)), AudioError, "samples must be an array or a tensor, got list"),
        (
            AudioContent(raw_audio=([0.1], RATE), offset=0.1),
            AudioError,
            "samples must be an array or a tensor, got list",
        ),
        (
            AudioContent(raw_audio=(np.zeros(RATE), "24000"), offset=0.1),
            AudioError,
            "sampling_rate .*, got '24000'",
        ),
    ],
)
def test_recordings_that_cannot_be_read(content, error, message):
    with pytest.raises(error, match=message) as raised:
        read_recording(content)
    assert "\n" not in str(raised.value)


def test_a_part_of_a_long_file_is_read(tmp_path):
    """Ten minutes are too long for a reference; a second of them is not."""
    path = tmp_path / "long.wav"
    soundfile.write(path, np.arange(600 * 8000, dtype=np.int32) % 3000, 8000, subtype="PCM_16")
    with pytest.raises(AudioError, match=r"long\.wav must last at most 120 s, got 600 s"):
        read_recording(AudioContent(str(path)))
    part = read_recording(AudioContent(str(path), offset=300, duration=1))
    expected = soundfile.read(path, dtype="float32", start=300 * 8000, frames=8000)[0]
    np.testing.assert_array_equal(part.samples, expected)
    assert part.sampling_rate == 8000
    for cut, message in (
        ({"offset": 601}, r"offset must be less than 600 s, the length of .*long.wav, got 601 s"),
        ({"duration": 0}, r"duration must be at least 0.1 s of .*long.wav, got 0 s"),
        ({"offset": 599.99}, r"long.wav must last at least 0.1 s, got 0.01 s"),
    ):
        with pytest.raises(AudioError, match=message):
            read_recording(AudioContent(str(path), **cut))


@pytest.mark.parametrize(
    ("cut", "shape", "message"),
    [
        ({"offset": -0.5}, (24000,), "offset must be a number of seconds, at least 0, got -0.5"),
        ({"duration": float("nan")}, (24000,), "duration must be a number of seconds, at least 0, got nan"),
        ({"offset": "1"}, (24000,), "offset must be a number of seconds, at least 0, got '1'"),
        ({"duration": [1]}, (24000,), r"duration must be a number of seconds, at least 0, got \[1\]"),
        ({"offset": 1.5}, (24000,), "offset must be less than 1 s, the length of the audio, got 1.5 s"),
        ({"offset": 1, "duration": 1}, (24000,), "offset must be less than 1 s, the length of the audio, got 1 s"),
        ({"duration": 0}, (24000,), "duration must be at least 0.1 s of the audio, got 0 s"),
        ({"offset": 0.5}, (0,), "audio must hold samples, got"),
    ],
)
def test_a_cut_that_makes_no_sense_is_refused(cut, shape, message):
    recording = AudioContent(raw_audio=(np.zeros(shape, dtype=np.float32), 24000), **cut)
    with pytest.raises(AudioError, match=message):
        read_recording(recording)


def test_a_headerless_file_is_refused(tmp_path):
    (tmp_path / "voice.raw").write_bytes(bytes(48000))
    with pytest.raises(AudioError, match="can't be read as audio"):
        read_recording(AudioContent(audio_url=str(tmp_path / "voice.raw")))


def in_many_forms(path: Path) -> dict[str, object]:
    contents, samples = path.read_bytes(), soundfile.read(path, dtype="float32")[0]
    return {
        "contents": contents,
        "open_file": io.BytesIO(contents),
        "base64": base64.b64encode(contents).decode(),
        "data_url": f"data:audio/wav;base64,{base64.b64encode(contents).decode()}",
        "list": [samples, np.float32(RATE)],
        "comfyui": {"waveform": torch.from_numpy(samples)[None, None], "sample_rate": RATE},
        "recording": Recording(samples, RATE),
    }


@pytest.mark.parametrize("form", ["contents", "open_file", "base64", "data_url", "list", "comfyui", "recording"])
def test_every_interface_reads_every_form(engine, path, form):
    options = {"seed": 1, "max_new_tokens": 12}
    spoken = engine.speak(TEXT, reference_audio=path, reference_text=WORDS, **options).codes

    def given() -> object:
        return in_many_forms(path)[form]

    assert torch.equal(engine.speak(TEXT, reference_audio=given(), reference_text=WORDS, **options).codes, spoken)
    assert torch.equal(engine.speak(TEXT, voice=Voice(given(), WORDS), **options).codes, spoken)
    streamed = engine.stream(TEXT, reference_audio=given(), reference_text=WORDS, **options)
    assert sum(len(chunk.samples) for chunk in streamed) == spoken.shape[1] * 960
    messages = engine.speech_messages(TEXT, [Voice(path, WORDS)], None)
    for content in (AudioContent(raw_audio=given()), AudioContent(audio_url=given())):
        messages[2] = Message("assistant", content)
        assert torch.equal(engine.generate(messages, True, **options).codes, spoken)
    book = LongSpeech(engine, TEXT, reference_audio=given(), reference_text=WORDS, seed=1, max_retries=0)
    expected = LongSpeech(engine, TEXT, reference_audio=path, reference_text=WORDS, seed=1, max_retries=0)
    assert book._store.run == expected._store.run
    if form != "recording":
        codes = engine.audio_tokenizer.encode(path)
        assert torch.equal(engine.audio_tokenizer.encode(given()), codes)
        boson = BosonAudioTokenizer(engine.audio_tokenizer)
        assert torch.equal(boson.encode(given()), codes)
        loud = boson.encode(path, loudness_normalize=True)
        assert torch.equal(boson.encode(given(), loudness_normalize=True), loud)


def test_raw_audio_is_never_a_path(path):
    for raw in (str(path), "/etc/hostname"):
        with pytest.raises(AudioError, match="raw_audio must be base64"):
            read_recording(AudioContent(raw_audio=raw))


def test_messages_never_print_a_recording():
    contents = bytes(100) + b"SECRET" * 1000
    encoded = base64.b64encode(contents).decode()
    for content in (
        AudioContent(f"data:audio/wav;base64,{encoded}"),
        AudioContent(encoded + "!"),
        AudioContent(raw_audio=encoded + "!"),
        AudioContent(raw_audio=contents),
        AudioContent(raw_audio=[contents, RATE]),
        AudioContent(raw_audio={"waveform": contents, "sample_rate": RATE}),
        AudioContent(raw_audio=(np.zeros(RATE), np.full(5, 123.456))),
        AudioContent(raw_audio=(np.zeros(RATE), RATE), offset=contents),
    ):
        with pytest.raises(AudioError) as error:
            read_recording(content)
        message = str(error.value)
        assert len(message) < 300
        assert not any(secret in message for secret in ("SECRETSECRET", "U0VDUkVUU0VDUkVU", "123.456"))
    assert "SECRET" not in repr(AudioContent(raw_audio=contents))
    with pytest.raises(PromptError, match="content of a user message must be str, TextContent or AudioContent, got "):
        Message("user", [contents]).contents()


def test_a_warning_is_one_line(engine, tmp_path):
    path = tmp_path / "a\x1b[31m\nb.wav"
    soundfile.write(path, syllables(2), RATE)
    with pytest.warns(UserWarning, match=r"a\\x1b\[31m b\.wav: it is short") as warned:
        engine.speak(TEXT, reference_audio=path, max_new_tokens=10)
    assert str(warned[0].message).isprintable()


def test_scenes_and_words_lose_invisible_characters(engine):
    plain = engine.speech_messages(TEXT, [Voice(profile="old")], "Quiet room.")
    assert engine.speech_messages(f"\ufeff{TEXT}", [Voice(profile="ol\u200bd")], "Quiet\u200b room.") == plain
    with pytest.raises(PromptError, match="scene must be plain text, got the special token"):
        engine.speech_messages(TEXT, [], "a <|eot\u200b_id|>")
