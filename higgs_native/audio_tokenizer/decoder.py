"""The audio tokenizer's decoder, for codes that come all at once or a few frames at a time.

The sum of the quantizer's entries, a linear layer (both in one table), and the DAC decoder (arXiv 2306.06546) without
a final tanh. Every layer is a convolution. It keeps the end of its input, so that a column is computed once, when all
that it depends on is there, and has the same bits however the codes are divided.
"""

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch

from higgs_native import ops
from higgs_native.audio_tokenizer.config import DILATIONS, HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.layers import Weights
from higgs_native.errors import AudioError, ParameterError
from higgs_native.utils.checks import check_integer, integer_tensor


@dataclass(frozen=True)
class Layer:
    """A convolution over time, padded with zeros to `stride` output columns for a column of input.

    Attributes:
        run: writes the columns of the output from the given one on that `out` has room for: (out, x, first).
        channels: of the output.
        lag: with n columns of input, all but the last `lag` columns of output can be computed.
        keep: how many of the last columns of input the next columns of output depend on.
    """

    run: Callable[[torch.Tensor, torch.Tensor, int], None]
    channels: int
    lag: int
    keep: int
    stride: int = 1


class StreamingDecoder:
    """Decodes the codes of one audio, as they come.

    Args:
        weights: as `codec.prepare` makes them.
        config: of the checkpoint.
        lookahead: how many frames must follow a frame before its audio is given out. None: as many as it depends on,
            which is `config.decoder_context`, 10. Fewer bring the audio earlier; at the end of each piece what is
            missing is computed as if the audio ended there, which costs work and an error. The error does not grow,
            since later frames are not derived from it. In pieces of 10 frames its RMS, against the audio's own, was
            0.0002 for 6 frames, 0.001 for 4, 0.015 for 2 and 0.10 for none with a small codec trained on speech, and
            0.05, 0.11, 0.22 and 0.37 with random weights (random codes, `benchmarks/bench_streaming.py`).

    Raises:
        ParameterError: lookahead is outside of 0 .. `config.decoder_context`.
    """

    def __init__(self, weights: Weights, config: HiggsAudioTokenizerConfig, lookahead: int | None = None) -> None:
        self.lookahead = checked_lookahead(lookahead, config)
        self._exact = self.lookahead == config.decoder_context
        self._weights = weights
        self._config = config
        self._layers = list(decoder_layers(weights, config))
        # By layer: the end of its input, and the first column of output, counted from there, that is yet to compute.
        self._inputs: list[torch.Tensor | None] = [None] * len(self._layers)
        self._first = [0] * len(self._layers)
        self._frames = 0  # taken in
        self._ended = False
        self._computed = torch.empty(0)  # samples that were not given out yet, or that are to be given out no more
        self._position = 0  # the sample with which they begin
        self._given = 0  # samples given out

    @torch.no_grad()
    def decode(self, codes: torch.Tensor | np.ndarray, is_last: bool = False) -> torch.Tensor:
        """Take the next frames, and return the audio of those frames that have become final.

        Args:
            codes: [codebooks, frames], integers from 0 to the codebook size, exclusive; there may be no frames.
            is_last: no more will follow: return the audio of all frames that are left.

        Returns:
            [frames * hop length], float32, on the CPU. The pieces joined are the audio of all codes joined.

        Raises:
            AudioError: the shape or dtype is wrong, or a code out of range.
            ParameterError: the last codes have been taken already.
        """
        if self._ended:
            raise ParameterError("the last codes have been decoded; a new audio needs a new decoder")
        codes = checked_codes(codes, self._config)
        self._ended = is_last
        self._frames += codes.shape[1]
        self._compute(codes, is_last)
        hop_length = self._config.hop_length
        until = self._frames if is_last else max(self._frames - self.lookahead, 0)
        early = self
        if not self._exact and not is_last and until * hop_length > self._position + len(self._computed):
            early = copy(self)
            early._inputs, early._first = list(self._inputs), list(self._first)
            early._compute(codes[:, :0], is_last=True)
        audio = early._computed[self._given - self._position : until * hop_length - self._position]
        self._given += len(audio)
        drop = min(self._given - self._position, len(self._computed))
        self._computed = self._computed[drop:].clone()
        self._position += drop
        return audio

    def _compute(self, codes: torch.Tensor, is_last: bool) -> None:
        """Put codes through the layers, and the samples that come out behind `_computed`."""
        table = self._weights["decode.table"]
        latent = table.new_empty(codes.shape[1], self._config.acoustic_hidden_size)
        ops.rvq_decode(latent, codes.to(table.device), table, self._weights["decode.bias"])
        x = latent.T[None].contiguous()
        for index, layer in enumerate(self._layers):
            x = self._advance(index, layer, x, is_last)
        self._computed = torch.cat([self._computed, x[0, 0].cpu()])

    def _advance(self, index: int, layer: Layer, x: torch.Tensor, is_last: bool) -> torch.Tensor:
        """Give a layer its next columns of input; return those of its output that can be computed."""
        kept, first = self._inputs[index], self._first[index]
        if kept is not None and kept.shape[2]:
            x = torch.cat([kept, x], dim=2)
        columns = x.shape[2]
        last = max(columns * layer.stride - (0 if is_last else layer.lag), first)
        out = x.new_empty(1, layer.channels, last - first)
        if last > first:
            layer.run(out, x, first)
        keep = min(layer.keep, columns)
        self._inputs[index] = x[:, :, columns - keep :].contiguous() if keep < columns else x
        self._first[index] = last - (columns - keep) * layer.stride
        return out


