"""Layers of the audio tokenizer as functions over its weights."""

import torch
from torch.nn import functional as F

from higgs_native import ops


Weights = dict[str, torch.Tensor]


def snake(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Snake, in place."""
    ops.snake(x, x, weights[f"{name}.alpha"])
    return x


def conv(weights: Weights, name: str, x: torch.Tensor, **options: int) -> torch.Tensor:
    return F.conv1d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **options)


def linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def layer_norm(weights: Weights, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)
