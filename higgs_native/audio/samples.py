"""Samples in memory: mono float32 audio of a length that can be encoded, from arrays and tensors of many kinds."""

import math
import operator
from numbers import Real
from typing import Any

import numpy as np
import torch

from higgs_native.errors import AudioError, short_repr


MIN_SECONDS = 0.1
"""Length of the shortest audio that the audio tokenizer encodes."""
MAX_SECONDS = 120.0
"""Length of the longest one. Encoding takes memory in proportion to the length, here about 2 GB."""
MAX_CHANNELS = 8
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1000, 768_000
MAX_MAGNITUDE = 2.0**31
"""Beyond it, samples are damaged at any scale, and sums over them overflow."""

# The full scale of wider integers is not known: they usually hold samples of 16 bits.
_INTEGER_BYTES = (1, 2, 4)
_DTYPES = "audio must be floating, or integers of 8, 16 or 32 bits"
_BLOCK_FRAMES = 1 << 18  # converted at a time, which bounds the memory


def mono_samples(
    audio: np.ndarray | torch.Tensor,
    sampling_rate: float,
    offset: float = 0,
    duration: float | None = None,
    name: str = "the audio",
) -> tuple[np.ndarray, int]:
    """Return samples, or a part of them, as mono audio.

    Args:
        audio: [samples], [channels, samples], [samples, channels] (the shorter axis is the channels) or a batch of
            one, [1, channels, samples]; floating with full scale 1, or integers of 8, 16 or 32 bits with the full
            scale of their dtype (the zero of unsigned ones is in the middle).
        sampling_rate: in Hz, a whole number of any type.
        offset: begin of the part in seconds, at least 0.
        duration: maximum length of the part in seconds, at least 0; None for the rest.
        name: what errors call the audio.

    Returns:
        The samples [samples], float32, contiguous, full scale 1, maybe in the memory of the given array; and the
        sampling rate in Hz.

    Raises:
        AudioError: the part is empty, too short, too long, or not finite, or a type, shape or dtype is wrong.
    """
    if not isinstance(audio, np.ndarray | torch.Tensor):
        raise AudioError(f"samples must be an array or a tensor, got {type(audio).__name__}")
    rate = checked_rate(sampling_rate)
    if isinstance(audio, np.ndarray):
        audio = np.asarray(audio)  # subclasses index differently
    elif audio.is_nested or audio.is_meta or audio.layout != torch.strided:
        raise AudioError("samples must be a dense tensor, got a nested, sparse or meta tensor")
    shape = list(audio.shape)
    if len(shape) == 3 and shape[0] == 1:
        audio = audio[0]
    if 0 in shape:
        raise AudioError(f"audio must hold samples, got the shape {shape}")
    if audio.ndim not in (1, 2) or (audio.ndim == 2 and min(audio.shape) > MAX_CHANNELS):
        raise AudioError(
            "audio must be [samples], [channels, samples], [samples, channels] or [1, channels, samples] with at most "
            f"{MAX_CHANNELS} channels, got {shape}"
        )
    frames = audio if audio.ndim == 1 or audio.shape[0] > audio.shape[1] else audio.T
    begin, count = part_range(len(frames), rate, offset, duration, name)
    check_duration(count, rate, name)
    frames = frames[begin : begin + count]
    blocks = [_mono_block(frames[index : index + _BLOCK_FRAMES]) for index in range(0, count, _BLOCK_FRAMES)]
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks), rate


