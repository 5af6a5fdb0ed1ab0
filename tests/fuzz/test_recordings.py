"""Recordings in every form: damaged files, samples of all dtypes and shapes, and objects that are neither."""

import base64
import functools
import io
import os
import random
from pathlib import Path

import numpy as np
import soundfile
import torch

from higgs_native.audio.files.reading import read_audio
from higgs_native.audio.samples import MAX_SAMPLING_RATE, MAX_SECONDS, MIN_SAMPLING_RATE, MIN_SECONDS
from higgs_native.errors import AudioError
from higgs_native.prompt.messages import AudioContent
from higgs_native.prompt.recordings import Recording, read_recording
from higgs_native.prompt.voices import Voice, read_voice
from tests.fuzz import mutations
from tests.fuzz.frame import run_cases


FORMATS = (
    *(("WAV", subtype) for subtype in ("PCM_16", "PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM")),
    *(("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16")),
    *(
        ("AU", "FLOAT"),
        ("CAF", "ALAC_16"),
        ("W64", "PCM_16"),
        ("RF64", "PCM_16"),
        ("WAVEX", "PCM_16"),
        ("SVX", "PCM_16"),
    ),
)
OTHER_FILES = sorted((Path(__file__).parents[1] / "audio" / "files" / "recordings").iterdir())
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".raw", ".txt", "", ".m3u8")
NUMPY_DTYPES = (
    *("f2", "f4", "f8", ">f4", ">f8", "g", "i1", "i2", "i4", "i8", ">i2", ">i4", "u1", "u2", "u4", "u8", ">u2"),
    *("?", "c8", "O", "U3", "M8[s]", "V4", [("left", "f4"), ("right", "f4")]),
)
TORCH_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64),
)
EXTREMES = (0.0, 1.0, -1.0, 1e-40, 3e38, -3e38, 1e300, np.inf, -np.inf, np.nan, 2.0**31, 32767.0)
SHAPES = (
    *((2400,), (2400, 2), (2, 2400), (1, 2, 2400), (1, 2400, 8), (2, 1, 2400), (1, 1, 1, 2400), (9, 2400), (1, 1)),
    *((), (0,), (2400, 0), (0, 2400), (1,), (3, 3), (1, 0, 5), (50_000,), (130_000, 2)),
)
RATES = (8000, 24000, 48000, 1000, 768_000, 999, 768_001, 0, -1, 2**70, 10**5000, 24000.0, 24000.5, 1e300)
ODD_NUMBERS = (
    *(None, True, "24000", b"24000", np.float32(24000), np.int8(5), np.array(24000), np.zeros(3), float("nan")),
    *(float("inf"), torch.tensor(24000), torch.tensor(0.5), torch.empty((), device="meta"), 1 + 2j, [], {}, object()),
)


