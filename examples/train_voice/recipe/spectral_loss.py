"""The distance of a decoder's sound from what it should be: spectra at several resolutions."""

import torch

from recipe.spectra import mel_filters


_RESOLUTIONS = (2048, 1024, 512, 256, 128)


class SpectralLoss(torch.nn.Module):
    """Log-magnitudes and spectral convergence (arXiv 1910.11480) at five resolutions, and log-mel spectra at two."""

    def __init__(self) -> None:
        super().__init__()
        for fft in _RESOLUTIONS:
            self.register_buffer(f"window{fft}", torch.hann_window(fft))
        for fft in (2048, 512):
            self.register_buffer(f"filters{fft}", mel_filters(fft, 80 if fft == 2048 else 40, 0.0))

    def forward(self, made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Both [batch, samples], float32."""
        total = made.new_zeros(())
        for fft in _RESOLUTIONS:
            window = getattr(self, f"window{fft}")
            a, b = (
                torch.stft(x, fft, fft // 4, window=window, return_complex=True).abs().div(window.sum() / 2)
                for x in (made, true)
            )
            total = total + (a - b).norm() / b.norm().clamp(min=1e-4)
            total = total + (torch.log(a + 1e-4) - torch.log(b + 1e-4)).abs().mean()
            if hasattr(self, f"filters{fft}"):
                filters = getattr(self, f"filters{fft}")
                mels = [torch.log(filters @ x.square() + 1e-7) for x in (a, b)]
                total = total + 0.5 * (mels[0] - mels[1]).abs().mean()
        return total / len(_RESOLUTIONS)
