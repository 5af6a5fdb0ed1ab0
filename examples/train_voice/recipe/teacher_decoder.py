"""The teacher's decoder in bfloat16, which a CPU that multiplies bfloat16 runs several times as fast as its graph.

Nearly all of the graph's time goes here. Its weights, of 8 bits, are made whole numbers times a scale again. The graph
rounds what goes into each layer to 8 bits too, with one scale for a whole utterance; bfloat16 doesn't.

Activations keep time before channels in memory (`laid`). A norm and what follows it are two passes: one for mean and
variance, and a compiled one.
"""

import math
import re
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from recipe.snake import laid, sine_square


if TYPE_CHECKING:
    from onnx import GraphProto


STYLE = 128
"""Numbers of the style that the decoder takes: the first ones."""

_ROOT = "decoder.decoder"
_HOP, _WINDOW = 5, 20
"""Samples of the last transform."""
_SCALES = ((10, 5), (6, 3))
"""Stride and padding of the transposed convolutions."""
_DILATIONS = (1, 3, 5)
_EPSILON = 1e-5
_EXACT = "generator.conv_post"
"""The layer that gives logarithms and phases of spectra, which bfloat16 would make hoarse."""


def read_weights(graph: "GraphProto") -> dict[str, torch.Tensor]:
    """The decoder's weights in float32, by the names of its layers: `NAME.weight`, `NAME.bias` and `NAME.alpha...`."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(numpy_helper.to_array(stored[name]).copy())

    weights = {}
    for node in graph.node:
        found = re.fullmatch(
            rf"/{_ROOT.replace('.', '/')}/(.+?)(/Gemm_MatMul_quant|/Conv_quant|/Conv(Transpose)?)", node.name
        )
        if not found:
            continue
        # A layer of a list is called twice by it: asr_res/asr_res.0.
        name = re.sub(r"(?:^|/)(\w+)/(?=\1\.)", "", found[1]).replace("/", ".")
        if found[2].endswith("quant"):
            values, zero = tensor(node.input[1]).float(), tensor(node.input[3]).float()
            weights[f"{name}.weight"] = (values - zero) * tensor(node.input[1].removesuffix("_quantized") + "_scale")
            bias = f"{_ROOT}.{name}.bias"
        else:
            weights[f"{name}.weight"] = tensor(node.input[1])
            bias = node.input[2] if len(node.input) > 2 else ""
        if bias in stored:
            weights[f"{name}.bias"] = tensor(bias)
    alphas = {name: name.removeprefix(f"{_ROOT}.") for name in stored if re.search(r"\.alpha\d\.\d$", name)}
    weights |= {short: tensor(name).flatten() for name, short in alphas.items()}
    return weights | {"window_sum": tensor(f"{_ROOT}.generator.stft.istft.stft.window_sum")}


def scaled(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """x * scale + shift, where it is negative a fifth of that."""
    return F.leaky_relu(x.float() * scale + shift, 0.2).to(x.dtype)


def snaked(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, alpha: torch.Tensor, inverse: torch.Tensor
) -> torch.Tensor:
    """y + sin(alpha * y)² / alpha of y = x * scale + shift."""
    y = x.float() * scale + shift
    return (y + sine_square(alpha * y) * inverse).to(x.dtype)


class TeacherDecoder:
    """The decoder.

    Args:
        weights: as `read_weights` gives them.
        dtype: what it computes in.
        compiled: let torch compile what follows the norms.
    """

    def __init__(
        self, weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16, compiled: bool = True
    ) -> None:
        self._dtype = dtype
        self._small = {name: value for name, value in weights.items() if value.dim() < 3}
        self._layers, self._biases = {}, {}
        for name in (name.removesuffix(".weight") for name, value in weights.items() if value.dim() == 3):
            own = torch.float32 if name == _EXACT else dtype
            self._layers[name] = laid(weights[f"{name}.weight"][:, :, None], own)
            if f"{name}.bias" in weights:
                self._biases[name] = weights[f"{name}.bias"].to(own)
        self._transform = weights["generator.istft.stft.weight"]
        self._scaled = torch.compile(scaled, dynamic=True) if compiled else scaled
        self._snaked = torch.compile(snaked, dynamic=True) if compiled else snaked

    @torch.inference_mode()
    def __call__(
        self, sounds: torch.Tensor, f0: torch.Tensor, energy: torch.Tensor, source: torch.Tensor, style: torch.Tensor
    ) -> torch.Tensor:
        """Decode an utterance.

        Args:
            sounds: [1, 512, steps], of 25 ms.
            f0, energy: [1, 2 * steps].
            source: [1, 22, 120 * steps + 1], the spectrum of the harmonic source.
            style: [1, STYLE].

        Returns:
            Audio, float32 [600 * steps].
        """
        sounds, source = (laid(x[:, :, None], self._dtype) for x in (sounds, source))
        curves = [
            self._convolved(name, curve.to(self._dtype)[:, None, None], stride=2)
            for name, curve in (("F0_conv", f0), ("N_conv", energy))
        ]
        x = self._block("encode", torch.cat([sounds, *curves], 1), style)
        beside = [self._convolved("asr_res.0", sounds), *curves]
        for index in range(4):
            x = self._block(f"decode.{index}", torch.cat([x, *beside], 1), style, doubled=index == 3)
        for index, (stride, padding) in enumerate(_SCALES):
            name = f"generator.noise_convs.{index}"
            heard = self._convolved(name, source, stride=_SCALES[1][0] if index == 0 else 1)
            heard = self._residual(f"generator.noise_res.{index}", heard, style)
            x = self._stretched(f"generator.ups.{index}", F.leaky_relu(x, 0.1), stride, padding)
            if index == 1:
                x = torch.cat([x[..., 1:2], x], 3)
            x = laid(x + heard, self._dtype)
            x = sum(self._residual(f"generator.resblocks.{3 * index + kind}", x, style) for kind in range(3)) / 3
        x = self._convolved("generator.conv_post", F.leaky_relu(x, 0.01))[:, :, 0].float()
        size, turn = x.chunk(2, 1)
        size, turn = size.exp(), turn.sin()
        audio = F.conv_transpose1d(torch.cat([size * turn.cos(), size * turn.sin()], 1), self._transform, stride=_HOP)
        audio = audio[0, 0]
        # The graph levels the windows' sum at the beginning alone; further on it is constant.
        windows = self._small["window_sum"]
        audio[: len(windows)] /= torch.where(windows > 0, windows, 1.0)
        return audio[_WINDOW // 2 : -_WINDOW // 2] * (_WINDOW / _HOP)

    def _convolved(self, name: str, x: torch.Tensor, stride: int = 1, dilation: int = 1) -> torch.Tensor:
        weight = self._layers[name]
        width = weight.shape[3]
        # What shortens has windows of twice its stride, which begin half a stride early.
        padding = stride // 2 if width == 2 * stride else dilation * (width // 2)
        return F.conv2d(
            laid(x, weight.dtype), weight, self._biases.get(name), (1, stride), (0, padding), (1, dilation)
        )

    def _stretched(self, name: str, x: torch.Tensor, stride: int, padding: int, more: int = 0) -> torch.Tensor:
        weight = self._layers[name]
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        return F.conv_transpose2d(x, weight, self._biases[name], (1, stride), (0, padding), (0, more), groups)

    def _normed(self, name: str, x: torch.Tensor, style: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift that norm each channel over time, and give it what the style says."""
        wanted = style @ self._small[f"{name}.fc.weight"] + self._small[f"{name}.fc.bias"]
        size, shift = wanted[0].chunk(2)
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        scale = (1 + size) * (variance.float() + _EPSILON).rsqrt()
        return scale[:, None, None], (shift - mean.float() * scale)[:, None, None]

    def _block(self, name: str, x: torch.Tensor, style: torch.Tensor, doubled: bool = False) -> torch.Tensor:
        x = laid(x, self._dtype)
        y = self._scaled(x, *self._normed(f"{name}.norm1", x, style))
        if doubled:
            y = self._stretched(f"{name}.pool", y, stride=2, padding=1, more=1)
        y = self._convolved(f"{name}.conv1", y)
        y = self._scaled(y, *self._normed(f"{name}.norm2", y, style))
        x = self._convolved(f"{name}.conv1x1", x)
        if doubled:
            x = x.repeat_interleave(2, 3)
        return (self._convolved(f"{name}.conv2", y) + x) / math.sqrt(2)

    def _residual(self, name: str, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        for index, dilation in enumerate(_DILATIONS):
            y = x
            for half, reach in ((1, dilation), (2, 1)):
                alpha = self._small[f"{name}.alpha{half}.{index}"][:, None, None]
                y = self._snaked(y, *self._normed(f"{name}.adain{half}.{index}", y, style), alpha, 1 / alpha)
                y = self._convolved(f"{name}.convs{half}.{index}", y, dilation=reach)
            x = x + y
        return x
