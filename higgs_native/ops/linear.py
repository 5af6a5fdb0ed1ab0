"""Packed weight matrices, and the linear layers that multiply by them.

A linear layer reads its weight from memory once for up to 240 rows. A packed weight can be used on the device that
packed it alone; `higgs_native.ops.formats` says how it is stored.

Activations are float32, rounded for some formats:

| weights | activations on the CPU | on CUDA |
|---|---|---|
| float32 | float32 | float32 |
| float16 | float32 | float16 |
| bfloat16, fp8 | float32; bfloat16 with avx512_bf16, amx, neon_bf16 or neon_i8mm | bfloat16 |
| int8, int4 | 8 bits in groups of 128 columns | 8 bits in groups of 128 columns |
"""

from typing import NamedTuple

import torch

from higgs_native.ops._library import register_fakes
from higgs_native.ops.formats import PANEL, WEIGHT_FORMATS, WeightFormat, format_of
from higgs_native.ops.gptq import ErrorFeedback
from higgs_native.ops.quantization import quantize_linear
from higgs_native.utils.memory import empty_weight


register_fakes("linear", "rms_norm_linear", "pack_linear")


class PackedWeight(NamedTuple):
    """A weight matrix [n, k] in panels. n and k are not stored: `out` and `x` of an operator give them.

    Attributes:
        data: `WeightFormat.packed_shape`, in the format's dtype.
        scales: `WeightFormat.packed_scales_shape`, in the format's scale dtype; None for formats without scales.
    """

    data: torch.Tensor
    scales: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of data and scales."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


def pack_linear(
    *weights: torch.Tensor, format: str | None = None, clip: bool = True, feedback: ErrorFeedback | None = None
) -> PackedWeight:
    """Pack matrices, concatenated along n, for all linear layers but the gate and up projections.

    Args:
        weights: [n, k] each, all float32, bfloat16 or float16; contiguous.
        format: one of `WEIGHT_FORMATS`; None keeps the dtype of `weights`.
        clip, feedback: see `quantize_linear`.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    if any(len(weight) % PANEL for weight in weights[:-1]):
        weights = (torch.cat(weights),)
    return _pack([(weight, 0) for weight in weights], PANEL, format, clip, feedback)


def pack_gate_up(
    gate: torch.Tensor,
    up: torch.Tensor,
    format: str | None = None,
    clip: bool = True,
    feedback: ErrorFeedback | None = None,
) -> PackedWeight:
    """Pack the gate and up projections for `dual_ffn`: a panel holds 16 rows of each.

    Args:
        gate, up: [intermediate, hidden], float32, bfloat16 or float16, contiguous.
        format, clip, feedback: see `pack_linear`.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    if gate.shape != up.shape:
        raise RuntimeError(f"pack_gate_up: up must have shape {list(gate.shape)}, got {list(up.shape)}")
    return _pack([(gate, 0), (up, PANEL // 2)], PANEL // 2, format, clip, feedback)


def pack_quantized(values: torch.Tensor, scales: torch.Tensor) -> PackedWeight:
    """Pack the values and scales of `quantize_linear`.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    format = format_of(values.dtype) if scales.dim() == 1 else WEIGHT_FORMATS["int4"]
    n, k = values.shape
    data = _empty_packed(format, n, k, values.device)
    packed = PackedWeight(data, _by_panel(scales, PANEL))
    torch.ops.higgs_native.pack_linear(data, values, 0, PANEL)
    return packed


def _pack(
    weights: list[tuple[torch.Tensor, int]],
    panel_rows: int,
    format: str | None,
    clip: bool,
    feedback: ErrorFeedback | None,
) -> PackedWeight:
    """Pack matrices, each with its first row in a panel.

    With `panel_rows` below PANEL, all matrices share each panel; otherwise each matrix fills panels by itself.
    """
    target = format_of(weights[0][0].dtype) if format is None else WEIGHT_FORMATS[format]
    k, device = weights[0][0].shape[1], weights[0][0].device
    counts = [-(-len(weight) // panel_rows) for weight, _ in weights]
    shared = panel_rows < PANEL
    panels = counts[0] if shared else sum(counts)
    data = _empty_packed(target, panels * PANEL, k, device)
    if target.is_quantized:
        values, scales = zip(
            *(quantize_linear(weight, target.name, clip, feedback) for weight, _ in weights), strict=True
        )
        packed = PackedWeight(data, torch.cat([_by_panel(s, panel_rows) for s in scales], dim=-1 if shared else 0))
    else:
        values, packed = tuple(weight.to(target.dtype) for weight, _ in weights), PackedWeight(data)
    panel = 0
    for value, (_, first_row), count in zip(values, weights, counts, strict=True):
        torch.ops.higgs_native.pack_linear(data[panel : panel + count], value, first_row, panel_rows)
        panel += 0 if shared else count
    return packed


def _empty_packed(format: WeightFormat, n: int, k: int, device: torch.device) -> torch.Tensor:
    return empty_weight(format.packed_shape(n, k), format.dtype, device)


def _by_panel(scales: torch.Tensor, panel_rows: int) -> torch.Tensor:
    """Reshape scales [n] or [n, groups] to [panels, panel_rows] or [panels, groups, panel_rows]; padding is zero."""
    columns = scales.view(len(scales), -1)
    columns = torch.nn.functional.pad(columns, (0, 0, 0, -len(scales) % panel_rows))
    columns = columns.view(-1, panel_rows, columns.shape[1])
    by_panel = columns.transpose(1, 2)
    return (by_panel[:, 0] if scales.dim() == 1 else by_panel).contiguous()


def linear(out: torch.Tensor, x: torch.Tensor, weight: PackedWeight, residual: torch.Tensor | None = None) -> None:
    """`out = x @ weight.T + residual`, accumulated in float32.

    Args:
        out: [rows, n], float32; written; may be `residual` itself.
        x: [rows, k], float32.
        weight: [n, k], packed.
        residual: [rows, n], float32, or None.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    torch.ops.higgs_native.linear(out, x, *weight, residual)


def rms_norm_linear(
    out: torch.Tensor, x: torch.Tensor, norm_weight: torch.Tensor, eps: float, weight: PackedWeight
) -> None:
    """`out = (x / sqrt(mean(x**2) + eps) * norm_weight) @ weight.T`, accumulated in float32.

    Args:
        out: [rows, n], float32; written.
        x: [rows, k], float32.
        norm_weight: [k], float32, bfloat16 or float16.
        eps: added to the mean square.
        weight: [n, k], packed.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    torch.ops.higgs_native.rms_norm_linear(out, x, norm_weight, eps, *weight)
