"""Audio files: their samples, whole or what a pipe left, and what is refused."""

import io
import itertools
import os

import numpy as np
import pytest
import soundfile

from higgs_native.audio import samples
from higgs_native.audio.files import decoding
from higgs_native.audio.files.decoding import decode_bytes, decode_file
from higgs_native.errors import AudioError
from tests.helpers.descriptors import no_descriptor_stays


RATE = 8000
LEFT = np.arange(2 * RATE) % 1000 / 2048
STEREO = np.stack([LEFT, 0 * LEFT], axis=1)


def encoded(format_name: str, subtype: str, samples: np.ndarray = STEREO, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format_name, subtype=subtype)
    return file.getvalue()


def wav(file_size: int | None, data_size: int | None, subtype: str = "FLOAT", chunk: bytes = b"") -> bytes:
    """A WAV file whose header states these sizes, None for the right ones, with a chunk before the samples."""
    contents = encoded("WAV", subtype)
    at = contents.index(b"data")
    contents = contents[:at] + chunk + contents[at:]
    at += len(chunk)
    file_size = len(contents) - 8 if file_size is None else file_size
    data_size = len(contents) - at - 8 if data_size is None else data_size
    sizes = [size.to_bytes(4, "little") for size in (file_size, data_size)]
    return contents[:4] + sizes[0] + contents[8 : at + 4] + sizes[1] + contents[at + 8 :]


def piped_flac() -> bytes:
    """A FLAC file whose header leaves the length and the digest open, as an encoder that writes to a pipe does."""
    contents = bytearray(encoded("FLAC", "PCM_24"))
    contents[21] &= 0xF0  # the upper 4 of 36 bits
    contents[22:42] = bytes(20)
    return bytes(contents)


@pytest.fixture(params=["path", "bytes"])
def decode(request, tmp_path):
    """Decodes the contents of a file, in memory or in a folder."""

    def decode_contents(contents: bytes, offset: float = 0, duration: float | None = None):
        if request.param == "bytes":
            return decode_bytes(contents, offset, duration, "it")
        (tmp_path / "audio").write_bytes(contents)
        return decode_file(tmp_path / "audio", offset, duration, "it")

    return decode_contents


