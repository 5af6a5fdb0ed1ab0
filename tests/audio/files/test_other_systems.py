"""Audio files without what macOS lacks (files in memory) and Windows (reads at a position, shared descriptors)."""

from types import SimpleNamespace

import numpy as np
import pytest

from higgs_native.audio.files import libsndfile
from higgs_native.audio.files.decoding import decode_bytes, decode_file
from higgs_native.audio.files.libsndfile import read_at, write_at
from higgs_native.audio.files.writing import encode_audio, writing_audio


SAMPLES = np.sin(np.arange(200_000, dtype=np.float32) / 20) / 2


@pytest.fixture
def on(monkeypatch):
    """Lets the module take this system for another one. Packages that are imported meanwhile know the truth."""
    return lambda platform: monkeypatch.setattr(libsndfile, "sys", SimpleNamespace(platform=platform))


@pytest.mark.parametrize("platform", ["darwin", "win32"])
@pytest.mark.parametrize("format", ["wav", "flac", "mp3"])
def test_files_are_the_same(platform, format, on, tmp_path):
    expected = encode_audio(SAMPLES, 24000, format)
    decoded, rate = decode_bytes(expected, 0.0, None, "x")
    on(platform)
    assert encode_audio(SAMPLES, 24000, format) == expected
    path = tmp_path / f"x.{format}"
    with writing_audio(path, 24000) as writer:
        for block in np.split(SAMPLES, 4):
            writer.write(block)
    assert path.read_bytes() == expected
    for samples, found_rate in (decode_bytes(expected, 0.0, None, "x"), decode_file(path, 0.0, None, "x")):
        assert found_rate == rate
        np.testing.assert_array_equal(samples, decoded)


def test_reads_and_writes_at_a_position_leave_the_position(on, tmp_path):
    on("win32")
    with open(tmp_path / "x", "w+b", buffering=0) as file:
        file.write(b"abcdef")
        file.seek(1)
        assert write_at(file.fileno(), b"XY", 3) == 2
        assert read_at(file.fileno(), 4, 2) == b"cXYf"
        assert file.tell() == 1
