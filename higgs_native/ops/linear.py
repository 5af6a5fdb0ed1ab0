"""Products with a packed weight matrix, which is read from memory once for up to 240 rows.

A packed weight belongs to the device that packed it. On the CPU, panels of 32 rows stand one behind the other; a panel
is a sequence of units of 128 bytes, each with 4 bytes of every row: a float32, two bfloat16 or float16, four e4m3,
four int8, or eight 4-bit integers (csrc/common/weight_format.h). Integers meet activations that are rounded to 8 bits
in groups of 128. bfloat16 and e4m3 weights meet activations rounded to bfloat16 on CUDA and where the processor
multiplies those (instruction set avx512_bf16), and float32 ones elsewhere; float16 weights meet activations rounded to
float16 on CUDA, and float32 ones on the CPU.
"""

from typing import NamedTuple

import torch

from higgs_native.ops._library import register_fakes
from higgs_native.ops.gptq import ErrorFeedback, round_with_feedback
from higgs_native.utils.memory import empty_weight


register_fakes("linear", "rms_norm_linear", "pack_linear", "quantize_linear")

PANEL = 32
QUANTIZATION_GROUP = 128
FORMATS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
    "int4": torch.uint8,
}
"""The formats of a packed weight, and the dtype of its data."""
QUANTIZED = ("fp8", "int8", "int4")
"""The formats with scales."""

_BITS = {"int8": 8, "int4": 4}
_LIMITS = {"fp8": (-448, 448), "int8": (-127, 127), "int4": (-8, 7)}
"""The least and the largest value of a quantized format."""
_UNIT_COLUMNS = {
    torch.float32: 1,
    torch.bfloat16: 2,
    torch.float16: 2,
    torch.float8_e4m3fn: 4,
    torch.int8: 4,
    torch.uint8: 8,
}
_ROWS_AT_ONCE = 1024  # that are float32 for a moment while they are rounded to e4m3


class PackedWeight(NamedTuple):
    """A weight matrix [n, k] as the products take it.

    How many rows and columns the last panel and unit hold is not stored: `out` and `x` say it.

    Attributes:
        data: [panels, units, 32, elements of 4 bytes]; float32, bfloat16, float16, float8_e4m3fn, int8, or uint8
            for 4-bit integers.
        scales: None; for fp8 and int8 [panels, 32], float32, one for each row; for 4 bits [panels, groups, 32],
            float16.
    """

    data: torch.Tensor
    scales: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