@pytest.mark.parametrize(
    ("format_name", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_U8"),
        ("WAVEX", "FLOAT"),
        ("FLAC", "PCM_24"),
        ("AIFF", "PCM_16"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_channels_are_averaged(decode, format_name, subtype):
    contents = encoded(format_name, subtype)
    expected, _ = soundfile.read(io.BytesIO(contents), dtype="float32")
    samples, rate = decode(contents)
    assert rate == RATE
    np.testing.assert_array_equal(samples, expected.mean(axis=1))


OPEN_WAVS = [
    wav(*sizes, subtype)
    for sizes in itertools.product((0, 8, 36, 0x7FFFFFFF, 0xFFFFFFFF), (0, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFF))
    for subtype in ("FLOAT", "PCM_16")
]
OPEN_WAVS.append(wav(0, 0, chunk=b"LIST\x05\x00\x00\x00INFO\x01\x00"))


@pytest.mark.parametrize("contents", [*OPEN_WAVS, piped_flac()], ids=range(len(OPEN_WAVS) + 1))
def test_what_a_pipe_left_is_read_to_the_end(decode, contents):
    expected = (LEFT / 2).astype(np.float32)
    samples, rate = decode(contents)
    assert rate == RATE
    np.testing.assert_allclose(samples, expected, atol=2**-15, rtol=0)
    samples, _ = decode(contents, 0.25, 0.5)
    np.testing.assert_allclose(samples, expected[RATE // 4 : RATE * 3 // 4], atol=2**-15, rtol=0)
    samples, _ = decode(contents, 1.5, 200)
    assert len(samples) == RATE // 2
    for offset in (2, 3, 1e6):
        with pytest.raises(AudioError, match="offset must be less than 2 s, the length of it, got "):
            decode(contents, offset)


def test_an_empty_wav_file_stays_empty(decode):
    contents = encoded("WAV", "PCM_16", STEREO[:0])
    contents += b"LIST" + (40000).to_bytes(4, "little") + bytes(40000)  # no samples
    contents = contents[:4] + (len(contents) - 8).to_bytes(4, "little") + contents[8:]
    with pytest.raises(AudioError, match=r"it must last at least 0\.1 s, got 0 s"):
        decode(contents)


def test_a_longer_file_than_can_be_used_is_not_read_to_its_end(decode, monkeypatch):
    for module in (decoding, samples):
        monkeypatch.setattr(module, "MAX_SECONDS", 1.5)
    for contents, got in ((piped_flac(), "more"), (wav(0, 0), "2 s"), (encoded("FLAC", "PCM_16"), "2 s")):
        with pytest.raises(AudioError, match=f"it must last at most 1.5 s, got {got}$"):
            decode(contents)
        assert len(decode(contents, 0.5)[0]) == 1.5 * RATE


def test_a_cut_file_gives_what_it_holds(decode):
    contents = encoded("WAV", "FLOAT")
    samples, _ = decode(contents[: len(contents) // 2])
    assert len(samples) == pytest.approx(RATE, abs=20)


def test_an_mp3_stream_may_begin_within_a_frame(tmp_path):
    contents = encoded("MP3", "MPEG_LAYER_III")
    for name in (b"cut.MP3", b"c\xfct.mp3"):
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(bytes(50) + contents)
        decoded, _ = decode_file(path, 0, None, "it")
        np.testing.assert_array_equal(decoded, decode_bytes(contents, 0, None, "it")[0])


@pytest.mark.parametrize(
    ("contents", "error"),
    [
        (b"", "it can't be read as audio: "),
        (b"RIFF", "it can't be read as audio: "),
        (b"RIFF\0\0\0\0WAVE", "it can't be read as audio: "),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "it can't be read as audio: "),
        (b"RIFF\0\0\0\0WAVE" + b"LIST\0\0\0\0" * 1000, "it can't be read as audio: "),
        (b"no sound at all", "it can't be read as audio: Format not recognised"),
        (encoded("WAV", "PCM_16", np.zeros((RATE, 9))), "it must have at most 8 channels, got 9"),
        (encoded("WAV", "PCM_16", rate=900), "sampling_rate must be an integer from 1000 to 768000 Hz, got 900"),
        (encoded("WAV", "PCM_16", STEREO[:700]), r"it must last at least 0\.1 s, got 0\.0875 s"),
        (encoded("WAV", "FLOAT", np.full(RATE, np.inf)), "audio must be finite, got NaN or infinity"),
        (encoded("FLAC", "PCM_16", np.zeros(121 * RATE)), "it must last at most 120 s, got 121 s"),
    ],
)  # fmt: skip
def test_what_is_no_audio_file(decode, contents, error):
    with pytest.raises(AudioError, match=error):
        decode(contents)


def test_damaged_samples_are_refused(decode):
    contents = bytearray(encoded("FLAC", "PCM_16", np.random.default_rng(0).uniform(-1, 1, (RATE, 2))))
    contents[100:-100] = bytes(len(contents) - 200)
    with pytest.raises(AudioError, match=r"it (can't be read as audio|must last at least)"):
        decode(bytes(contents))


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, "audio must be an existing file .*, got it"),
        (lambda path: path.mkdir(), "audio must be an existing file .*, got it"),
        (os.mkfifo, "audio must be an existing file .*, got it"),
        (lambda path: path.symlink_to("/dev/zero"), "audio must be an existing file .*, got it"),
        (lambda path: path.symlink_to(path), "audio must be an existing file .*, got it"),
        (lambda path: path.symlink_to("/proc/self/mem"), "it can't be read as audio: Input/output error"),
        (make_sparse, "it must hold at most 134217728 bytes, got 1099511627776$"),
    ],
    ids=["missing", "folder", "pipe", "device", "loop", "memory", "sparse"],
)
def test_what_is_no_regular_file(make, error, tmp_path):
    make(tmp_path / "a.wav")
    with pytest.raises(AudioError, match=error):
        decode_file(tmp_path / "a.wav", 0, None, "it")


@pytest.mark.parametrize("path", ["a\0b", "~a\0b", "\udcff\ud800", "a/" * 5000, ""])
def test_what_is_no_path(path):
    with pytest.raises(AudioError, match=r"audio must be an existing file .*, got it"):
        decode_file(path, 0, None, "it")


def test_a_damaged_file_is_not_searched_for_long(tmp_path):
    (tmp_path / "book.wav").write_bytes(encoded("WAV", "PCM_16"))
    os.truncate(tmp_path / "book.wav", 1 << 30)
    assert len(decode_file(tmp_path / "book.wav", 0.5, 1, "it")[0]) == RATE
    (tmp_path / "book.ogg").write_bytes(encoded("OGG", "VORBIS")[:100])
    os.truncate(tmp_path / "book.ogg", 1 << 30)
    with pytest.raises(AudioError, match="it must hold at most 134217728 bytes, got 1073741824"):
        decode_file(tmp_path / "book.ogg", 0, None, "it")


def test_memory_and_descriptors_are_bounded(monkeypatch, tmp_path):
    monkeypatch.setattr(decoding, "MAX_MEMORY_BYTES", 1 << 20)
    with pytest.raises(AudioError, match="it must hold at most 1048576 bytes, got more"):
        decode_bytes(bytes((1 << 20) + 1), 0, None, "it")
    monkeypatch.setattr(decoding, "_COPY_BYTES", 1 << 16)
    (tmp_path / "open.wav").write_bytes(wav(0, 0) + bytes(4 << 20))
    with no_descriptor_stays():
        samples, _ = decode_file(tmp_path / "open.wav", 0, None, "it")
    assert len(samples) == pytest.approx((1 << 20) / 8, abs=100)
