"""Products with a packed weight matrix, which is streamed once for up to 12 rows.

A packed weight belongs to the device that packed it. On the CPU, panels of 32 rows stand one behind the other; a panel
is a sequence of units of 128 bytes, each with 4 bytes of every row: a float32, two bfloat16, four int8, or eight 4-bit
integers (csrc/cpu/linear_kernels.h). Quantized weights meet activations that are rounded to 8 bits in groups of 128.
bfloat16 weights meet activations rounded to bfloat16 where the processor multiplies those (instruction set
avx512_bf16), and float32 ones elsewhere.
"""

from typing import NamedTuple

import torch

from higgs_native.memory import empty_weight
from higgs_native.ops._library import register_fakes


register_fakes("linear", "rms_norm_linear", "pack_linear")

PANEL = 32
QUANTIZATION_GROUP = 128
_WORD_ELEMENTS = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4, torch.uint8: 4}
_UNIT_COLUMNS = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4, torch.uint8: 8}


class PackedWeight(NamedTuple):
    """A weight matrix [n, k] as the products take it.

    Attributes:
        data: [panels, units, 32, elements of 4 bytes]; float32, bfloat16, int8, or uint8 for 4-bit integers.
        scales: None; for int8 [panels, 32], float32, one for each row; for 4 bits [panels, groups, 32], float16.
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
    return -(-n // lanes), -(-k // columns), PANEL, _WORD_ELEMENTS[dtype]


def pack_linear(*weights: torch.Tensor) -> PackedWeight:
    """Pack matrices below each other, for every product but the gate and up projections.

    Args:
        weights: [n, k] each, of one dtype: float32 or bfloat16; contiguous.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    if any(len(weight) % PANEL for weight in weights[:-1]):
        weights = (torch.cat(weights),)
    n, k, dtype = sum(len(weight) for weight in weights), weights[0].shape[1], weights[0].dtype
    data = empty_weight(packed_shape(n, k, dtype), dtype, weights[0].device)
    panel = 0
    for weight in weights:
        panels = -(-len(weight) // PANEL)
        torch.ops.higgs_native.pack_linear(data[panel : panel + panels], weight, 0, PANEL)
        panel += panels
    return PackedWeight(data)


def pack_quantized(integers: torch.Tensor, scales: torch.Tensor) -> PackedWeight:
    """Pack a quantized matrix: `integers * scales`.

    Args:
        integers: [n, k], int8: -128 .. 127, or -8 .. 7 for 4 bits; contiguous.
        scales: [n], float32, one for each row of 8-bit integers; or [n, groups], float16, one for each group of 128
            4-bit integers of a row.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    dtype = torch.int8 if scales.dim() == 1 else torch.uint8
    data = empty_weight(packed_shape(*integers.shape, dtype), dtype, integers.device)
    torch.ops.higgs_native.pack_linear(data, integers, 0, PANEL)
    padded = torch.nn.functional.pad(scales.view(len(scales), -1), (0, 0, 0, -len(scales) % PANEL))
    by_panel = padded.view(-1, PANEL, padded.shape[1]).transpose(1, 2)  # [panels, groups or 1, 32]
    return PackedWeight(data, (by_panel.squeeze(1) if scales.dim() == 1 else by_panel).contiguous())


def pack_gate_up(gate: torch.Tensor, up: torch.Tensor) -> PackedWeight:
    """Pack the gate and up projections for `dual_ffn`: a panel holds 16 rows of each.

    Args:
        gate, up: [intermediate, hidden], float32 or bfloat16, contiguous.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    half = PANEL // 2
    data = empty_weight(packed_shape(*gate.shape, gate.dtype, half), gate.dtype, gate.device)
    torch.ops.higgs_native.pack_linear(data, gate, 0, half)
    torch.ops.higgs_native.pack_linear(data, up, half, half)
    return PackedWeight(data)


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
        norm_weight: [k], float32 or bfloat16.
        eps: what is added to the mean square.
        weight: [n, k], packed.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    torch.ops.higgs_native.rms_norm_linear(out, x, norm_weight, eps, *weight)
