from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from higgs_native.errors import AudioError
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
    [(".wav", "WAV", 1 / 32768), (".FLAC", "FLAC", 1 / 32768), (".ogg", "OGG", 0.05), (".mp3", "MP3", 0.05)],
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
