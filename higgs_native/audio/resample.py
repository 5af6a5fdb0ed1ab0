"""Resampling: with the filter of the HuBERT training data, and with that of recordings given to the tokenizer."""

import math

import numpy as np
import soxr
import torch
from torch.nn import functional as F


def resample_soxr(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample as `librosa.resample` does by default, the function that the audio tokenizer's users encoded with.

    Args:
        samples: [samples], float32.
        from_rate, to_rate: in Hz.

    Returns:
        [ceil(samples * to_rate / from_rate)], float32; zeros fill up what the filter leaves out at the end.
    """
    if from_rate == to_rate:
        return samples
    num_samples = -(-len(samples) * to_rate // from_rate)
    resampled = soxr.resample(samples, from_rate, to_rate, quality="HQ")[:num_samples]
    return np.pad(resampled, (0, num_samples - len(resampled))).astype(np.float32, copy=False)


def resample_sinc(audio: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """Resample by windowed-sinc interpolation, as `torchaudio.functional.resample` does by default.

    The sinc is cut off at 0.99 of the lower Nyquist frequency and has a Hann window of 6 zero crossings on each side.
    HuBERT was trained on audio from this filter; another one changes its features.

    Args:
        audio: [channels, samples], float32.
        from_rate, to_rate: in Hz.

    Returns:
        [channels, ceil(samples * to_rate / from_rate)], float32.
    """
    if from_rate == to_rate:
        return audio
    divisor = math.gcd(from_rate, to_rate)
    from_rate, to_rate = from_rate // divisor, to_rate // divisor
    zero_crossings, cutoff = 6, 0.99 * min(from_rate, to_rate)
    width = math.ceil(zero_crossings * from_rate / cutoff)
    # Each stride of from_rate inputs gives to_rate outputs. Output j is at time j / to_rate, tap i at i / from_rate.
    taps = torch.arange(-width, width + from_rate, dtype=torch.float32, device="cpu") / from_rate
    phases = torch.arange(0, -to_rate, -1, dtype=torch.float32, device="cpu") / to_rate
    times = ((phases[:, None] + taps) * cutoff).clamp(-zero_crossings, zero_crossings)
    window = torch.cos(times * math.pi / zero_crossings / 2).square()
    kernels = torch.sinc(times) * window * (cutoff / from_rate)
    padded = F.pad(audio, (width, width + from_rate))
    resampled = F.conv1d(padded[:, None], kernels[:, None].to(audio.device), stride=from_rate)
    samples = math.ceil(audio.shape[1] * to_rate / from_rate)
    return resampled.mT.flatten(1)[:, :samples]
