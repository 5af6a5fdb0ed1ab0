"""A small discriminator of spectrograms at several resolutions (arXiv 2210.13438, appendix)."""

import torch
from torch import nn
from torch.nn import functional as F


_RESOLUTIONS = (2048, 1024, 512)


class SpectrogramDiscriminator(nn.Module):
    """Two-dimensional convolutions over the real and imaginary parts of one resolution."""

    def __init__(self, fft: int, channels: int) -> None:
        super().__init__()
        self.fft = fft
        self.register_buffer("window", torch.hann_window(fft), persistent=False)
        norm = nn.utils.parametrizations.weight_norm
        self.layers = nn.ModuleList(
            [
                norm(nn.Conv2d(2, channels, (3, 9), padding=(1, 4))),
                norm(nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), dilation=(1, 1), padding=(1, 4))),
                norm(nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), dilation=(2, 1), padding=(2, 4))),
                norm(nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), dilation=(4, 1), padding=(4, 4))),
                norm(nn.Conv2d(channels, channels, (3, 3), padding=(1, 1))),
            ]
        )
        self.last = norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def forward(self, audio: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Audio [batch, samples] -> verdicts, and the features of each layer."""
        spectrum = torch.stft(
            audio.float(), self.fft, self.fft // 4, window=self.window, normalized=True, return_complex=True
        )
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # [batch, 2, time, frequency]
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
            features.append(x)
        return self.last(x), features


class Discriminator(nn.Module):
    """All resolutions."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.parts = nn.ModuleList(SpectrogramDiscriminator(fft, channels) for fft in _RESOLUTIONS)

    def forward(self, audio: torch.Tensor) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
        return [part(audio) for part in self.parts]


def discriminator_loss(true: list, made: list) -> torch.Tensor:
    """Hinge loss of verdicts on true and made speech."""
    return sum(
        F.relu(1 - a.float()).mean() + F.relu(1 + b.float()).mean() for (a, _), (b, _) in zip(true, made, strict=True)
    ) / len(true)


def generator_losses(true: list, made: list) -> tuple[torch.Tensor, torch.Tensor]:
    """What a decoder should lower: verdicts on what it made, and distances of features."""
    verdict = sum(F.relu(1 - b.float()).mean() for b, _ in made) / len(made)
    distances = [
        (a.detach().float() - b.float()).abs().mean() / a.detach().float().abs().mean().clamp(min=1e-3)
        for (_, features), (_, other) in zip(true, made, strict=True)
        for a, b in zip(features, other, strict=True)
    ]
    return verdict, sum(distances) / len(distances)
