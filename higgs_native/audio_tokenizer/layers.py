"""Layers of the audio tokenizer's encoder, as functions of its weights.

`name` is the layer's name in the weights (see `weights.pack_weights`); all tensors are float32.
"""

import torch
from torch.nn import functional as F

from higgs_native import ops


Weights = dict[str, torch.Tensor]
"""Tensors by name, all on one device."""


def snake(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Apply Snake to x [1, channels, columns] in place; return x."""
    ops.snake(x, x, weights[f"{name}.alpha"])
    return x


def conv(weights: Weights, name: str, x: torch.Tensor, **options: int) -> torch.Tensor:
    """Convolve x [1, in, columns] over time to [1, out, columns]; `options` are those of `conv1d`."""
    return F.conv1d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **options)


def linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Apply a linear layer with a bias: [..., in] -> [..., out]."""
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def layer_norm(weights: Weights, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalize x [..., width] over its last dimension, with a gain and a bias."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)
