"""Audio in the forms that people have it in, and what is refused."""

import base64
import gzip
import io
import os
import tempfile
import threading
from collections import UserDict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from higgs_native.audio.files import decoding
from higgs_native.audio.files import reading as audio_io
from higgs_native.audio.files.reading import read_audio
from higgs_native.errors import MAX_MESSAGE, AudioError


RATE = 8000
SAMPLES = (np.arange(2 * RATE) % 1000 / 1024 - 0.5).astype(np.float32)
STEREO = np.stack([SAMPLES, SAMPLES])


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, STEREO.T, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


CONTENTS = wav()
ENCODED = base64.b64encode(CONTENTS)


def at_its_end() -> io.BytesIO:
    file = io.BytesIO(CONTENTS)
    file.read()
    return file


def compressed() -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(CONTENTS)))


def temporary() -> tempfile.SpooledTemporaryFile:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115 (the test reads it)
    file.write(CONTENTS)
    return file


def piped() -> io.FileIO:
    """A pipe gives less than it is asked for, and can't seek."""
    reader, writer = os.pipe()

    def write() -> None:
        with open(writer, "wb") as file:
            file.write(CONTENTS)

    threading.Thread(target=write).start()
    return open(reader, "rb", buffering=0)


class OnlyRead:
    def __init__(self) -> None:
        self.read = io.BytesIO(CONTENTS).read


@pytest.mark.parametrize(
    "make",
    [
        lambda: CONTENTS,
        lambda: bytearray(CONTENTS),
        lambda: memoryview(CONTENTS),
        lambda: ENCODED,
        lambda: base64.encodebytes(CONTENTS),  # in lines
        lambda: ENCODED.decode(),
        lambda: base64.encodebytes(CONTENTS).decode(),
        lambda: f"data:audio/wav;base64,{ENCODED.decode()}",
        lambda: f"DATA:;codecs=1;BASE64,{ENCODED.decode()}",
        lambda: io.BytesIO(CONTENTS),
        at_its_end,
        compressed,
        temporary,
        piped,
        OnlyRead,
        lambda: (STEREO, RATE),
        lambda: [torch.from_numpy(STEREO), np.float32(RATE)],
        lambda: {"waveform": torch.from_numpy(STEREO)[None], "sample_rate": RATE},
        lambda: UserDict({"waveform": STEREO[None], "sample_rate": RATE, "path": "a.wav"}),
        lambda: {"path": "a.wav", "array": SAMPLES.astype(">f8"), "sampling_rate": RATE},
    ],
)
def test_a_recording_in_many_forms(make):
    samples, rate = read_audio(make())
    assert rate == RATE
    np.testing.assert_array_equal(samples, SAMPLES)
    np.testing.assert_array_equal(read_audio(make(), None, 0.5, 1.0)[0], SAMPLES[RATE // 2 : RATE * 3 // 2])


def test_a_recording_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ("ab" * 50) / "data" / "a.wav"  # begins like base64
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENTS)
    with path.open("rb") as file:
        for audio in (path, str(path), os.fsencode(path).decode(), f"~/{path.relative_to(tmp_path)}", file, file):
            np.testing.assert_array_equal(read_audio(audio)[0], SAMPLES)


def test_a_file_called_like_base64(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "A" * 100
    (tmp_path / name).write_bytes(CONTENTS)
    np.testing.assert_array_equal(read_audio(name)[0], SAMPLES)


def test_samples_with_a_separate_rate():
    for audio in (STEREO, torch.from_numpy(STEREO)):
        assert read_audio(audio, float(RATE))[1] == RATE
        with pytest.raises(AudioError, match="audio given as samples needs its sampling_rate, in Hz"):
            read_audio(audio)


def write_only() -> io.BufferedWriter:
    return open(os.devnull, "wb")


def closed() -> io.BytesIO:
    file = io.BytesIO(CONTENTS)
    file.close()
    return file


class NotReady:
    def read(self, size: int) -> None:
        return None


@pytest.mark.parametrize(
    ("audio", "error"),
    [
        (None, r"audio must be a file's path, .*, got NoneType"),
        (5, "got int"),
        ([], "got list"),
        ((SAMPLES, RATE, 0), "got tuple"),
        ({"waveform": SAMPLES}, "got dict"),
        (RATE.__add__, "got method-wrapper"),
        ((RATE, SAMPLES), "samples must be an array or a tensor, got int"),
        (["a.wav", RATE], "samples must be an array or a tensor, got str"),
        ((SAMPLES, SAMPLES), "sampling_rate must be an integer from 1000 to 768000 Hz, got ndarray"),
        ({"waveform": torch.zeros(2, 1, RATE), "sample_rate": RATE}, r"got \[2, 1, 8000\]"),
        (b"", "the audio file can't be read as audio: "),
        (b"no sound at all", "the audio file can't be read as audio: "),
        (np.zeros(8000, np.uint8).data, "the audio file can't be read as audio: "),
        (b"A" * 101, "audio must be base64, got other characters or a wrong length"),
        ("data:audio/wav,RIFF", "a data: URL must be in base64 .*, got another encoding"),
        ("data:audio/wav;base64,RIF", "a data: URL must be base64, got other characters or a wrong length"),
        ("data:audio/wav;base64,", "the audio file can't be read as audio: "),
        ("data:", "a data: URL must be in base64 .*, got another encoding"),
        ("missing.wav", r"audio must be an existing file \(wav, flac, ogg, mp3\), got missing\.wav"),
        ("https://example.org/a.wav", r"audio must be an existing file .*, got https://example\.org/a\.wav"),
        ("", "audio must be an existing file .*, got "),
        ("a\0\x1b[31m.wav", r"audio must be an existing file .*, got a\\x00\\x1b\[31m\.wav"),
        ("\udcff" * 100, "audio must be an existing file .*, got "),
        (ENCODED.decode()[1:], rf"audio must be .*, got a text of {len(ENCODED) - 1} characters"),
        (ENCODED.decode() + "!", rf"audio must be .*, got a text of {len(ENCODED) + 1} characters"),
        (io.StringIO("a"), "an audio file must be opened for reading bytes, got str from it"),
        (NotReady(), "an audio file must be opened for reading bytes, got NoneType from it"),
        (io.BytesIO(), "the audio file can't be read as audio: "),
        (closed(), "the audio file can't be read: I/O operation on closed file"),
        (write_only(), "the audio file can't be read: "),
        (soundfile.SoundFile(io.BytesIO(CONTENTS)), "an audio file must be opened for reading bytes, got ndarray"),
    ],
)
def test_what_is_no_recording(audio, error):
    with pytest.raises(AudioError, match=error) as raised:
        read_audio(audio)
    message = str(raised.value)
    assert len(message) <= MAX_MESSAGE
    assert message.isprintable()
    assert ENCODED.decode()[100:120] not in message


@pytest.mark.parametrize("audio", [CONTENTS, (SAMPLES, RATE), {"waveform": SAMPLES, "sample_rate": RATE}])
def test_a_part_is_a_number_of_seconds(audio):
    with pytest.raises(AudioError, match="offset must be a number of seconds, at least 0, got '1'"):
        read_audio(audio, None, "1")


def test_a_file_that_never_ends(monkeypatch):
    for module in (audio_io, decoding):
        monkeypatch.setattr(module, "MAX_MEMORY_BYTES", 8 << 20)
    with (
        Path("/dev/zero").open("rb") as file,
        pytest.raises(AudioError, match="the audio file must hold at most 8388608 bytes, got more"),
    ):
        read_audio(file)
