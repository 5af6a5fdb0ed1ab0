"""`higgs_native.ops.linear` in plain PyTorch."""

import torch

from higgs_native.ops.formats import (
    PANEL,
    QUANTIZATION_GROUP,
    QUANTIZED_FORMATS,
    WEIGHT_FORMATS,
    WeightFormat,
    format_of,
)
from higgs_native.ops.linear import PackedWeight
from higgs_native.reference.quantization import quantize_linear


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x**2) + eps) * weight` over the last dimension, in float32."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.float()


def unpack_linear(weight: PackedWeight) -> torch.Tensor:
    """Return the matrix [n, k] of a packed weight, float32, with the zeros that pad its last panel and unit."""
    data, scales = weight
    panels = len(data)
    words = data.transpose(1, 2)  # [panels, 32, units, elements]
    if scales is not None and format_of(data.dtype).bits == 4:
        words = torch.cat([words & 15, words >> 4], dim=-1).float() - 8
        scales = scales.float().transpose(1, 2).repeat_interleave(QUANTIZATION_GROUP, dim=-1)
        words = words.reshape(panels, PANEL, -1) * scales
    elif scales is not None:
        words = words.float() * scales.view(panels, PANEL, 1, 1)
    return words.float().reshape(panels * PANEL, -1)


def pack_linear(*weights: torch.Tensor, format: str | None = None, clip: bool = True) -> PackedWeight:
    """See `higgs_native.ops.pack_linear`."""
    matrix = torch.cat(weights)
    if format in QUANTIZED_FORMATS:
        return pack_quantized(*quantize_linear(matrix, format, clip))
    target = format_of(matrix.dtype) if format is None else WEIGHT_FORMATS[format]
    return PackedWeight(_panels(matrix.to(target.dtype), target))


def pack_quantized(values: torch.Tensor, scales: torch.Tensor) -> PackedWeight:
    """See `higgs_native.ops.pack_quantized`."""
    target = format_of(values.dtype) if scales.dim() == 1 else WEIGHT_FORMATS["int4"]
    padded = torch.nn.functional.pad(scales.view(len(scales), -1), (0, 0, 0, -len(scales) % PANEL))
    by_panel = padded.view(-1, PANEL, padded.shape[1]).transpose(1, 2).contiguous()
    return PackedWeight(_panels(values, target), by_panel.view(target.packed_scales_shape(*values.shape)))


def _panels(values: torch.Tensor, target: WeightFormat) -> torch.Tensor:
    """`PackedWeight.data` of a matrix [n, k] of values."""
    panels, units, _, elements = target.packed_shape(*values.shape)
    n, k = panels * PANEL, units * target.unit_columns
    # Padding keeps the bits of e4m3, for which PyTorch has no arithmetic.
    padded = torch.zeros(n, k, dtype=values.dtype)
    padded.view(torch.uint8).view(n, -1)[: len(values), : values.shape[1] * values.itemsize] = values.view(torch.uint8)
    if target.bits == 4:
        halves = (padded + 8).view(n, units, 2, 4).to(torch.uint8)
        padded = halves[:, :, 0] | halves[:, :, 1] << 4
    return padded.view(panels, PANEL, units, elements).transpose(1, 2).contiguous()


def quantize_activations(x: torch.Tensor) -> torch.Tensor:
    """Round rows [rows, k] to 8-bit integers with a scale per group of 128 columns; k must be a multiple of 128."""
    groups = x.unflatten(1, (-1, QUANTIZATION_GROUP))
    max_magnitude = groups.abs().amax(-1, keepdim=True)
    # `127 / tensor` would multiply by the reciprocal, which rounds twice.
    inverse = torch.full_like(max_magnitude, 127) / max_magnitude
    integers = torch.round(groups * torch.where(max_magnitude > 1e-30, inverse, 0))
    return (integers * (max_magnitude / 127)).view_as(x)


RowFactors = tuple[torch.Tensor, list[tuple[PackedWeight, PackedWeight] | None]]
"""The adapter of each row, and the factors A and B of each adapter (see `higgs_native.ops.decoder_layers`)."""


def packed_linear(x: torch.Tensor, weight: PackedWeight, factors: RowFactors | None = None) -> torch.Tensor:
    """Return `x @ weight.T` [rows, n], n padded to whole panels; x [rows, k] is padded with zeros.

    Rows with an adapter get `x @ A.T @ B.T` as well.
    """
    matrix = unpack_linear(weight)
    padded = torch.nn.functional.pad(x, (0, matrix.shape[1] - x.shape[1]))
    rounds = format_of(weight.data.dtype).is_integer
    result = (quantize_activations(padded) if rounds else padded) @ matrix.T
    if factors is not None:
        adapters, pairs = factors
        for adapter, pair in enumerate(pairs):
            if pair is not None:
                rows = adapters == adapter
                a, b = map(unpack_linear, pair)
                low = torch.nn.functional.pad(x[rows], (0, a.shape[1] - x.shape[1])) @ a.T[:, : b.shape[1]]
                result[rows] += low @ b.T
    return result


def linear(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: PackedWeight,
    residual: torch.Tensor | None = None,
    factors: RowFactors | None = None,
) -> None:
    """See `higgs_native.ops.linear`."""
    result = packed_linear(x, weight, factors)[:, : out.shape[1]]
    out.copy_(result if residual is None else residual + result)


def rms_norm_linear(
    out: torch.Tensor, x: torch.Tensor, norm_weight: torch.Tensor, eps: float, weight: PackedWeight
) -> None:
    """See `higgs_native.ops.rms_norm_linear`."""
    linear(out, rms_norm(x, norm_weight, eps), weight)