def packed_shape(n: int, k: int, dtype: torch.dtype, lanes: int = PANEL) -> tuple[int, int, int, int]:
    """The shape of `PackedWeight.data` for a matrix [n, k] of which each panel holds `lanes` rows."""
    columns = _UNIT_COLUMNS[dtype]
    if dtype in (torch.int8, torch.uint8):
        k = -(-k // QUANTIZATION_GROUP) * QUANTIZATION_GROUP
    return -(-n // lanes), -(-k // columns), PANEL, 4 // dtype.itemsize


def quantize_linear(
    weight: torch.Tensor, format: str, clip: bool = True, feedback: ErrorFeedback | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to values of 8 or 4 bits and scales: `weight ~ values * scales`.

    Args:
        weight: [n, k], float32, bfloat16 or float16, contiguous.
        format: "fp8", "int8" or "int4".
        clip: choose each scale of integers for the least squared error, though large values are cut off; else nothing
            is. In fp8 nothing ever is: its steps are finer for small values whatever the largest.
        feedback: round for the least error of products with inputs of certain second moments (see `error_feedback`),
            instead of the least error of the matrix; the scales are the same.

    Returns:
        For fp8 the values [n, k], float8_e4m3fn, and the scales [n], float32; for int8 integers [n, k], int8, -127 ..
        127, and the scales [n], float32; for int4 integers [n, k], int8, -8 .. 7, and the scales [n, groups of 128],
        float16.

    Raises:
        RuntimeError: a shape or dtype does not fit, or, on the CPU, the matrix holds values that are not finite. On
            CUDA their scale is NaN.
    """
    values, scales = _round_to_e4m3(weight) if format == "fp8" else _round_to_integers(weight, format, clip)
    if feedback is not None:
        by_column = scales.float().view(len(weight), -1)
        group = QUANTIZATION_GROUP if format == "int4" else weight.shape[1]
        values = round_with_feedback(weight, by_column, group, values.dtype, _LIMITS[format], feedback)
    return values, scales


def _round_to_integers(weight: torch.Tensor, format: str, clip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    n, k = weight.shape
    integers = torch.empty(n, k, dtype=torch.int8, device=weight.device)
    if format == "int8":
        scales = torch.empty(n, device=weight.device)
    else:
        scales = torch.empty(n, -(-k // QUANTIZATION_GROUP), dtype=torch.float16, device=weight.device)
    torch.ops.higgs_native.quantize_linear(integers, scales, weight, _BITS[format], clip)
    return integers, scales


def _round_to_e4m3(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_linear` to fp8: a row's largest magnitude becomes 448, the largest of e4m3."""
    values = torch.empty(weight.shape, dtype=FORMATS["fp8"], device=weight.device)
    scales = torch.empty(len(weight), device=weight.device)
    for first in range(0, len(weight), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        part = weight[rows].float()
        most = torch.linalg.vector_norm(part, torch.inf, 1)
        scale = most / _LIMITS["fp8"][1]
        # Where a scale would have to be smaller than the smallest, all values become zero.
        scale = torch.where(scale.reciprocal().isfinite(), scale, 1).masked_fill_(~most.isfinite(), torch.nan)
        scales[rows] = scale
        values[rows] = (part / scale[:, None]).to(values.dtype)
    if weight.device.type == "cpu" and scales.isnan().any():
        row = int(scales.isnan().nonzero()[0])
        raise RuntimeError(f"quantize_linear: weight[{row}] holds values that are not finite")
    return values, scales


def pack_linear(
    *weights: torch.Tensor, format: str | None = None, clip: bool = True, feedback: ErrorFeedback | None = None
) -> PackedWeight:
    """Pack matrices below each other, for every product but the gate and up projections.

    Args:
        weights: [n, k] each, of one dtype: float32, bfloat16 or float16; contiguous.
        format: one of `FORMATS`; None: the weights' own dtype.
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
    """Pack what `quantize_linear` returns.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    dtype = values.dtype if scales.dim() == 1 else FORMATS["int4"]
    data = empty_weight(packed_shape(*values.shape, dtype), dtype, values.device)
    packed = PackedWeight(data, _by_panel(scales, PANEL))
    torch.ops.higgs_native.pack_linear(data, values, 0, PANEL)
    return packed


def _pack(
    weights: list[tuple[torch.Tensor, int]],
    lanes: int,
    format: str | None,
    clip: bool,
    feedback: ErrorFeedback | None,
) -> PackedWeight:
    """Pack matrices, each into `lanes` lanes from its own first lane on: of shared panels, or of panels of its own."""
    dtype = weights[0][0].dtype if format is None else FORMATS[format]
    k, device = weights[0][0].shape[1], weights[0][0].device
    counts = [-(-len(weight) // lanes) for weight, _ in weights]
    shared = lanes < PANEL
    panels = counts[0] if shared else sum(counts)
    data = empty_weight(packed_shape(panels * PANEL, k, dtype), dtype, device)
    if format in QUANTIZED:
        values, scales = zip(*(quantize_linear(weight, format, clip, feedback) for weight, _ in weights), strict=True)
        packed = PackedWeight(data, torch.cat([_by_panel(s, lanes) for s in scales], dim=-1 if shared else 0))
    else:
        values, packed = [weight.to(dtype) for weight, _ in weights], PackedWeight(data)
    panel = 0
    for value, (_, first_lane), count in zip(values, weights, counts, strict=True):
        torch.ops.higgs_native.pack_linear(data[panel : panel + count], value, first_lane, lanes)
        panel += 0 if shared else count
    return packed


def _by_panel(scales: torch.Tensor, lanes: int) -> torch.Tensor:
    """Scales [n] or [n, groups] as [panels, lanes] or [panels, groups, lanes], zero where a panel is not full."""
    columns = scales.view(len(scales), -1)
    columns = torch.nn.functional.pad(columns, (0, 0, 0, -len(scales) % lanes)).view(-1, lanes, columns.shape[1])
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
        eps: what is added to the mean square.
        weight: [n, k], packed.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    torch.ops.higgs_native.rms_norm_linear(out, x, norm_weight, eps, *weight)
