import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from higgs_native.audio.loudness import integrated_loudness
from higgs_native.errors import AudioError, ParameterError
from higgs_native.speech import Speech


RATE = 24000


@pytest.fixture
def samples():
    time = np.arange(RATE) / RATE
    return (0.5 * np.sin(2 * np.pi * 220 * time) * np.sin(np.pi * time)).astype(np.float32)


def speech_of(audio):
    return Speech(audio, RATE, torch.zeros(8, 0, dtype=torch.int64), "", "stop", {})


@pytest.mark.parametrize(
    ("ending", "kind", "tolerance"),
    [
        (".wav", "WAV", 1 / 32768),
        (".FLAC", "FLAC", 1 / 32768),
        (".ogg", "OGG", 0.05),
        (".mp3", "MP3", 0.05),
        (".opus", "OGG", 0.05),
    ],
)
def test_audio_is_saved_by_the_ending(ending, kind, tolerance, samples, tmp_path):
    path = tmp_path / f"out{ending}"
    speech_of(samples).save(path)
    assert soundfile.info(path).format == kind
    read, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    assert abs(len(read) - len(samples)) < 3000
    np.testing.assert_allclose(read[: len(samples)], samples[: len(read)], atol=tolerance)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_no_audio_makes_no_file(tmp_path):
    speech = replace(speech_of(np.zeros(0, dtype=np.float32)), text="No.")
    with pytest.raises(AudioError, match=r"no audio to save \(it wrote the text 'No\.'\)"):
        speech.save(tmp_path / "out.wav")
    assert not list(tmp_path.iterdir())


def test_what_exceeds_full_scale_is_clipped(tmp_path):
    speech_of(np.array([2.0, -2.0], dtype=np.float32)).save(tmp_path / "out.wav")
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], [1, -1], atol=1e-4)


def test_a_file_that_stands_there_survives_a_failed_write(samples, tmp_path, monkeypatch):
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")

    def fail(file, samples):
        raise OSError("disk full")

    monkeypatch.setattr(soundfile.SoundFile, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        speech_of(samples).save(path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["out.wav"]


def test_the_duration_is_in_seconds(samples):
    assert speech_of(samples[:12000]).duration == 0.5


def test_the_representation_is_short(samples):
    speech = speech_of(samples)
    assert repr(speech) == "Speech(1.00 s, 24000 Hz)"
    assert repr(replace(speech, seed=7, failures=())) == "Speech(1.00 s, 24000 Hz, seed 7, failures: none)"
    failed = replace(speech, seed=7, failures=("no end", "silence"))
    assert repr(failed) == "Speech(1.00 s, 24000 Hz, seed 7, failures: no end, silence)"


def test_speeches_are_equal_if_all_of_them_is(samples):
    speech = speech_of(samples)
    assert speech == speech_of(samples.copy())
    changes = {
        "audio": samples[1:],
        "sampling_rate": 16000,
        "codes": torch.ones(8, 1, dtype=torch.int64),
        "text": "a",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 1},
        "seed": 1,
        "failures": (),
        "model": "a",
        "script": "a",
    }
    for name, value in changes.items():
        assert speech != replace(speech, **{name: value})
    assert speech != samples.tolist()


def test_a_notebook_shows_a_player(samples):
    shown = replace(speech_of(samples), seed=7, failures=())._repr_html_()
    source = re.fullmatch(
        r'<audio controls src="data:audio/mpeg;base64,([\w+/=]+)"></audio><div>Speech\(1\.00 s, .*</div>', shown
    )[1]
    audio, rate = soundfile.read(io.BytesIO(base64.b64decode(source)))
    assert rate == RATE
    assert abs(len(audio) - len(samples)) < 3000
    assert speech_of(samples[:0])._repr_html_() == "<div>Speech(0.00 s, 24000 Hz)</div>"


def test_a_file_object_gets_the_bytes(samples, tmp_path):
    speech = replace(speech_of(samples), seed=7)
    for format in (None, "wav24", "flac", "mp3"):
        file = io.BytesIO()
        speech.save(file, format)
        assert file.getvalue() == speech.to_bytes(format or "wav")
    with pytest.raises(ParameterError, match="path must be opened for writing bytes, got StringIO of text"):
        speech.save(io.StringIO())
    with pytest.raises(ParameterError, match=r"format must be one of wav, .*, got 'doc'"):
        speech.to_bytes("doc")


def test_tags_name_the_title_the_model_and_the_seed(samples, tmp_path):
    speech = replace(speech_of(samples), seed=7, model="owner/name")
    for name in ("out.wav", "out.flac", "out.mp3", "out.ogg", "out.opus"):
        speech.save(tmp_path / name, title="Good morning.")
        with soundfile.SoundFile(tmp_path / name) as file:
            assert (file.title, file.comment) == ("Good morning.", "model owner/name, seed 7")
    with pytest.raises(ParameterError, match="title must be a string or None, got 1"):
        speech.save(tmp_path / "out.wav", title=1)


def test_the_loudness_and_the_speed_of_a_file(samples):
    pytest.importorskip("av")
    speech = speech_of(samples / 20)
    louder, _ = soundfile.read(io.BytesIO(speech.to_bytes("wav_float", loudness=-20)))
    assert integrated_loudness(louder, RATE) == pytest.approx(-20, abs=0.01)
    faster, _ = soundfile.read(io.BytesIO(speech.to_bytes("wav_float", loudness=-20, speed=1.25)))
    assert len(faster) / len(louder) == pytest.approx(0.8, abs=0.02)
    assert integrated_loudness(faster, RATE) == pytest.approx(-20, abs=0.01)


def test_what_is_played_has_the_loudness_and_the_speed_of_the_file(samples, monkeypatch):
    pytest.importorskip("av")
    played = []
    monkeypatch.setattr("higgs_native.speech.play", lambda *arguments: played.append(arguments))
    speech = speech_of(samples / 20)
    speech.play(loudness=-20, speed=1.25)
    written, _ = soundfile.read(io.BytesIO(speech.to_bytes("wav_float", loudness=-20, speed=1.25)))
    ((heard, rate),) = played
    assert rate == RATE
    assert np.array_equal(heard, written.astype(np.float32))


def test_no_audio_is_played(samples):
    with pytest.raises(AudioError, match="the model made no audio"):
        speech_of(samples[:0]).play()


def test_subtitles_need_a_text(samples, tmp_path):
    speech = speech_of(samples)
    with pytest.raises(AudioError, match="subtitles need audio of a known text"):
        speech.save_subtitles(tmp_path / "a.srt")
    replace(speech, script="Hello there.").save_subtitles(tmp_path / "a.srt", words=True)
    assert [line for line in (tmp_path / "a.srt").read_text().split("\n") if line.isalpha()] == ["Hello"]
    assert "--> 00:00:01,000\nthere." in (tmp_path / "a.srt").read_text()
