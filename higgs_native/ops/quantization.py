"""Rounding of weight matrices to the quantized formats."""

import torch

from higgs_native.ops._library import register_fakes
from higgs_native.ops.formats import WEIGHT_FORMATS
from higgs_native.ops.gptq import ErrorFeedback, round_with_feedback


register_fakes("quantize_linear")

_ROWS_AT_ONCE = 1024
"""Rows that are float32 at a time while they are rounded to e4m3, to bound memory."""


def quantize_linear(
    weight: torch.Tensor, format: str, clip: bool = True, feedback: ErrorFeedback | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to a quantized format: `weight ~ values * scales`.

    Args:
        weight: [n, k], float32, bfloat16 or float16, contiguous.
        format: one of `QUANTIZED_FORMATS`.
        clip: choose each scale of integers for the min squared error, which may clip large values. fp8 is never
            clipped: its small values keep their precision whatever the max.
        feedback: minimize the error of the output for inputs with given moments (see `error_feedback`), instead of
            the error of the matrix. The scales do not change.

    Returns:
        The values [n, k] in the format's value dtype, and the scales in its scale dtype: [n] for fp8 and int8,
        [n, groups of 128 columns] for int4.

    Raises:
        RuntimeError: a shape or dtype does not fit, or, on the CPU, the matrix holds values that are not finite. On
            CUDA their scale is NaN instead.
    """
    target = WEIGHT_FORMATS[format]
    if target.limits is None:
        raise RuntimeError(f"quantize_linear: format must be fp8, int8 or int4, got {format}")
    values = torch.empty(weight.shape, dtype=target.value_dtype, device=weight.device)
    scales = torch.empty(target.scales_shape(*weight.shape), dtype=target.scale_dtype, device=weight.device)
    if target.is_integer:
        torch.ops.higgs_native.quantize_linear(values, scales, weight, target.bits, clip)
    else:
        _round_to_e4m3(values, scales, weight, target.limits[1])
    if feedback is not None:
        by_column = scales.float().view(len(weight), -1)
        group = target.scale_group or weight.shape[1]
        values = round_with_feedback(weight, by_column, group, values.dtype, target.limits, feedback)
    return values, scales


def _round_to_e4m3(values: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, limit: int) -> None:
    """Write `values` and `scales` of `quantize_linear` to fp8: a row's max magnitude becomes `limit`."""
    for first in range(0, len(weight), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        part = weight[rows].float()
        max_magnitude = torch.linalg.vector_norm(part, torch.inf, 1)
        scale = max_magnitude / limit
        # A scale without a finite reciprocal is too small for float32: all values of the row become zero.
        scale = torch.where(scale.reciprocal().isfinite(), scale, 1)
        scale.masked_fill_(~max_magnitude.isfinite(), torch.nan)
        scales[rows] = scale
        values[rows] = (part / scale[:, None]).to(values.dtype)
    if weight.device.type == "cpu" and scales.isnan().any():
        row = int(scales.isnan().nonzero()[0])
        raise RuntimeError(f"quantize_linear: weight[{row}] holds values that are not finite")
