"""Rotary position embeddings."""

import math

import torch

from higgs_native.model.config import HiggsAudioConfig


def rope_table(config: HiggsAudioConfig, length: int) -> torch.Tensor:
    """Cosines, then sines, of the rotary angles: [length, head_dim], float32.

    With llama3 scaling, frequencies whose wave is longer than the original context / low_freq_factor are divided by
    `factor`, those shorter than the original context / high_freq_factor are kept, and those between are interpolated
    (Llama 3.1; the same arithmetic, in float32, as transformers' `rope_type: llama3`).
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is not None:
        context = scaling.original_max_position_embeddings
        waves = 2 * math.pi / frequencies
        low, high = context / scaling.low_freq_factor, context / scaling.high_freq_factor
        smooth = (context / waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        between = (1 - smooth) * (frequencies / scaling.factor) + smooth * frequencies
        frequencies = torch.where(
            waves > low, frequencies / scaling.factor, torch.where(waves < high, frequencies, between)
        )
    angles = torch.arange(length).float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
