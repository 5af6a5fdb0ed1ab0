"""Frozen matrices in int8 or int4: dequantized one at a time, where they are used.

Int8 takes half the memory of bfloat16, int4 a quarter.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from higgs_native import ops
from higgs_native.ops.formats import QUANTIZATION_GROUP


class DequantizedLinear(torch.autograd.Function):
    """x @ dequantize(weight, scales).T. The backward pass dequantizes again, so that no such matrix is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, scales)
        return F.linear(x, dequantize(weight, scales, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        weight, scales = ctx.saved_tensors
        return grad @ dequantize(weight, scales, grad.dtype), None, None


class QuantizedLinear(nn.Linear):
    """A frozen linear layer. PEFT adapts it as any `nn.Linear`.

    Args:
        linear: the layer whose weights are rounded.
        bits: 8: to the nearest of 255 values, with a scale per output; 4: as `ops.quantize_linear` does.
    """

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        if bits == 8:
            wide = linear.weight.detach().float()
            scales = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
            weight = (wide / scales).round().to(torch.int8)
        else:
            values, scales = ops.quantize_linear(linear.weight.detach().contiguous(), "int4")
            weight = _pairs(values)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scales", scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return DequantizedLinear.apply(x, self.weight, self.scales)


def _pairs(values: torch.Tensor) -> torch.Tensor:
    """Return 4-bit integers [n, k] two to a byte, [n, k / 2]: the first in the lower half, each plus 8."""
    stored = (values + 8).to(torch.uint8)
    return stored[:, ::2] | stored[:, 1::2] << 4


def dequantize(weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a matrix in a dtype.

    Args:
        weight: int8 [n, k], or uint8: two 4-bit integers to a byte.
        scales: [n, 1], or of 4-bit integers [n, groups of 128 columns].
        dtype: of the matrix.
    """
    if weight.dtype == torch.int8:
        return weight.to(dtype) * scales.to(dtype)
    values = torch.stack([weight & 15, weight >> 4], dim=2).flatten(1).to(dtype) - 8
    return values * scales.to(dtype).repeat_interleave(QUANTIZATION_GROUP, dim=1)[:, : values.shape[1]]


def quantize_layers(layers: nn.Module, bits: int) -> None:
    """Replace every linear layer within `layers`; 4 bits need an even number of inputs."""
    for module in list(layers.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, QuantizedLinear(child, bits))
