"""Frozen matrices in int8, half the memory of bfloat16: dequantized a layer at a time, where they are used."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class DequantizedProduct(torch.autograd.Function):
    """x @ (weight * scales).T. The backward pass dequantizes again, so that no dequantized matrix is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, scales)
        return F.linear(x, dequantize(weight, scales, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        weight, scales = ctx.saved_tensors
        return grad @ dequantize(weight, scales, grad.dtype), None, None


class Int8Linear(nn.Linear):
    """A frozen linear layer with a scale per output. PEFT adapts it as any `nn.Linear`.

    Args:
        linear: the layer whose weights are rounded.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        wide = linear.weight.detach().float()
        scales = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
        self.weight = nn.Parameter((wide / scales).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scales", scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return DequantizedProduct.apply(x, self.weight, self.scales)


def dequantize(weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a matrix in a dtype."""
    return weight.to(dtype) * scales.to(dtype)


def quantize_layers(layers: nn.Module) -> None:
    """Replace every linear layer within `layers`."""
    for module in list(layers.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
