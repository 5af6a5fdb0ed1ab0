"""GPTQ: rounds the columns of a matrix in turn, and corrects the remaining columns for the errors already made.

It minimizes the error of the output, not of the matrix. For inputs x with second moments H = mean(x x^T), a matrix W
rounded to Q errs by mean |(W - Q) x|^2 = trace((W - Q) H (W - Q)^T), in which errors of different columns can cancel.
A triangular factor of the inverse of H gives the correction of later columns that cancels most of a column's error
(Frantar et al. 2022, https://arxiv.org/abs/2210.17323).
"""

from typing import NamedTuple

import torch


_DAMPING, _DAMPING_OF_FEW = 0.05, 0.15
"""Shares of the mean of H's diagonal that are added to it; the latter is multiplied by columns / inputs, because few
inputs say little about others. Chosen by the divergence of the embedded voice, calibrated with 1 to 64 texts and
measured on other texts.
"""
_BLOCK = 128
"""Columns that are corrected one by one; the columns after them are corrected once per block, by a matrix product."""
_ROWS_AT_ONCE = 2048
"""Rows that are float32 at a time, to bound memory."""


class Moments(NamedTuple):
    """The second moments of inputs x [k].

    Attributes:
        mean: [k, k], float32: the mean of x x^T.
        num_inputs: their number.
    """

    mean: torch.Tensor
    num_inputs: int


class ErrorFeedback(NamedTuple):
    """How later columns correct the error of a column, for inputs with given second moments.

    Attributes:
        order: [k], int64: columns with the largest inputs come first, while most other columns can correct them.
        factors: [k, k], float32, upper triangular with ones on the diagonal: column `order[j]` is lowered by
            `factors[i, j]` times the error of column `order[i]`.
    """

    order: torch.Tensor
    factors: torch.Tensor


def error_feedback(moments: Moments) -> ErrorFeedback:
    """Compute the corrections for inputs with these moments.

    Raises:
        RuntimeError: the moments are not finite.
    """
    if not moments.mean.isfinite().all():
        raise RuntimeError("error_feedback: moments must be finite, got NaN or infinity")
    diagonal = moments.mean.diagonal()
    order = diagonal.argsort(descending=True, stable=True)
    damped = moments.mean[order][:, order]
    # If all inputs are zero, H is the identity: no column corrects another.
    mean = diagonal.mean() if diagonal.any() else 1
    damped.diagonal().add_(mean * (_DAMPING + _DAMPING_OF_FEW * len(damped) / max(moments.num_inputs, 1)))
    # The inverse of H is U^T U with an upper triangular U: flipped, the inverse of the flipped H's Cholesky factor.
    lower = torch.linalg.cholesky(damped.flip(0, 1))
    identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    factors = torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1)
    return ErrorFeedback(order, factors / factors.diagonal()[:, None])


def round_with_feedback(
    weight: torch.Tensor,
    scales: torch.Tensor,
    group: int,
    dtype: torch.dtype,
    limits: tuple[int, int],
    feedback: ErrorFeedback,
) -> torch.Tensor:
    """Round a matrix for the min error of its output.

    Args:
        weight: [n, k].
        scales: [n, groups], float32.
        group: columns that share a scale.
        dtype: the dtype of the result: an integer type or float8_e4m3fn.
        limits: the min and the max value.
        feedback: the corrections for the inputs.

    Returns:
        The values [n, k]; the rounded weight is values * scales.
    """
    k = weight.shape[1]
    order, factors = feedback
    groups = order // group
    rounded = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for first in range(0, len(weight), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        # Transposed: columns become contiguous.
        columns = weight[rows].T[order].float()
        scale = scales[rows].T[groups]
        inverse = torch.where(scale == 0, 0, 1 / scale)
        values = torch.empty(columns.shape, dtype=dtype, device=weight.device)
        for begin in range(0, k, _BLOCK):
            end = min(begin + _BLOCK, k)
            for j in range(begin, end):
                value = (columns[j] * inverse[j]).clamp_(*limits)
                values[j] = value if dtype.is_floating_point else value.round_()
                columns[j].addcmul_(values[j].float(), scale[j], value=-1)  # the column now holds its error
                columns[j + 1 : end].addr_(factors[j, j + 1 : end], columns[j], alpha=-1)
            columns[end:].addmm_(factors[begin:end, end:].T, columns[begin:end], alpha=-1)
        rounded[rows] = values[order.argsort()].T
    return rounded
