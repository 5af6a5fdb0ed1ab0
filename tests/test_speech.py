import resource
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from higgs_native.errors import AudioError, ParameterError
from higgs_native.speech import Speech, check_output_path


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


@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg", ".mp3"])
def test_no_half_file_where_the_disk_is_full(ending, samples, tmp_path):
    """Not even where a single byte is missing, of which libsndfile, closing the file, says nothing."""
    speech_of(samples).save(tmp_path / f"whole{ending}")
    size = (tmp_path / f"whole{ending}").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, size // 2, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(ParameterError, match=rf"out\{ending} can't be written: File too large"):
                speech_of(samples).save(tmp_path / f"out{ending}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [file.name for file in tmp_path.iterdir()] == [f"whole{ending}"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("out.m4a", "does not end in one of .wav, .flac, .ogg, .mp3"),
        ("out", "does not end in one of"),
        ("missing/out.wav", "can't be written: No such file or directory"),
        ("file/out.wav", "can't be written: Not a directory"),
        ("folder.wav", "is a folder"),
        ("x" * 300 + ".wav", "can't be written: File name too long"),
    ],
)
def test_output_paths_that_cannot_be_written(path, message, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(ParameterError, match=message):
        check_output_path(tmp_path / path)


def test_what_is_no_path(samples):
    with pytest.raises(ParameterError, match="path must be a string or a path, got None"):
        speech_of(samples).save(None)
    with pytest.raises(ParameterError, match="must be a path without zero bytes"):
        speech_of(samples).save("a\0.wav")


def test_checking_an_output_path_leaves_nothing_behind(tmp_path):
    (tmp_path / "old.wav").write_bytes(b"old")
    check_output_path(tmp_path / "new.wav")
    check_output_path(tmp_path / "old.wav")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("old.wav", b"old")]


def test_the_duration_is_in_seconds(samples):
    assert speech_of(samples[:12000]).duration == 0.5
