"""`higgs_native.ops.linear` in plain PyTorch."""

import torch

from higgs_native.ops.formats import PANEL, QUANTIZATION_GROUP, format_of
from higgs_native.ops.linear import PackedWeight


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x**2) + eps) * weight` over the last dimension, in float32."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.float()


def unpack_linear(weight: PackedWeight) -> torch.Tensor:
    """Return the matrix [n, k] of a packed weight, float32, with the zeros that pad its last panel and unit."""
    data, scales = weight
    panels = len(data)
    words = data.transpose(1, 2)  # [panels, 32, units, elements]
    if format_of(data.dtype).bits == 4:
        words = torch.cat([words & 15, words >> 4], dim=-1).float() - 8
        scales = scales.float().transpose(1, 2).repeat_interleave(QUANTIZATION_GROUP, dim=-1)
        words = words.reshape(panels, PANEL, -1) * scales
    elif scales is not None:
        words = words.float() * scales.view(panels, PANEL, 1, 1)
    return words.float().reshape(panels * PANEL, -1)


def quantize_activations(x: torch.Tensor) -> torch.Tensor:
    """Round rows [rows, k] to 8-bit integers with a scale per group of 128 columns; k must be a multiple of 128."""
    groups = x.unflatten(1, (-1, QUANTIZATION_GROUP))
    max_magnitude = groups.abs().amax(-1, keepdim=True)
    # `127 / tensor` would multiply by the reciprocal, which rounds twice.
    inverse = torch.full_like(max_magnitude, 127) / max_magnitude
    integers = torch.round(groups * torch.where(max_magnitude > 1e-30, inverse, 0))
    return (integers * (max_magnitude / 127)).view_as(x)


def packed_linear(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """Return `x @ weight.T` [rows, n], n padded to whole panels; x [rows, k] is padded with zeros."""
    matrix = unpack_linear(weight)
    x = torch.nn.functional.pad(x, (0, matrix.shape[1] - x.shape[1]))
    if format_of(weight.data.dtype).is_integer:
        x = quantize_activations(x)
    return x @ matrix.T


def linear(out: torch.Tensor, x: torch.Tensor, weight: PackedWeight, residual: torch.Tensor | None = None) -> None:
    """See `higgs_native.ops.linear`."""
    result = packed_linear(x, weight)[:, : out.shape[1]]
    out.copy_(result if residual is None else residual + result)


def rms_norm_linear(
    out: torch.Tensor, x: torch.Tensor, norm_weight: torch.Tensor, eps: float, weight: PackedWeight
) -> None:
    """See `higgs_native.ops.rms_norm_linear`."""
    linear(out, rms_norm(x, norm_weight, eps), weight)
