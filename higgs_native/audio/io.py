"""Recordings read from files and arrays: mono float32 samples and their sampling rate."""

import operator
import os
from contextlib import nullcontext
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
import torch

from higgs_native.audio.libsndfile import SoundFile, memory_file
from higgs_native.errors import AudioError


MIN_SECONDS = 0.1
"""The shortest audio that `encode` takes."""


MAX_SECONDS = 120.0
"""The longest audio that `encode` takes: its memory grows with the length, to about 2 GB here."""


MAX_CHANNELS = 8


MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1000, 768_000


_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}


def read_audio(
    file: str | os.PathLike | BinaryIO, offset: float = 0, duration: float | None = None
) -> tuple[np.ndarray, int]:
    """Read an audio file, or a part of it, its channels averaged.

    Args:
        file: a path, or a file opened for reading bytes.
        offset: where to begin, in seconds, at least 0.
        duration: how many seconds to read at most, at least 0; None for all.

    Returns:
        The waveform, [samples], float32, and its sampling rate in Hz.

    Raises:
        AudioError: there is no such file, it is no audio, too long, empty, or not finite, or the part is.
    """
    is_path = isinstance(file, (str, os.PathLike))
    if not is_path and not hasattr(file, "read"):
        raise AudioError(f"audio is a {type(file).__name__}; expected a path, an open file, an array or a tensor")
    name = os.fspath(file) if is_path else "the audio file"
    if is_path and not os.path.isfile(file):
        raise AudioError(f"{name} is no file; expected an audio file (wav, flac, ogg, mp3)")
    try:
        # A file object's bytes are read here: the library would call Python back for them.
        source = nullcontext(os.fspath(file)) if is_path else memory_file(file.read())
        with source as path_or_descriptor, SoundFile(path_or_descriptor, closefd=False) as opened:
            # Before reading: a file of hours would fill the memory.
            rate = checked_rate(opened.samplerate)
            begin, count = cut(opened.frames, rate, offset, duration, name)
            check_duration(count, rate, name)
            opened.seek(begin)
            samples = opened.read(count, dtype="float32", always_2d=True)
    # TypeError: a headerless file (.raw), whose rate soundfile can't know.
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        reason = getattr(error, "error_string", str(error))  # without the file's name
        raise AudioError(f"{name} can't be read as audio: {reason.strip()}") from None
    return mono_samples(samples.mean(axis=1)), rate


def cut(samples: int, rate: int, offset: float, duration: float | None, name: str = "the audio") -> tuple[int, int]:
    """The first sample of a part, and how many it has, of `samples` at `rate` Hz; see `read_audio`.

    Raises:
        AudioError: there are samples, but none in the part.
    """
    begin = round(min(offset * rate, samples))
    count = samples - begin if duration is None else round(min(duration * rate, samples - begin))
    if samples and begin == samples:
        raise AudioError(f"offset is {offset:g} s, but {name} lasts {samples / rate:.4g} s; expected less")
    if samples and not count:
        raise AudioError(
            f"duration is {duration:g} s, which leaves nothing of {name}; expected at least {MIN_SECONDS:g} s"
        )
    return begin, count


def mono_samples(audio: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return samples, as `HiggsAudioTokenizer.encode` takes them, as [samples], float32, full scale 1.

    Raises:
        AudioError: they are empty or not finite, or the type, shape or dtype is wrong.
    """
    if not isinstance(audio, np.ndarray | torch.Tensor):
        raise AudioError(f"the samples are a {type(audio).__name__}; expected an array or a tensor")
    samples = audio.detach().cpu() if isinstance(audio, torch.Tensor) else audio
    if isinstance(samples, torch.Tensor):
        samples = samples.float().numpy() if samples.is_floating_point() else samples.numpy()
    if samples.size == 0:
        raise AudioError("the audio is empty")
    if samples.ndim > 2 or samples.ndim == 0 or (samples.ndim == 2 and min(samples.shape) > MAX_CHANNELS):
        raise AudioError(
            "audio must be [samples], [channels, samples] or [samples, channels] with at most "
            f"{MAX_CHANNELS} channels, got {list(samples.shape)}"
        )
    if samples.dtype in _FULL_SCALE:
        samples = samples / np.float32(_FULL_SCALE[samples.dtype])
    elif not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"audio must be floating, int16 or int32, got {samples.dtype}")
    samples = samples.astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise AudioError("the audio holds samples that are not finite (NaN or infinite)")
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    return np.ascontiguousarray(samples)


def checked_rate(sampling_rate: int) -> int:
    """Return a sampling rate in Hz. Raises AudioError where it is no whole number, or out of range."""
    try:
        rate = operator.index(sampling_rate)
    except TypeError:
        rate = int(sampling_rate) if isinstance(sampling_rate, float) and sampling_rate.is_integer() else 0
    if not MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE:
        raise AudioError(
            f"sampling_rate is {sampling_rate!r}; expected a whole number of Hz from {MIN_SAMPLING_RATE} to "
            f"{MAX_SAMPLING_RATE}"
        )
    return rate


def check_duration(samples: int, rate: int, name: str = "the audio") -> None:
    seconds = samples / rate
    if samples == 0:
        raise AudioError(f"{name} is empty")
    if seconds < MIN_SECONDS:
        raise AudioError(f"{name} lasts {seconds:.3g} s; expected at least {MIN_SECONDS:g} s")
    if seconds > MAX_SECONDS:
        raise AudioError(f"{name} lasts {seconds:.4g} s; expected at most {MAX_SECONDS:g} s")


def resampled(waveform: np.ndarray, rate: int, to_rate: int) -> np.ndarray:
    if rate == to_rate:
        return waveform
    # The length of librosa.resample, which the codec's users have encoded with: rounded up, padded or cut at the end.
    samples = -(-len(waveform) * to_rate // rate)
    resampled = soxr.resample(waveform, rate, to_rate, quality="HQ")[:samples]
    return np.pad(resampled, (0, samples - len(resampled))).astype(np.float32, copy=False)