class Broken:
    """A file whose reads do what a generator chooses."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator

    def read(self, size: int = -1) -> object:
        answer = self._generator.choice(
            (b"", b"RIFF", bytes(1000), "text", None, 5, OSError("gone"), ValueError("\x1b"))
        )
        if isinstance(answer, Exception):
            raise answer
        return answer


@functools.cache
def encoded(number: int) -> bytes:
    """Return an audio file of the format of this number, the lengths of some left open."""
    if number >= len(FORMATS):
        return OTHER_FILES[number - len(FORMATS)].read_bytes()
    format_name, subtype = FORMATS[number]
    samples = np.random.default_rng(number).uniform(-0.9, 0.9, (6000, 1 if format_name == "SVX" else 2))
    file = io.BytesIO()
    soundfile.write(file, samples, 24000, format=format_name, subtype=subtype)
    return file.getvalue()


def file_contents(generator: random.Random) -> bytes:
    if generator.random() < 0.05:
        return generator.randbytes(generator.randrange(5000))
    return mutations.mutated(encoded(generator.randrange(len(FORMATS) + len(OTHER_FILES))), generator)


def file_in_some_form(generator: random.Random, folder: Path) -> object:
    contents = file_contents(generator)
    match generator.randrange(8):
        case 0:
            return contents
        case 1:
            return bytearray(contents)
        case 2:
            return io.BytesIO(contents)
        case 3:
            return mutations.mutated(base64.b64encode(contents), generator).decode("latin-1")
        case 4:
            return "data:audio/wav;base64," + base64.b64encode(contents).decode()
        case 5:
            return AudioContent(raw_audio=base64.b64encode(contents), offset=number(generator))
        case _:
            path = folder / f"recording{generator.choice(SUFFIXES)}"
            path.write_bytes(contents)
            return generator.choice((path, str(path), AudioContent(str(path), duration=number(generator))))


def samples_in_some_form(generator: random.Random, folder: Path) -> object:
    shape = generator.choice(SHAPES)
    values = np.random.default_rng(generator.randrange(2**32)).uniform(-1.5, 1.5, shape)
    if values.size and generator.random() < 0.5:
        values.flat[generator.randrange(values.size)] = generator.choice(EXTREMES)
    with np.errstate(all="ignore"):
        if generator.random() < 0.5:
            dtype = np.dtype(generator.choice(NUMPY_DTYPES))
            scale = 2 ** (8 * dtype.itemsize - 2) if dtype.kind in "iu" else 1
            samples = np.asarray(values * scale).astype(dtype) if dtype.kind in "fiucbO" else np.zeros(shape, dtype)
            samples = generator.choice(
                (samples, samples[::-1] if samples.ndim else samples, np.asfortranarray(samples))
            )
        else:
            samples = torch.from_numpy(values).to(generator.choice(TORCH_DTYPES))
            if generator.random() < 0.1:
                samples = generator.choice((samples.to("meta"), samples.T if samples.ndim == 2 else samples))
    rate = generator.choice((*RATES, *ODD_NUMBERS)) if generator.random() < 0.5 else 24000
    return generator.choice(
        (
            (samples, rate),
            [samples, rate],
            {"waveform": samples, "sample_rate": rate},
            {"array": samples, "sampling_rate": rate, "path": None},
            (rate, samples),
            samples,
            AudioContent(raw_audio=(samples, 24000), offset=number(generator), duration=number(generator)),
        )
    )


def odd_object(generator: random.Random, folder: Path) -> object:
    path = folder / "odd.wav"
    match generator.randrange(9):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(
                generator.choice(("/dev/zero", "/dev/null", "odd.wav", "/proc/self/mem", "/proc/self/maps"))
            )
        case 2:
            path.mkdir()
        case 3:
            with path.open("wb") as file:
                file.write(encoded(generator.randrange(len(FORMATS)))[:100])
                file.truncate(generator.choice((10**6, 2**32, 2**40)))
        case 4:
            return mutations.text(generator)
        case 5:
            return mutations.value(generator)
        case 6:
            return Broken(generator)
        case 7:
            return generator.choice((*ODD_NUMBERS, io.StringIO("a"), Recording, read_audio, Voice(profile="old")))
        case _:
            return AudioContent(mutations.value(generator), mutations.value(generator), number(generator))
    return generator.choice((path, str(path), AudioContent(str(path))))


def number(generator: random.Random) -> object:
    """Draw an offset or a duration."""
    numbers = (0, 0.01, 0.1, 0.2, 100, 200, 1e9, 1e300, -1, 10**5000, np.float32(0.1))
    return generator.choice((*numbers, *ODD_NUMBERS)) if generator.random() < 0.2 else None


def read(audio: object, generator: random.Random) -> Recording:
    """Read a recording through one of the interfaces."""
    if isinstance(audio, AudioContent):
        return read_recording(audio)
    match generator.randrange(4):
        case 0:
            return Recording.read(audio, 0 if (offset := number(generator)) is None else offset, number(generator))
        case 1:
            if audio is None:
                raise AudioError("a voice would need a recording")
            return read_voice(Voice(audio, "Its words.")).reference_audio
        case 2:
            return read_recording(AudioContent(raw_audio=audio))
        case _:
            return Recording(*read_audio(audio, generator.choice((None, 24000))))


def case(generator: random.Random, folder: Path) -> None:
    make = generator.choices((file_in_some_form, samples_in_some_form, odd_object), (6, 3, 1))[0]
    recording = read(make(generator, folder), generator)
    samples, rate = recording.samples, recording.sampling_rate
    assert (samples.dtype, samples.ndim, samples.flags.writeable) == (np.float32, 1, False)
    assert np.isfinite(samples).all()
    assert type(rate) is int
    assert MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE
    assert MIN_SECONDS <= len(samples) / rate <= MAX_SECONDS
    with np.errstate(all="raise"):
        advice = recording.advice(generator.choice((None, "Some words.")))
    assert all(line.isprintable() and "nan" not in line and "inf" not in line for line in advice)


def test_recordings(tmp_path, record_property):
    run_cases("recordings", 0.15, case, tmp_path, record_property)
