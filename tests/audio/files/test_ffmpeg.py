"""Formats that libsndfile lacks: a recorded tone in each, and what FFmpeg is kept from."""

import importlib.util
import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from higgs_native.audio.files import ffmpeg
from higgs_native.audio.files.decoding import decode_bytes, decode_file
from higgs_native.errors import AudioError
from tests.helpers.descriptors import no_descriptor_stays
from tests.helpers.waiting import PATIENCE


# 440 Hz at half of full scale in the left of two channels, for half a second.
RECORDINGS = Path(__file__).with_name("recordings")
DECODERS = [
    pytest.param("pyav", marks=pytest.mark.skipif(not importlib.util.find_spec("av"), reason="needs PyAV")),
    pytest.param("program", marks=pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs ffmpeg")),
]


@pytest.fixture(params=DECODERS)
def decoder(request, monkeypatch):
    if request.param == "program":
        monkeypatch.setattr(ffmpeg, "_pyav", lambda: None)
    return request.param


@pytest.mark.parametrize(("name", "rate"), [("tone.m4a", 8000), ("tone.webm", 48000), ("tone.wma", 8000)])
def test_a_tone(decoder, name, rate):
    path = RECORDINGS / name
    samples, found_rate = decode_file(path, 0, None, name)
    assert (found_rate, samples.dtype) == (rate, np.float32)
    assert len(samples) == pytest.approx(rate / 2, rel=0.15)  # in whole blocks
    middle, _ = decode_file(path, 0.125, 0.25, name)
    assert len(middle) == pytest.approx(rate / 4, abs=rate / 100)  # ffmpeg rounds the begin to its unit of time
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * rate / len(middle) == pytest.approx(440, abs=5)
    assert middle.std() == pytest.approx(0.25 * np.sqrt(0.5), rel=0.1)  # the mean of both channels
    np.testing.assert_array_equal(decode_bytes(path.read_bytes(), 0, None, name)[0], samples)


def test_a_part_beyond_the_end(decoder):
    path = RECORDINGS / "tone.m4a"
    for offset in (5, 1e300):
        with pytest.raises(AudioError, match=r"offset must be less than the length of a\.m4a, got "):
            decode_file(path, offset, None, "a.m4a")
    for offset, duration in ((-1, None), (0, "1")):
        with pytest.raises(AudioError, match="must be a number of seconds, at least 0, got "):
            decode_file(path, offset, duration, "a.m4a")


def test_longer_audio_than_can_be_used_is_not_decoded_to_its_end(decoder, monkeypatch):
    for module in ("files.decoding", "files.ffmpeg", "samples"):
        monkeypatch.setattr(f"higgs_native.audio.{module}.MAX_SECONDS", 0.25)
    with pytest.raises(AudioError, match=r"a\.webm must last at most 0\.25 s, got more"):
        decode_file(RECORDINGS / "tone.webm", 0, None, "a.webm")
    assert len(decode_file(RECORDINGS / "tone.webm", 0.25, 0.125, "a.webm")[0]) == 6000


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{path}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{path}</BaseURL></MPD>',
    ],
    ids=["hls", "concat", "sdp", "dash"],
)
def test_a_playlist_opens_nothing(decoder, playlist, tmp_path):
    shutil.copy(RECORDINGS / "tone.m4a", tmp_path / "other.m4a")
    (tmp_path / "a.m4a").write_text(playlist.format(path=tmp_path / "other.m4a"))
    with pytest.raises(AudioError, match=r"a\.m4a can't be read as audio: .*; FFmpeg finds no audio in it either"):
        decode_file(tmp_path / "a.m4a", 0, None, "a.m4a")


def test_a_damaged_file(decoder, tmp_path):
    contents = (RECORDINGS / "tone.m4a").read_bytes()
    for damaged in (contents[:100], contents[: len(contents) // 2], bytes(64) + contents):
        (tmp_path / "a.m4a").write_bytes(damaged)
        with pytest.raises(AudioError, match=r"a\.m4a (can't be read as audio: |must last at least)"):
            decode_file(tmp_path / "a.m4a", 0, None, "a.m4a")


def test_the_error_names_both_where_neither_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # import raises ImportError
    monkeypatch.setenv("PATH", "")
    message = (
        r"a\.m4a can't be read as audio: Format not recognised\.; formats other than wav, flac, ogg and mp3 need PyAV "
        r"\(pip install av\) or ffmpeg, and neither is installed"
    )
    with pytest.raises(AudioError, match=message):
        decode_file(RECORDINGS / "tone.m4a", 0, None, "a.m4a")


def install_program(folder: Path, monkeypatch, program: str) -> None:
    (folder / "ffmpeg").write_text(f"#!{sys.executable}\n{program}")
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setattr(ffmpeg, "_pyav", lambda: None)
    monkeypatch.setenv("PATH", str(folder))


def test_the_program_gets_a_descriptor_and_its_limits(tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    program = f"""
import os, pathlib, sys, wave
path = sys.argv[sys.argv.index("-i") + 1].removeprefix("file:")
pathlib.Path({str(seen)!r}).write_bytes(os.readlink(path).encode() + b"\\0" + "\\0".join(sys.argv[1:]).encode())
with wave.open(sys.stdout.buffer, "wb") as file:
    file.setparams((1, 2, 8000, 0, "NONE", ""))
    file.writeframes(bytes(16000))
"""
    install_program(tmp_path, monkeypatch, program)
    path = tmp_path / "-i; rm *.m4a"
    shutil.copy(RECORDINGS / "tone.m4a", path)
    samples, rate = decode_file(path, 0.5, 1, "it")
    assert (len(samples), rate) == (8000, 8000)
    opened, *arguments = seen.read_text().split("\0")
    assert opened == str(path)
    assert str(path) not in " ".join(arguments)
    given = dict(itertools.pairwise(arguments))
    assert given["-protocol_whitelist"] == "file"
    assert not {"hls", "concat", "dash", "sdp", "image2", "data"} & set(given["-format_whitelist"].split(","))
    assert (given["-ss"], given["-t"], given["-max_alloc"]) == ("0.500000", "1.000000", str(1 << 30))


LARGE = """
import os, wave
with wave.open(os.fdopen(os.dup(1), "wb"), "wb") as file:
    file.setparams((1, 2, 8000, 0, "NONE", ""))
    file.writeframes(bytes(16000))
os.truncate(1, 1 << 30)
"""


@pytest.mark.parametrize(
    "program", [f"import time; time.sleep({PATIENCE})", "raise SystemExit(1)", "print('no wav')", "", LARGE]
)
def test_a_program_that_gives_no_audio(program, tmp_path, monkeypatch):
    install_program(tmp_path, monkeypatch, program)
    monkeypatch.setattr(ffmpeg, "TIMEOUT", 1)
    message = r"it can't be read as audio: .*; FFmpeg finds no audio in it either"
    with no_descriptor_stays(), pytest.raises(AudioError, match=message):
        decode_file(RECORDINGS / "tone.m4a", 0, None, "it")
