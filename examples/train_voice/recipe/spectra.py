"""Log-mel spectra of a frame: what the quantizer's codes stand for."""

import torch


SAMPLING_RATE = 24000
HOP_LENGTH = 960
BANDS = 48
SUBFRAMES = 2
"""Spectra a frame of 40 ms."""

_WINDOW = 960
_FFT = 1024
_LOWEST, _HIGHEST = 60.0, 11000.0
_FLOOR = 1e-4
"""Power in a band below which all is silence."""


def mel_filters(fft: int, bands: int, lowest: float = _LOWEST, highest: float = _HIGHEST) -> torch.Tensor:
    """Triangular filters, evenly spaced on the mel scale (HTK's): [bands, fft // 2 + 1], float32."""
    mel_of = lambda hertz: 2595 * torch.log10(1 + torch.tensor(hertz) / 700)  # noqa: E731
    mels = torch.linspace(mel_of(lowest), mel_of(highest), bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.arange(fft // 2 + 1) * SAMPLING_RATE / fft
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


_FILTERS = mel_filters(_FFT, BANDS)


def frame_spectra(audio: torch.Tensor) -> torch.Tensor:
    """The log-mel spectra of each frame, side by side.

    Args:
        audio: [..., samples], float32, whole frames.

    Returns:
        [..., frames, SUBFRAMES * BANDS], float32: log10 of the power, 0 in silence.
    """
    hop = HOP_LENGTH // SUBFRAMES
    # The middle of spectrum k lies at sample hop * k + hop / 2.
    padded = torch.nn.functional.pad(audio, ((_FFT - hop) // 2, (_FFT - hop) // 2))
    spectra = torch.stft(
        padded.reshape(-1, padded.shape[-1]),
        _FFT,
        hop,
        _WINDOW,
        torch.hann_window(_WINDOW),
        center=False,
        return_complex=True,
    )
    power = _FILTERS @ spectra.abs().square()
    logs = torch.log10(power.clamp(min=_FLOOR) / _FLOOR)
    return logs.mT.reshape(*audio.shape[:-1], audio.shape[-1] // HOP_LENGTH, SUBFRAMES * BANDS)