def _mono_block(frames: np.ndarray | torch.Tensor) -> np.ndarray:
    """Convert samples [samples] or [samples, channels] to [samples], float32; see `mono_samples`."""
    if isinstance(frames, torch.Tensor):
        try:
            frames = (frames.float() if frames.dtype == torch.bfloat16 else frames).numpy(force=True)
        except TypeError:  # numpy lacks the dtype
            raise AudioError(f"{_DTYPES}, got {frames.dtype}") from None
    kind, size = frames.dtype.kind, frames.dtype.itemsize
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        if kind in "iu" and size in _INTEGER_BYTES:
            half = 2.0 ** (8 * size - 1)
            frames = (frames.astype(np.float64) - (half if kind == "u" else 0)) / half
        elif kind != "f":
            raise AudioError(f"{_DTYPES}, got {frames.dtype}")
        frames = frames.astype(np.float32, copy=False)
        mono = np.ascontiguousarray(frames if frames.ndim == 1 else frames.mean(axis=1))
    if not np.isfinite(mono).all():
        raise AudioError("audio must be finite, got NaN or infinity")
    peak = max(abs(mono.min()), mono.max())
    if peak > MAX_MAGNITUDE:
        raise AudioError(f"floating audio must have full scale 1, got samples up to {peak:g}")
    return mono


def part_range(
    num_samples: int, sampling_rate: int, offset: float, duration: float | None, name: str = "the audio"
) -> tuple[int, int]:
    """Return the first sample and the number of samples of a part.

    Args:
        num_samples: of the whole audio.
        sampling_rate: in Hz.
        offset, duration: the part in seconds, as for `mono_samples`.
        name: what errors call the audio.

    Raises:
        AudioError: the part holds none of the samples, or `offset` or `duration` is no number of seconds.
    """
    offset, duration = part_seconds(offset, duration)
    begin = round(min(offset * sampling_rate, num_samples))
    rest = num_samples - begin
    count = round(min(duration * sampling_rate, rest))
    if num_samples and not rest:
        seconds = num_samples / sampling_rate
        raise AudioError(f"offset must be less than {seconds:.4g} s, the length of {name}, got {offset:g} s")
    if num_samples and not count:
        raise AudioError(f"duration must be at least {MIN_SECONDS:g} s of {name}, got {duration:g} s")
    return begin, count


def part_seconds(offset: float, duration: float | None) -> tuple[float, float]:
    """Return the begin and the maximum length of a part in seconds, infinite for the duration None.

    Raises:
        AudioError: `offset` is no number of seconds, or `duration` neither one nor None.
    """
    return _seconds("offset", offset), math.inf if duration is None else _seconds("duration", duration)


def _seconds(name: str, value: float) -> float:
    try:
        seconds = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:  # an integer above all floats
        seconds = math.inf
    if not 0 <= seconds < math.inf:
        raise AudioError(f"{name} must be a number of seconds, at least 0, got {short_repr(value)}")
    return seconds


def checked_rate(sampling_rate: Any) -> int:
    """Return a sampling rate in Hz. Raises AudioError if it is no integer or out of range."""
    try:
        rate = operator.index(sampling_rate)
    except (TypeError, RuntimeError):  # RuntimeError: a tensor without data
        is_in_range = (
            isinstance(sampling_rate, Real)
            and sampling_rate <= MAX_SAMPLING_RATE
            and not sampling_rate < MIN_SAMPLING_RATE
        )
        rate = int(sampling_rate) if is_in_range and sampling_rate == int(sampling_rate) else 0
    if not MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE:
        # Samples may have been given in its place.
        got = short_repr(sampling_rate) if isinstance(sampling_rate, Real | str) else type(sampling_rate).__name__
        raise AudioError(
            f"sampling_rate must be an integer from {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE} Hz, got {got}"
        )
    return rate


def check_duration(num_samples: int, sampling_rate: int, name: str = "the audio") -> None:
    """Raise AudioError, which calls the audio `name`, if it is empty, too short or too long to be encoded."""
    seconds = num_samples / sampling_rate
    if seconds < MIN_SECONDS:
        raise AudioError(f"{name} must last at least {MIN_SECONDS:g} s, got {seconds:.3g} s")
    if seconds > MAX_SECONDS:
        raise AudioError(f"{name} must last at most {MAX_SECONDS:g} s, got {seconds:.4g} s")


def pcm_samples(samples: np.ndarray) -> np.ndarray:
    """Return samples [samples], float32, full scale 1, as int16, rounded and clipped, as all faces write them."""
    return (samples.clip(-1, 1) * 32767).round().astype("<i2")
