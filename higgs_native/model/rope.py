"""Rotary position embeddings."""

import math

import torch

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.utils.exact_arithmetic import settle_trigonometry


def rope_table(config: HiggsAudioConfig, length: int) -> torch.Tensor:
    """Return the cosines, then the sines, of the rotary angles: [length, head_dim], float32, on the CPU.

    llama3 scaling divides frequencies by `factor` if their wavelength exceeds the original context / low_freq_factor,
    and keeps those with a wavelength below the original context / high_freq_factor. Those between are interpolated.
    The float32 arithmetic is that of transformers' `rope_type: llama3`.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is not None:
        context = scaling.original_max_position_embeddings
        wavelengths = 2 * math.pi / frequencies
        low_factor, high_factor = scaling.low_freq_factor, scaling.high_freq_factor
        low, high = context / low_factor, context / high_factor
        smooth = (context / wavelengths - low_factor) / (high_factor - low_factor)
        between = (1 - smooth) * (frequencies / scaling.factor) + smooth * frequencies
        frequencies = torch.where(
            wavelengths > low, frequencies / scaling.factor, torch.where(wavelengths < high, frequencies, between)
        )
    angles = torch.arange(length, dtype=torch.float32, device="cpu")[:, None] * frequencies
    settle_trigonometry()
    return torch.cat([angles.cos(), angles.sin()], dim=1)
