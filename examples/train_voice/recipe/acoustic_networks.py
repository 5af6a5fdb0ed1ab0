"""The acoustic encoder and decoder of the audio tokenizer, in a form that can be trained.

The layers, and the names of their parameters, are those of `higgs_native.audio_tokenizer.weights.tensor_shapes`.
"""

import math

import torch
from torch import nn

from higgs_native.audio_tokenizer.config import DILATIONS, HiggsAudioTokenizerConfig


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, which is x + (1 - cos(2 alpha x)) / (2 alpha)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)


class ResidualUnit(nn.Module):
    """x + conv1(snake2(conv7(snake1(x))))."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake(channels)
        self.conv1 = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation)
        self.snake2 = Snake(channels)
        self.conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        for unit, dilation in enumerate(DILATIONS, start=1):
            setattr(self, f"res_unit{unit}", ResidualUnit(channels, dilation))

    def units(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_unit3(self.res_unit2(self.res_unit1(x)))


class EncoderBlock(_Block):
    """Residual units, then a strided convolution to twice the channels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels)
        self.snake1 = Snake(channels)
        self.conv1 = nn.Conv1d(channels, 2 * channels, 2 * stride, stride=stride, padding=math.ceil(stride / 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1(self.snake1(self.units(x)))


class DecoderBlock(_Block):
    """A transposed convolution to half the channels, then residual units."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels // 2)
        self.snake1 = Snake(channels)
        self.conv_t1 = nn.ConvTranspose1d(
            channels,
            channels // 2,
            2 * stride,
            stride=stride,
            padding=math.ceil(stride / 2),
            output_padding=stride % 2,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.units(self.conv_t1(self.snake1(x)))


class AcousticEncoder(nn.Module):
    """Audio [batch, 1, samples] -> features [batch, acoustic hidden size, frames]."""

    def __init__(self, config: HiggsAudioTokenizerConfig) -> None:
        super().__init__()
        channels = config.encoder_hidden_size
        self.conv1 = nn.Conv1d(1, channels, 7, padding=3)
        self.block = nn.ModuleList(
            EncoderBlock(channels * 2**i, stride) for i, stride in enumerate(config.downsampling_ratios)
        )
        channels *= 2 ** len(self.block)
        self.snake1 = Snake(channels)
        self.conv2 = nn.Conv1d(channels, config.acoustic_hidden_size, 3, padding=1)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        x = self.conv1(audio)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))


class AcousticDecoder(nn.Module):
    """Features [batch, acoustic hidden size, frames] -> audio [batch, 1, samples]."""

    def __init__(self, config: HiggsAudioTokenizerConfig) -> None:
        super().__init__()
        channels = config.decoder_hidden_size
        self.conv1 = nn.Conv1d(config.acoustic_hidden_size, channels, 7, padding=3)
        self.block = nn.ModuleList(
            DecoderBlock(channels // 2**i, stride) for i, stride in enumerate(config.upsampling_ratios)
        )
        channels //= 2 ** len(self.block)
        self.snake1 = Snake(channels)
        self.conv2 = nn.Conv1d(channels, 1, 7, padding=3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = self.conv1(features)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))
