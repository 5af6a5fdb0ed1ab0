"""The audio tokenizer's decoder, for codes that arrive all at once or a few frames at a time.

A table holds the quantizer's entries after their linear layer; their sum goes through the DAC decoder (arXiv
2306.06546) without its final tanh. Each sample is computed once, when all frames that it depends on are there, with
the same bits however the codes are divided.
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
        run: called with (out, x): writes all output columns.
        weights: in the order of `ops.acoustic_decoder`.
        channels: of the output.
        lag: output columns, the last ones, that depend on input columns that follow.
        kept: values of the input that later output columns depend on: the last columns of all channels.
        stride: output columns per input column.
    """

    run: Callable[[torch.Tensor, torch.Tensor], None]
    weights: tuple[torch.Tensor, ...]
    channels: int
    lag: int
    kept: int
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
        layers = list(decoder_layers(weights, config))
        self._layer_weights = [weight for layer in layers for weight in layer.weights]
        self._state = weights["decode.table"].new_zeros(sum(layer.kept for layer in layers))
        self._lag = 0  # samples, the last ones, that depend on frames that follow
        for layer in layers:
            self._lag = self._lag * layer.stride + layer.lag
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
        self._compute(codes, is_last)
        num_final = self._num_frames if is_last else max(self._num_frames - self.lookahead, 0)
        end = num_final * self._config.hop_length
        early = self
        if not self._exact and not is_last and end > self._first_sample + len(self._computed):
            early = object.__new__(type(self))
            vars(early).update(vars(self))
            early._state = self._state.clone()
            early._compute(codes[:, :0], is_last=True)
        audio = early._computed[self._num_returned - self._first_sample : end - self._first_sample]
        self._num_returned += len(audio)
        drop = min(self._num_returned - self._first_sample, len(self._computed))
        self._computed = self._computed[drop:].clone()
        self._first_sample += drop
        return audio

    def _compute(self, codes: torch.Tensor, is_last: bool) -> None:
        """Append the samples of the next codes to `_computed`."""
        table = self._weights["decode.table"]
        latent = table.new_empty(codes.shape[1], self._config.acoustic_hidden_size)
        ops.rvq_decode(latent, codes.to(table.device), table, self._weights["decode.bias"])
        before = self._num_frames
        self._num_frames += codes.shape[1]
        begin, end = (max(frames * self._config.hop_length - self._lag, 0) for frames in (before, self._num_frames))
        audio = table.new_empty((self._num_frames * self._config.hop_length if is_last else end) - begin)
        ops.acoustic_decoder(audio, self._state, latent, self._layer_weights, DILATIONS, before, is_last)
        self._computed = torch.cat([self._computed, audio.cpu()])


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
    channels, in_channels, taps = weight.shape

    def run(out: torch.Tensor, x: torch.Tensor) -> None:
        ops.conv1d(out, x, weight, bias)

    return Layer(run, (weight, bias), channels, taps // 2, in_channels * (taps - 1))


def _snake(weights: Weights, name: str) -> Layer:
    alpha = weights[f"{name}.alpha"]
    return Layer(lambda out, x: ops.snake(out, x, alpha), (alpha,), len(alpha), lag=0, kept=0)


def _upsampling(weights: Weights, block: str, stride: int) -> Layer:
    names = ("snake1.alpha", "conv_t1.weight", "conv_t1.bias")
    alpha, weight, bias = (weights[f"{block}.{name}"] for name in names)

    def run(out: torch.Tensor, x: torch.Tensor) -> None:
        ops.snake_conv_transpose1d(out, x, alpha, weight, bias)

    # An output column depends on two input columns, the first of them half a stride earlier.
    return Layer(run, (alpha, weight, bias), len(bias), (stride + 1) // 2, kept=len(alpha), stride=stride)


def _residual_unit(weights: Weights, name: str, dilation: int) -> Layer:
    names = ("snake1.alpha", "conv1.weight", "conv1.bias", "snake2.alpha", "conv2.weight", "conv2.bias")
    alpha1, weight1, bias1, alpha2, weight2, bias2 = (weights[f"{name}.{parameter}"] for parameter in names)
    channels, _, taps = weight1.shape

    def run(out: torch.Tensor, x: torch.Tensor) -> None:
        ops.residual_unit(out, x, alpha1, weight1, bias1, alpha2, weight2, bias2, dilation)

    span = (taps - 1) * dilation
    return Layer(run, (alpha1, weight1, bias1, alpha2, weight2, bias2), channels, span // 2, channels * span)
