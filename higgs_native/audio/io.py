"""Reading audio from files and arrays: mono float32 samples and their sampling rate."""

import operator
import os
from contextlib import nullcontext
from typing import BinaryIO

import numpy as np
import soundfile
import torch

from higgs_native.audio.libsndfile import SoundFile, memory_file
from higgs_native.errors import AudioError


MIN_SECONDS = 0.1
"""Length of the shortest audio that the audio tokenizer encodes."""
MAX_SECONDS = 120.0
"""Length of the longest one. Encoding takes memory in proportion to the length, here about 2 GB."""
MAX_CHANNELS = 8
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1000, 768_000

_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}


def read_audio(
    file: str | os.PathLike | BinaryIO, offset: float = 0, duration: float | None = None
) -> tuple[np.ndarray, int]:
    """Read an audio file, or a part of it, and average its channels.

    Args:
        file: a path, or a file opened for reading bytes.
        offset: begin of the part in seconds, at least 0.
        duration: maximum length of the part in seconds, at least 0; None for the rest.

    Returns:
        The samples [samples], float32, full scale 1, and the sampling rate in Hz.

    Raises:
        AudioError: the file does not exist or is no audio, or the part is empty, too short, too long, or not finite.
    """
    is_path = isinstance(file, (str, os.PathLike))
    if not is_path and not hasattr(file, "read"):
        raise AudioError(f"audio must be a path, an open file, an array or a tensor, got {type(file).__name__}")
    name = os.fspath(file) if is_path else "the audio file"
    if is_path and not os.path.isfile(file):
        raise AudioError(f"audio must be an existing file (wav, flac, ogg, mp3), got {name}")
    try:
        # libsndfile would call back into Python for the bytes of a file object, so they are read here.
        source = nullcontext(os.fspath(file)) if is_path else memory_file(file.read())
        with source as path_or_descriptor, SoundFile(path_or_descriptor, closefd=False) as opened:
            # Checked before reading, since hours of audio would fill the memory.
            rate = checked_rate(opened.samplerate)
            begin, count = part_range(opened.frames, rate, offset, duration, name)
            check_duration(count, rate, name)
            opened.seek(begin)
            samples = opened.read(count, dtype="float32", always_2d=True)
    # TypeError: a headerless file (.raw) has no sampling rate.
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        reason = getattr(error, "error_string", str(error))  # without the file's name
        raise AudioError(f"{name} can't be read as audio: {reason.strip()}") from None
    return mono_samples(samples.mean(axis=1)), rate


def part_range(
    num_samples: int, sampling_rate: int, offset: float, duration: float | None, name: str = "the audio"
) -> tuple[int, int]:
    """Return the first sample and the number of samples of a part.

    Args:
        num_samples: of the whole audio.
        sampling_rate: in Hz.
        offset, duration: the part in seconds, as for `read_audio`.
        name: what errors call the audio.

    Raises:
        AudioError: the part holds none of the samples.
    """
    begin = round(min(offset * sampling_rate, num_samples))
    rest = num_samples - begin
    count = rest if duration is None else round(min(duration * sampling_rate, rest))
    if num_samples and not rest:
        seconds = num_samples / sampling_rate
        raise AudioError(f"offset must be less than {seconds:.4g} s, the length of {name}, got {offset:g} s")
    if num_samples and not count:
        raise AudioError(f"duration must be at least {MIN_SECONDS:g} s of {name}, got {duration:g} s")
    return begin, count


def mono_samples(audio: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return samples, as `HiggsAudioTokenizer.encode` takes them, as mono audio.

    Returns:
        [samples], float32, contiguous, full scale 1; the argument itself if it is all that already.

    Raises:
        AudioError: the samples are empty or not finite, or the type, shape or dtype is wrong.
    """
    if not isinstance(audio, np.ndarray | torch.Tensor):
        raise AudioError(f"samples must be an array or a tensor, got {type(audio).__name__}")
    samples = audio.detach().cpu() if isinstance(audio, torch.Tensor) else audio
    if isinstance(samples, torch.Tensor):
        samples = samples.float().numpy() if samples.is_floating_point() else samples.numpy()
    if samples.size == 0:
        raise AudioError(f"audio must hold samples, got the shape {list(samples.shape)}")
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
        raise AudioError("audio must be finite, got NaN or infinity")
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    return np.ascontiguousarray(samples)


def checked_rate(sampling_rate: int) -> int:
    """Return a sampling rate in Hz. Raises AudioError if it is no integer or out of range."""
    try:
        rate = operator.index(sampling_rate)
    except TypeError:
        rate = int(sampling_rate) if isinstance(sampling_rate, float) and sampling_rate.is_integer() else 0
    if not MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE:
        raise AudioError(
            f"sampling_rate must be an integer from {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE} Hz, "
            f"got {sampling_rate!r:.50}"
        )
    return rate


def check_duration(num_samples: int, sampling_rate: int, name: str = "the audio") -> None:
    """Raise AudioError, which calls the audio `name`, if it is empty, too short or too long to be encoded."""
    seconds = num_samples / sampling_rate
    if seconds < MIN_SECONDS:
        raise AudioError(f"{name} must last at least {MIN_SECONDS:g} s, got {seconds:.3g} s")
    if seconds > MAX_SECONDS:
        raise AudioError(f"{name} must last at most {MAX_SECONDS:g} s, got {seconds:.4g} s")
