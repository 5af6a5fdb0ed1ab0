"""`higgs_native.ops.audio_tokenizer` in plain PyTorch."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

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


class _Layer(NamedTuple):
    """A layer of the acoustic decoder.

    Attributes:
        run: given the input [1, channels, columns] returns the output, as if the audio began and ended there.
        channels: of the input.
        keep: input columns, the last ones, that later output columns depend on.
        lag: output columns, the last ones, that depend on input columns that follow.
        stride: output columns per input column.
    """

    run: Callable[[torch.Tensor], torch.Tensor]
    channels: int
    keep: int
    lag: int
    stride: int = 1


def _acoustic_layers(weights: Sequence[torch.Tensor], dilations: Sequence[int]) -> Iterator[_Layer]:
    rest = list(weights)

    def take(count: int) -> list[torch.Tensor]:
        taken = rest[:count]
        del rest[:count]
        return taken

    def conv(weight: torch.Tensor, bias: torch.Tensor) -> _Layer:
        def run(x: torch.Tensor) -> torch.Tensor:
            out = x.new_empty(1, weight.shape[0], x.shape[2])
            conv1d(out, x, weight, bias)
            return out

        return _Layer(run, weight.shape[1], weight.shape[2] - 1, weight.shape[2] // 2)

    def upsampling(alpha: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> _Layer:
        stride = weight.shape[1]

        def run(x: torch.Tensor) -> torch.Tensor:
            out = x.new_empty(1, weight.shape[0], x.shape[2] * stride)
            snake_conv_transpose1d(out, x, alpha, weight, bias)
            return out

        return _Layer(run, weight.shape[2], 1, (stride + 1) // 2, stride)

    def unit(parameters: list[torch.Tensor], dilation: int) -> _Layer:
        def run(x: torch.Tensor) -> torch.Tensor:
            out = torch.empty_like(x)
            alpha1, weight1, bias1, alpha2, weight2, bias2 = parameters
            residual_unit(out, x, alpha1, weight1, bias1, alpha2, weight2, bias2, dilation)
            return out

        span = (parameters[1].shape[2] - 1) * dilation
        return _Layer(run, parameters[1].shape[1], span, span // 2)

    yield conv(*take(2))
    while len(rest) > 3:
        yield upsampling(*take(3))
        for dilation in dilations:
            yield unit(take(6), dilation)
    (alpha,) = take(1)
    yield _Layer(lambda x: _snake(x, alpha), len(alpha), 0, 0)
    yield conv(*take(2))


def acoustic_decoder(
    audio: torch.Tensor,
    state: torch.Tensor,
    latent: torch.Tensor,
    weights: Sequence[torch.Tensor],
    dilations: Sequence[int],
    frames_before: int,
    is_last: bool,
) -> None:
    """See `higgs_native.ops.acoustic_decoder`."""
    before, x = frames_before, latent.T[None]
    states = state
    for layer in _acoustic_layers(weights, dilations):
        ends, states = states.tensor_split([layer.channels * layer.keep])
        ends = ends.view(layer.channels, layer.keep)
        kept = min(layer.keep, before)
        x = torch.cat([ends[None, :, layer.keep - kept :], x], dim=2)
        columns = x.shape[2]
        begin = max(before * layer.stride - layer.lag, 0)  # columns of the output that earlier calls have computed
        end = columns * layer.stride - (0 if is_last else layer.lag)
        first = begin - (before - kept) * layer.stride
        # torch convolves no column only with its padding; what comes out is dropped.
        out = layer.run(x if columns else F.pad(x, (0, 1)))[:, :, first : max(end, first)]
        now_kept = min(layer.keep, columns)
        ends[:, layer.keep - now_kept :] = x[0, :, columns - now_kept :]
        before, x = begin, out
    audio.copy_(x[0, 0])


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
