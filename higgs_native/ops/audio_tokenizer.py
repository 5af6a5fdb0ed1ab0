"""The audio tokenizer's building blocks: Snake, convolutions, residual units, and the residual vector quantizer.

Convolutions pad with zeros to keep the length, and write the columns of the result that `out` has room for, from
`first` on. A stream has the columns before them already, and not yet the input that those behind them need. A column
has the same bits however the result is divided into calls.
"""

from collections.abc import Sequence

import torch

from higgs_native.ops._library import register_fakes


register_fakes(
    "snake", "conv1d", "residual_unit", "snake_conv_transpose1d", "acoustic_decoder", "rvq_encode", "rvq_decode"
)


def snake(out: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor) -> None:
    """`out = x + sin(alpha * x)**2 / (alpha + 1e-9)`, the activation of Ziyin et al. (arXiv 2006.08195).

    Args:
        out: [batch, channels, time], float32; written; may be `x` itself.
        x: [batch, channels, time], float32.
        alpha: [channels], float32.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    torch.ops.higgs_native.snake(out, x, alpha)


def conv1d(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, first: int = 0) -> None:
    """`out = conv1d(x)`, padded to keep the length.

    Args:
        out: [batch, out channels, columns], float32; written.
        x: [batch, in channels, time], float32.
        weight: [out channels, in channels, taps], float32, an odd number of taps.
        bias: [out channels], float32.
        first: `out` takes columns `first` to `first` + columns of the result's `time`.

    Raises:
        RuntimeError: a shape, dtype or value does not fit.
    """
    torch.ops.higgs_native.conv1d(out, x, weight, bias, first)


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
    """`out = x + conv2(snake2(conv1(snake1(x))))`, both convolutions padded to keep the length.

    Args:
        out: [batch, channels, columns], float32; written; not `x`.
        x: [batch, channels, time], float32.
        alpha1, bias1, alpha2, bias2: [channels], float32.
        weight1: [channels, channels, taps], float32, an odd number of taps, `dilation` apart.
        weight2: [channels, channels, 1], float32.
        dilation: at least 1.
        first: `out` takes columns `first` to `first` + columns of the result's `time`.

    Raises:
        RuntimeError: a shape, dtype or value does not fit.
    """
    torch.ops.higgs_native.residual_unit(out, x, alpha1, weight1, bias1, alpha2, weight2, bias2, dilation, first)


def snake_conv_transpose1d(
    out: torch.Tensor,
    x: torch.Tensor,
    alpha: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    first: int = 0,
) -> None:
    """`out = conv_transpose1d(snake(x))` with kernel 2 * stride, padding ceil(stride / 2), output padding stride % 2.

    Args:
        out: [batch, out channels, columns], float32; written.
        x: [batch, in channels, time], float32.
        alpha: [in channels], float32.
        weight: [out channels, stride, in channels, 2], float32: by phase of the output; see `pack_conv_transpose1d`.
            The stride is at least 2.
        bias: [out channels], float32.
        first: `out` takes columns `first` to `first` + columns of the result's `time * stride`.

    Raises:
        RuntimeError: a shape, dtype or value does not fit.
    """
    torch.ops.higgs_native.snake_conv_transpose1d(out, x, alpha, weight, bias, first)


def pack_conv_transpose1d(weight: torch.Tensor) -> torch.Tensor:
    """A transposed convolution's weight as `snake_conv_transpose1d` reads it.

    Output u * stride + phase (padding aside) is made of inputs u - 1 and u, by taps phase + stride and phase.

    Args:
        weight: [in channels, out channels, 2 * stride], as `torch.nn.ConvTranspose1d` keeps it.

    Returns:
        [out channels, stride, in channels, 2], contiguous.
    """
    in_channels, out_channels, kernel = weight.shape
    taps = weight.view(in_channels, out_channels, 2, kernel // 2).flip(2)
    return taps.permute(1, 3, 0, 2).contiguous()


def acoustic_decoder(
    audio: torch.Tensor,
    state: torch.Tensor,
    latent: torch.Tensor,
    weights: Sequence[torch.Tensor],
    dilations: Sequence[int],
    frames_before: int,
    is_last: bool,
) -> None:
    """The next samples of an audio, by all layers of DAC's decoder (arXiv 2306.06546) but its final tanh.

    The layers are a convolution; blocks of an upsampling transposed convolution and residual units; Snake; and a
    convolution to one channel. Each computes the columns whose input is complete, and keeps the end of its input. So a
    sample has the same bits however the frames are divided into calls.

    Args:
        audio: [samples], float32; written: all samples that can be computed from the frames so far, without those of
            earlier calls.
        state: [values], float32; read if there were frames before, and written. For each layer, the last columns of
            its input that later ones depend on, [channels, columns], at the right if there are fewer: taps - 1
            columns, a dilation apart; one of a transposed convolution.
        latent: [frames, channels], float32: the next frames.
        weights: float32, as the operators of the single layers have them: of the first convolution weight and bias; of
            each block alpha, weight and bias of its transposed convolution, then alpha1, weight1, bias1, alpha2,
            weight2 and bias2 of each residual unit; alpha of the last Snake; weight and bias of the last convolution.
        dilations: of a block's residual units.
        frames_before: the number of frames in earlier calls.
        is_last: no frames follow.

    Raises:
        RuntimeError: a shape, dtype or value does not fit.
    """
    torch.ops.higgs_native.acoustic_decoder(audio, state, latent, weights, dilations, frames_before, is_last)


def rvq_encode(
    codes: torch.Tensor,
    embeddings: torch.Tensor,
    codebooks: torch.Tensor,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
) -> None:
    """Residual vector quantization: per level project in, take the nearest entry, project it out, subtract.

    Nearest is the least `|x|^2 - 2 x . e + |e|^2` in float32; of equal entries the first.

    Args:
        codes: [levels, frames], int32; written.
        embeddings: [frames, width], float32.
        codebooks: [levels, entries, dim], float32.
        in_weight, in_bias: [levels, dim, width] and [levels, dim], float32.
        out_weight, out_bias: [levels, width, dim] and [levels, width], float32.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    torch.ops.higgs_native.rvq_encode(codes, embeddings, codebooks, in_weight, in_bias, out_weight, out_bias)


def rvq_decode(out: torch.Tensor, codes: torch.Tensor, table: torch.Tensor, bias: torch.Tensor) -> None:
    """`out[t] = bias + sum over levels of table[level, codes[level, t]]`.

    Args:
        out: [frames, width], float32; written.
        codes: [levels, frames], int32.
        table: [levels, entries, width], float32: each entry, through every linear map that follows.
        bias: [width], float32: the constant part of those maps.

    Raises:
        RuntimeError: a shape or dtype does not fit, or, on the CPU, a code lies outside the table. On CUDA its frame
            is NaN.
    """
    torch.ops.higgs_native.rvq_decode(out, codes, table, bias)
