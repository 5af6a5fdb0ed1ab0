"""Formats, whole frames, and speed."""

import gc
import io
import os
import threading
from contextlib import closing

import numpy as np
import pytest
import soundfile

from higgs_native.audio.samples import pcm_samples
from higgs_native.errors import ParameterError
from higgs_native.server.speech.encoder import MEDIA_TYPES, AudioEncoder, wav_header
from tests.helpers.waiting import until
from tests.server.conftest import correlation, decoded


RATE = 24_000
LOSSLESS = ("flac", "wav", "pcm")
LOSSY = ("mp3", "opus", "aac")


@pytest.fixture(scope="module")
def samples(streamed):
    return streamed(seed=1)


def encoded(format: str, samples: np.ndarray, piece: int = 4800, speed: float = 1.0) -> list[bytes]:
    encoder = AudioEncoder(format, RATE, speed)
    pieces = [encoder.encode(samples[begin : begin + piece]) for begin in range(0, len(samples), piece)]
    return [*pieces, encoder.finish()]


@pytest.mark.parametrize("piece", [1, 577, 4800, 10**6])
@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_keep_every_sample(format, piece, samples):
    samples = samples[: 50 * piece]
    data = b"".join(encoded(format, samples, piece))
    if format == "pcm":
        read = np.frombuffer(data, dtype="<i2")
    else:
        read, rate = decoded(data)
        assert rate == RATE
        read = np.round(read * 32768).astype(np.int16)
    np.testing.assert_array_equal(read, samples)


@pytest.mark.parametrize("format", LOSSY)
def test_lossy_formats_sound_the_same(format, samples):
    read, rate = decoded(b"".join(encoded(format, samples)))
    read = read[:: rate // RATE]
    assert correlation(read, samples.astype(np.float32)) > 0.99
    assert len(samples) <= len(read) <= len(samples) + 3 * 1152  # nothing is cut at the end


@pytest.mark.parametrize("format", ["mp3", "aac"])
def test_each_piece_holds_whole_frames(format, samples):
    """A client that gets a piece can play all of it: no frame goes on in the next one."""
    headers = {"mp3": (0xFF, 0xE0), "aac": (0xFF, 0xF0)}[format]
    pieces = [piece for piece in encoded(format, samples) if piece]
    assert len(pieces) > 3
    for piece in pieces:
        assert piece[0] == headers[0]
        assert piece[1] & headers[1] == headers[1]
    # Named, since a piece may be too short to tell its format from.
    whole, *parts = (len(decoded(data, format)[0]) for data in (b"".join(pieces), *pieces))
    assert sum(parts) > 0.9 * whole


def test_each_piece_of_opus_holds_whole_pages(samples):
    for piece in filter(None, encoded("opus", samples)):
        assert piece.startswith(b"OggS")


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_audio_comes_early(format, samples):
    """A fifth of a second is the first chunk of a stream: some of it is encoded at once."""
    first = AudioEncoder(format, RATE).encode(samples[:4800])
    assert len(first) > len(wav_header(RATE))


def test_a_streamed_wav_has_no_length():
    header = wav_header(RATE)
    assert len(header) == 44
    assert header[4:8] == header[40:44] == b"\xff\xff\xff\xff"
    assert wav_header(RATE, 1000)[40:44] == (1000).to_bytes(4, "little")


def test_a_wav_with_a_length_is_read_by_others(samples):
    data = wav_header(RATE, 2 * len(samples)) + samples.tobytes()
    read, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == RATE
    np.testing.assert_array_equal(read, samples)


@pytest.mark.parametrize("speed", [0.25, 0.4, 0.8, 1.25, 2, 4])
def test_speed_changes_the_length_and_keeps_the_pitch(speed):
    time = np.arange(3 * RATE) / RATE
    tone = pcm_samples((0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32))
    read = np.frombuffer(b"".join(encoded("pcm", tone, speed=speed)), dtype="<i2")
    assert len(read) / len(tone) == pytest.approx(1 / speed, rel=0.05)
    spectrum = np.abs(np.fft.rfft(read * np.hanning(len(read))))
    assert spectrum.argmax() * RATE / len(read) == pytest.approx(440, rel=0.01)


def test_the_speed_of_1_changes_no_sample(samples):
    assert b"".join(encoded("pcm", samples, speed=1.0)) == samples.tobytes()


@pytest.mark.parametrize("format", [*LOSSY, "wav", "pcm"])
def test_no_sample_makes_no_audio(format):
    assert AudioEncoder(format, RATE, 2.0).finish() == (wav_header(RATE) if format == "wav" else b"")


def test_samples_are_rounded_and_clipped():
    samples = pcm_samples(np.array([0, 1, -1, 2, -2, 1 / 32767, 0.5 / 32767 + 1e-9], dtype=np.float32))
    assert samples.tolist() == [0, 32767, -32767, 32767, -32767, 1, 1]


@pytest.mark.parametrize(
    ("format", "speed", "message"),
    [("ogg", 1, "response_format must be one of"), ("mp3", 0.2, "speed must be"), ("mp3", float("nan"), "speed must")],
)
def test_wrong_settings_are_refused(format, speed, message):
    with pytest.raises(ParameterError, match=message):
        AudioEncoder(format, RATE, speed)


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_an_encoder_that_is_closed_leaves_no_thread(format, samples):
    """A client that leaves abandons its encoder, whose threads must not wait for garbage collection."""
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/task"))
        for _ in range(10):
            with closing(AudioEncoder(format, RATE)) as encoder:
                encoder.encode(samples[:4800])
            del encoder
        # For a moment, the kernel lists a thread that was joined.
        until(lambda: len(os.listdir("/proc/self/task")) <= before)
    finally:
        gc.enable()


def test_an_encoder_may_be_closed_while_it_encodes(samples):
    """Freeing the codec under a thread that encodes would end the process."""
    many = np.tile(samples, 20)
    for format in ("mp3", "flac", "opus", "aac"):
        for _ in range(3):
            encoder = AudioEncoder(format, RATE)
            thread = threading.Thread(target=encoder.encode, args=(many,))
            thread.start()
            encoder.close()
            thread.join()
            assert encoder.encode(samples) == b""
