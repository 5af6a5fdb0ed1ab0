"""Products with a weight matrix that is streamed once for up to 16 rows."""

import torch

from higgs_native.ops._library import register_fakes


register_fakes("linear", "rms_norm_linear")


def linear(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None = None) -> None:
    """`out = x @ weight.T + residual`, accumulated in float32.

    Args:
        out: [rows, n], float32; written; may be `residual` itself.
        x: [rows, k], float32.
        weight: [n, k], float32 or bfloat16.
        residual: [rows, n], float32, or None.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    torch.ops.higgs_native.linear(out, x, weight, residual)


def rms_norm_linear(
    out: torch.Tensor, x: torch.Tensor, norm_weight: torch.Tensor, eps: float, weight: torch.Tensor
) -> None:
    """`out = (x / sqrt(mean(x**2) + eps) * norm_weight) @ weight.T`, accumulated in float32.

    Args:
        out: [rows, n], float32; written.
        x: [rows, k], float32.
        norm_weight: [k], float32 or bfloat16.
        eps: what is added to the mean square.
        weight: [n, k], float32 or bfloat16.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    torch.ops.higgs_native.rms_norm_linear(out, x, norm_weight, eps, weight)