def checked_codes(codes: torch.Tensor | np.ndarray, config: HiggsAudioTokenizerConfig) -> torch.Tensor:
    """Return codes [codebooks, frames] as contiguous int32 on the CPU.

    Raises:
        AudioError: the type, shape or dtype is wrong, or a code out of range.
    """
    codes = integer_tensor("codes", codes, AudioError)
    if codes.dim() != 2 or codes.shape[0] != config.num_codebooks:
        raise AudioError(f"codes must be [{config.num_codebooks}, frames], got {list(codes.shape)}")
    if codes.numel():
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= config.codebook_size:
            raise AudioError(f"codes must lie in 0 .. {config.codebook_size - 1}, got {low if low < 0 else high}")
    return codes.to(device="cpu", dtype=torch.int32).contiguous()


def checked_lookahead(lookahead: int | None, config: HiggsAudioTokenizerConfig) -> int:
    """Return a lookahead in frames; None is as many as a frame depends on.

    Raises:
        ParameterError: it is outside of 0 .. `config.decoder_context`.
    """
    most = config.decoder_context
    if lookahead is None:
        return most
    check_integer("lookahead", lookahead)
    if not 0 <= lookahead <= most:
        raise ParameterError(f"lookahead must lie in 0 .. {most} frames, got {lookahead}")
    return lookahead


def decoder_layers(weights: Weights, config: HiggsAudioTokenizerConfig) -> Iterator[Layer]:
    """The DAC decoder: [1, acoustic hidden size, frames] -> [1, 1, frames * hop length]."""
    yield _conv1d(weights, "acoustic_decoder.conv1")
    for i, stride in enumerate(config.upsampling_ratios):
        block = f"acoustic_decoder.block.{i}"
        yield _upsampling(weights, block, stride)
        for unit, dilation in enumerate(DILATIONS, start=1):
            yield _residual_unit(weights, f"{block}.res_unit{unit}", dilation)
    yield _snake(weights, "acoustic_decoder.snake1")
    yield _conv1d(weights, "acoustic_decoder.conv2")


def _conv1d(weights: Weights, name: str) -> Layer:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    channels, _, taps = weight.shape

    def run(out: torch.Tensor, x: torch.Tensor, first: int) -> None:
        ops.conv1d(out, x, weight, bias, first)

    return Layer(run, channels, lag=taps // 2, keep=taps - 1)


def _snake(weights: Weights, name: str) -> Layer:
    alpha = weights[f"{name}.alpha"]
    return Layer(lambda out, x, first: ops.snake(out, x, alpha), len(alpha), lag=0, keep=0)


def _upsampling(weights: Weights, block: str, stride: int) -> Layer:
    names = ("snake1.alpha", "conv_t1.weight", "conv_t1.bias")
    alpha, weight, bias = (weights[f"{block}.{name}"] for name in names)

    def run(out: torch.Tensor, x: torch.Tensor, first: int) -> None:
        ops.snake_conv_transpose1d(out, x, alpha, weight, bias, first)

    # A column of output is made of two columns of input; the first is half a stride earlier than the output's.
    return Layer(run, len(bias), lag=(stride + 1) // 2, keep=1, stride=stride)


def _residual_unit(weights: Weights, name: str, dilation: int) -> Layer:
    names = ("snake1.alpha", "conv1.weight", "conv1.bias", "snake2.alpha", "conv2.weight", "conv2.bias")
    tensors = [weights[f"{name}.{parameter}"] for parameter in names]
    channels, _, taps = tensors[1].shape

    def run(out: torch.Tensor, x: torch.Tensor, first: int) -> None:
        ops.residual_unit(out, x, *tensors, dilation, first)

    reach = (taps - 1) * dilation
    return Layer(run, channels, lag=reach // 2, keep=reach)
