"""`higgs_native.ops.linear` in plain PyTorch."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x**2) + eps) * weight` over the last dimension, in float32."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.float()


def linear(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None = None) -> None:
    """See `higgs_native.ops.linear`."""
    product = x @ weight.float().T
    out.copy_(product if residual is None else residual + product)


def rms_norm_linear(
    out: torch.Tensor, x: torch.Tensor, norm_weight: torch.Tensor, eps: float, weight: torch.Tensor
) -> None:
    """See `higgs_native.ops.rms_norm_linear`."""
    linear(out, rms_norm(x, norm_weight, eps), weight)
