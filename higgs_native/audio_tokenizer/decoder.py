"""The audio tokenizer's decoder, for codes that arrive all at once or a few frames at a time.

A table holds the quantizer's entries after their linear layer; their sum goes through the DAC decoder (arXiv
2306.06546) without its final tanh. Every layer is a convolution that keeps the end of its input. So each column is
computed once, when all its input is there, with the same bits however the codes are divided.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from higgs_native import ops
from higgs_native.audio_tokenizer.config import DILATIONS, HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.layers import Weights
from higgs_native.errors import AudioError, ParameterError
from higgs_native.utils.checks import check_flag, check_integer
from higgs_native.utils.tensors import integer_tensor
from higgs_native.utils.uncopyable import Uncopyable


@dataclass(frozen=True)
class Layer:
    """A convolution over time, padded with zeros so that each input column gives `stride` output columns.

    Attributes:
        run: called with (out, x, first), writes output columns from `first` on, as many as `out` has.
        channels: of the output.
        lag: output columns, the last ones, that depend on input columns that follow.
        keep: input columns, the last ones, that later output columns depend on.
        stride: output columns per input column.
    """

    run: Callable[[torch.Tensor, torch.Tensor, int], None]
    channels: int
    lag: int
    keep: int
    stride: int = 1


class StreamingDecoder(Uncopyable):
    """Decodes the codes of one audio as they arrive.

    Args:
        weights: as `pack_weights` returns them.
        config: of the checkpoint.
        lookahead: frames that must follow a frame before its audio is returned. None: all that it depends on,
            `config.decoder_context` (10). With fewer, audio comes earlier, but the end of each piece is computed as if
            the audio ended there, which costs work and an error. The error does not grow, since later frames are not
            derived from it. Its RMS relative to the audio's, for random codes in pieces of 10 frames
            (`benchmarks/bench_streaming.py`), was 0.0002 for 6 frames, 0.001 for 4, 0.015 for 2 and 0.10 for none
            with a small audio tokenizer trained on speech, and 0.05, 0.11, 0.22 and 0.37 with random weights.

    Raises:
        ParameterError: lookahead is not between 0 and `config.decoder_context`.
    """

    _instead = "; its audio may be"

    def __init__(self, weights: Weights, config: HiggsAudioTokenizerConfig, lookahead: int | None = None) -> None:
        self.lookahead = checked_lookahead(lookahead, config)
        self._exact = self.lookahead == config.decoder_context
        self._weights = weights
        self._config = config
        self._layers = list(decoder_layers(weights, config))
        # By layer: the end of its input, and the next output column to compute, counted from where that end begins.
        self._inputs: list[torch.Tensor | None] = [None] * len(self._layers)
        self._first = [0] * len(self._layers)
        self._num_frames = 0  # decoded so far
        self._ended = False
        # The computed samples that are not dropped yet, from sample `_first_sample` on. With less lookahead, samples
        # are returned before their final values are computed; these are dropped later.
        self._computed = torch.empty(0, dtype=torch.float32, device="cpu")
        self._first_sample = 0
        self._num_returned = 0  # samples

    @torch.no_grad()
    def decode(self, codes: torch.Tensor | np.ndarray, is_last: bool = False) -> torch.Tensor:
        """Decode the next frames; return the audio of all frames that enough frames follow.

        Args:
            codes: [codebooks, frames], integers from 0 to the codebook size, exclusive; there may be no frames.
            is_last: no frames follow: return the audio of all remaining frames.

        Returns:
            [frames * hop length], float32, on the CPU. All pieces, concatenated, are the audio of all codes.

        Raises:
            AudioError: the shape or dtype is wrong, or a code out of range.
            ParameterError: the last codes have been decoded already.
        """
        check_flag("is_last", is_last)
        if self._ended:
            raise ParameterError("codes must not follow the last ones; a new audio needs a new decoder")
        codes = checked_codes(codes, self._config)
        self._ended = is_last
        self._num_frames += codes.shape[1]
        self._compute(codes, is_last)
        num_final = self._num_frames if is_last else max(self._num_frames - self.lookahead, 0)
        end = num_final * self._config.hop_length
        early = self
        if not self._exact and not is_last and end > self._first_sample + len(self._computed):
            early = object.__new__(type(self))
            vars(early).update(vars(self))
            early._inputs, early._first = list(self._inputs), list(self._first)
            early._compute(codes[:, :0], is_last=True)
        audio = early._computed[self._num_returned - self._first_sample : end - self._first_sample]
        self._num_returned += len(audio)
        drop = min(self._num_returned - self._first_sample, len(self._computed))
        self._computed = self._computed[drop:].clone()
        self._first_sample += drop
        return audio

    def _compute(self, codes: torch.Tensor, is_last: bool) -> None:
        """Run codes through the layers, and append the resulting samples to `_computed`."""
        table = self._weights["decode.table"]
        latent = table.new_empty(codes.shape[1], self._config.acoustic_hidden_size)
        ops.rvq_decode(latent, codes.to(table.device), table, self._weights["decode.bias"])
        x = latent.T[None].contiguous()
        for index, layer in enumerate(self._layers):
            x = self._advance(index, layer, x, is_last)
        self._computed = torch.cat([self._computed, x[0, 0].cpu()])

    def _advance(self, index: int, layer: Layer, x: torch.Tensor, is_last: bool) -> torch.Tensor:
        """Run a layer on its next input columns [1, in, n]; return the output columns that depend on no later ones."""
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
            raise AudioError(f"codes must be between 0 and {config.codebook_size - 1}, got {low if low < 0 else high}")
    return codes.to(device="cpu", dtype=torch.int32).contiguous()


def checked_lookahead(lookahead: int | None, config: HiggsAudioTokenizerConfig) -> int:
    """Return a lookahead in frames, for None `config.decoder_context`.

    Raises:
        ParameterError: it is not between 0 and `config.decoder_context`.
    """
    if lookahead is None:
        return config.decoder_context
    check_integer("lookahead", lookahead)
    if not 0 <= lookahead <= config.decoder_context:
        raise ParameterError(f"lookahead must be between 0 and {config.decoder_context} frames, got {lookahead}")
    return lookahead


def decoder_layers(weights: Weights, config: HiggsAudioTokenizerConfig) -> Iterator[Layer]:
    """Yield the DAC decoder's layers: [1, acoustic hidden size, frames] -> [1, 1, frames * hop length], float32."""
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

    # An output column depends on two input columns, the first of them half a stride earlier.
    return Layer(run, len(bias), lag=(stride + 1) // 2, keep=1, stride=stride)


def _residual_unit(weights: Weights, name: str, dilation: int) -> Layer:
    names = ("snake1.alpha", "conv1.weight", "conv1.bias", "snake2.alpha", "conv2.weight", "conv2.bias")
    alpha1, weight1, bias1, alpha2, weight2, bias2 = (weights[f"{name}.{parameter}"] for parameter in names)
    channels, _, taps = weight1.shape

    def run(out: torch.Tensor, x: torch.Tensor, first: int) -> None:
        ops.residual_unit(out, x, alpha1, weight1, bias1, alpha2, weight2, bias2, dilation, first)

    span = (taps - 1) * dilation
    return Layer(run, channels, lag=span // 2, keep=span)
