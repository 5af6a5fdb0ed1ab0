"""Resampling with the filter that HuBERT was trained behind."""

import math

import torch
from torch.nn import functional as F


def resample(audio: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """Resample by windowed-sinc interpolation, as `torchaudio.functional.resample` does by default.

    A sinc cut off at 0.99 of the lower Nyquist frequency, under a Hann window of 6 zero crossings on each side. HuBERT
    was fed by this filter, so no other will do.

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
    # Output j of each group of to_rate lies at time j / to_rate; the taps lie at times i / from_rate around it.
    taps = torch.arange(-width, width + from_rate, dtype=torch.float32) / from_rate
    phases = torch.arange(0, -to_rate, -1, dtype=torch.float32) / to_rate
    times = ((phases[:, None] + taps) * cutoff).clamp(-zero_crossings, zero_crossings)
    window = torch.cos(times * math.pi / zero_crossings / 2).square()
    kernels = torch.sinc(times) * window * (cutoff / from_rate)
    padded = F.pad(audio, (width, width + from_rate))
    resampled = F.conv1d(padded[:, None], kernels[:, None].to(audio.device), stride=from_rate)
    samples = math.ceil(audio.shape[1] * to_rate / from_rate)
    return resampled.mT.flatten(1)[:, :samples]
