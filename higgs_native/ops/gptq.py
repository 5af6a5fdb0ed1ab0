"""GPTQ: columns of a matrix are rounded one after the other, and those to come make up for the errors of those before.

What counts is the error of the product. For inputs x whose second moments are H = mean(x x^T), a matrix W rounded to Q
errs by mean |(W - Q) x|^2 = trace((W - Q) H (W - Q)^T), a form in which errors of different columns can cancel. Given
the error of a column, the change of all later ones that cancels most of it is read off a triangular factor of the
inverse of H (Frantar et al. 2022, https://arxiv.org/abs/2210.17323).
"""

from typing import NamedTuple

import torch


_DAMPING, _DAMPING_OF_FEW = 0.05, 0.15
"""Of the mean of H's diagonal, added to it: the latter times the columns for each input. Few inputs tell little about
others. Both were chosen by the divergence of the embedded voice, calibrated with 1 to 64 texts, on others.
"""
_BLOCK = 128
"""Columns between which errors are passed on at once; to those behind them in one product."""
_ROWS_AT_ONCE = 2048


class Moments(NamedTuple):
    """The second moments of inputs x [k].

    Attributes:
        mean: [k, k], float32: of x x^T.
        count: of the inputs.
    """

    mean: torch.Tensor
    count: int


class ErrorFeedback(NamedTuple):
    """How the error of a column is made up for, for inputs of certain second moments.

    Attributes:
        order: [k], int64: columns with the largest inputs come first, while all others can still make up for them.
        factors: [k, k], float32, upper triangular with ones on the diagonal: column `order[j]` is lowered by
            `factors[i, j]` times the error of column `order[i]`.
    """

    order: torch.Tensor
    factors: torch.Tensor


def error_feedback(moments: Moments) -> ErrorFeedback:
    """Prepare rounding for inputs.

    Raises:
        RuntimeError: their moments are not finite.
    """
    if not moments.mean.isfinite().all():
        raise RuntimeError("error_feedback: the moments hold values that are not finite")
    diagonal = moments.mean.diagonal()
    order = diagonal.argsort(descending=True, stable=True)
    damped = moments.mean[order][:, order]
    # Where no input was other than zero, nothing can be made up for.
    mean = diagonal.mean() if diagonal.any() else 1
    damped.diagonal().add_(mean * (_DAMPING + _DAMPING_OF_FEW * len(damped) / max(moments.count, 1)))
    # The inverse of H is U^T U with an upper triangular U: flipped, the inverse of the flipped H's Cholesky factor.
    lower = torch.linalg.cholesky(damped.flip(0, 1))
    identity = torch.eye(len(lower), device=lower.device)
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
    """Round a matrix so that its product errs little.

    Args:
        weight: [n, k].
        scales: [n, groups], float32.
        group: columns that share a scale.
        dtype: of the result: integers, or float8_e4m3fn.
        limits: the least and the largest value.
        feedback: of the inputs.

    Returns:
        [n, k]: values which times their scales stand for the weight.
    """
    k = weight.shape[1]
    order, factors = feedback
    groups = order // group
    rounded = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for first in range(0, len(weight), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        # Transposed, so that columns are contiguous.
        columns = weight[rows].T[order].float()
        scale = scales[rows].T[groups]
        inverse = torch.where(scale == 0, 0, 1 / scale)
        values = torch.empty(columns.shape, dtype=dtype, device=weight.device)
        for begin in range(0, k, _BLOCK):
            end = min(begin + _BLOCK, k)
            for j in range(begin, end):
                value = (columns[j] * inverse[j]).clamp_(*limits)
                values[j] = value if dtype.is_floating_point else value.round_()
                columns[j].addcmul_(values[j].float(), scale[j], value=-1)  # from here on, its error
                columns[j + 1 : end].addr_(factors[j, j + 1 : end], columns[j], alpha=-1)
            columns[end:].addmm_(factors[begin:end, end:].T, columns[begin:end], alpha=-1)
        rounded[rows] = values[order.argsort()].T
    return rounded
