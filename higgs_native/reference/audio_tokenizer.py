"""`higgs_native.ops.audio_tokenizer` in plain PyTorch."""

import torch
from torch.nn import functional as F


def snake(out: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor) -> None:
    """See `higgs_native.ops.snake`."""
    out.copy_(_snake(x, alpha))


def conv1d(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, first: int = 0) -> None:
    """See `higgs_native.ops.conv1d`."""
    out.copy_(_columns(F.conv1d(x, weight, bias, padding=weight.shape[2] // 2), out, first))


def residual_unit(
    out: torch.Tensor,
    x: torch.Tensor,
    alpha1: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor,
    alpha2: torch.Tensor,
    weight2: torch.Tensor,
    bias2: torch.Tensor,
    dilation: int,
    first: int = 0,
) -> None:
    """See `higgs_native.ops.residual_unit`."""
    padding = (weight1.shape[2] - 1) // 2 * dilation
    middle = F.conv1d(_snake(x, alpha1), weight1, bias1, padding=padding, dilation=dilation)
    out.copy_(_columns(x + F.conv1d(_snake(middle, alpha2), weight2, bias2), out, first))


def snake_conv_transpose1d(
    out: torch.Tensor,
    x: torch.Tensor,
    alpha: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    first: int = 0,
) -> None:
    """See `higgs_native.ops.snake_conv_transpose1d`."""
    stride = weight.shape[1]
    # Back to [in channels, out channels, 2 * stride].
    weight = weight.permute(2, 0, 3, 1).flip(2).flatten(2)
    padding, output_padding = (stride + 1) // 2, stride % 2
    result = F.conv_transpose1d(_snake(x, alpha), weight, bias, stride, padding, output_padding)
    out.copy_(_columns(result, out, first))


def rvq_encode(
    codes: torch.Tensor,
    embeddings: torch.Tensor,
    codebooks: torch.Tensor,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
) -> None:
    """See `higgs_native.ops.rvq_encode`."""
    residual = embeddings
    for level, codebook in enumerate(codebooks):
        x = F.linear(residual, in_weight[level], in_bias[level])
        distances = x.pow(2).sum(1, keepdim=True) - 2 * x @ codebook.T + codebook.pow(2).sum(1)
        codes[level] = distances.argmin(1)
        residual = residual - F.linear(codebook[codes[level].long()], out_weight[level], out_bias[level])


def rvq_decode(out: torch.Tensor, codes: torch.Tensor, table: torch.Tensor, bias: torch.Tensor) -> None:
    """See `higgs_native.ops.rvq_decode`."""
    out.copy_(bias)
    for level, entries in enumerate(table):
        out += entries[codes[level].long()]


def _columns(result: torch.Tensor, out: torch.Tensor, first: int) -> torch.Tensor:
    """Return the columns of `result` from `first` on that fit `out`."""
    return result[..., first : first + out.shape[2]]


def _snake(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    alpha = alpha[:, None]
    return x + torch.sin(alpha * x).pow(2) / (alpha + 1e-9)
