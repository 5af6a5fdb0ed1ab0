"""Distances between recordings: of their words (mel spectra under dynamic time warping), and of their voices.

All audio is at 24 kHz. The embedded voice's quantizer was fitted to other spectra than these.
"""

from collections.abc import Sequence

import numpy as np
import torch


SAMPLING_RATE = 24000
FFT, HOP, BANDS = 1024, 480, 40
PITCHES = (60.0, 400.0)


def mel_spectrogram(audio: np.ndarray) -> torch.Tensor:
    """Log-mel spectra every 20 ms, 80 dB deep, minus their mean over time: [samples] -> float32 [frames, BANDS]."""
    spectra = torch.stft(
        torch.as_tensor(audio, dtype=torch.float32), FFT, HOP, window=torch.hann_window(FFT), return_complex=True
    )
    power = _mel_filters() @ spectra.abs().square()
    decibels = 10 * torch.log10(power.clamp(min=1e-10))
    decibels = decibels.clamp(min=float(decibels.max()) - 80)
    return (decibels - decibels.mean(1, keepdim=True)).T.contiguous()


def warped_distances(spectrogram: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    """Distance of `spectrogram` to each of `others` under dynamic time warping, per frame of both: [len(others)].

    A step advances in one of the two, or in both. It costs the Euclidean distance of the frames it reaches, and twice
    that for a step in both, so that all paths have the same length.
    """
    rows, columns = len(spectrogram), [len(other) for other in others]
    padded = torch.nn.utils.rnn.pad_sequence(list(others), batch_first=True)
    costs = torch.cdist(spectrogram.expand(len(others), -1, -1), padded)
    width = padded.shape[1]
    # Anti-diagonals, indexed by row; cell (i, j) lies on diagonal i + j.
    before = torch.full((len(others), rows + 1), torch.inf)
    previous = before.clone()
    final = torch.empty(len(others))
    index = torch.arange(rows)
    ends = [rows - 1 + count - 1 for count in columns]
    for diagonal in range(rows + width - 1):
        column = diagonal - index
        inside = (column >= 0) & (column < width)
        cost = costs[:, index, column.clamp(0, width - 1)]
        # Index 0 of a diagonal is a padding row before row 0.
        best = torch.minimum(torch.minimum(previous[:, 1:], previous[:, :-1]) + cost, before[:, :-1] + 2 * cost)
        if diagonal == 0:
            best = 2 * cost
        current = torch.full_like(previous, torch.inf)
        current[:, 1:] = torch.where(inside, best, torch.inf)
        before, previous = previous, current
        for other, end in enumerate(ends):
            if end == diagonal:
                final[other] = current[other, rows] / (rows + columns[other])
    return final


def pitch(audio: np.ndarray) -> float:
    """Median fundamental frequency of the voiced parts in Hz; NaN without voiced parts."""
    size, hop = 1536, 480
    if len(audio) < size:
        return float("nan")
    windows = np.lib.stride_tricks.sliding_window_view(audio, size)[::hop] * np.hanning(size)
    spectra = np.fft.rfft(windows, 4 * size)
    correlation = np.fft.irfft(np.abs(spectra) ** 2)
    # Normalizes for the decay of the window's own correlation.
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(size), 4 * size)) ** 2)
    low, high = round(SAMPLING_RATE / PITCHES[1]), round(SAMPLING_RATE / PITCHES[0])
    energy = correlation[:, 0]
    normalized = correlation[:, low:high] / window[low:high] * window[0] / np.maximum(energy, 1e-9)[:, None]
    peak = normalized.max(1)
    voiced = (peak > 0.6) & (energy > 0.05 * energy.max())
    if not voiced.any():
        return float("nan")
    # The shortest lag near the best one: a lag of two periods correlates as well as one.
    lags = low + (normalized[voiced] > 0.9 * peak[voiced, None]).argmax(1)
    # That lag lies before the peak, so go on to the peak.
    lags = [
        lag + int(row[lag - low : lag - low + 12].argmax()) for lag, row in zip(lags, normalized[voiced], strict=True)
    ]
    return float(SAMPLING_RATE / np.median(lags))


def timbre(audio: np.ndarray) -> np.ndarray:
    """Mean log-mel spectrum of the loud parts in dB, minus its own mean: [BANDS]."""
    spectra = torch.stft(
        torch.as_tensor(audio, dtype=torch.float32), FFT, HOP, window=torch.hann_window(FFT), return_complex=True
    )
    power = (_mel_filters() @ spectra.abs().square()).numpy()
    loud = power.sum(0) > 0.05 * power.sum(0).max()
    decibels = 10 * np.log10(np.maximum(power[:, loud].mean(1), 1e-10))
    return decibels - decibels.mean()


def voice_distance(audio: np.ndarray, pitch_of_voice: float, timbre_of_voice: np.ndarray) -> float:
    """Distance of a recording from a voice in pitch and mean spectrum.

    Half an octave of pitch counts as much as a difference of 6 dB RMS over the bands.
    """
    measured = pitch(audio)
    octaves = abs(np.log2(measured / pitch_of_voice)) if np.isfinite(measured) else 2.0
    decibels = np.sqrt(np.mean((timbre(audio) - timbre_of_voice) ** 2))
    return float(np.hypot(octaves / 0.5, decibels / 6))


def _mel_filters() -> torch.Tensor:
    """Triangular filters from 50 Hz to 10 kHz, evenly spaced on the mel scale: [BANDS, FFT // 2 + 1]."""
    mels = torch.linspace(*(2595 * np.log10(1 + hertz / 700) for hertz in (50.0, 10000.0)), BANDS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.arange(FFT // 2 + 1) * SAMPLING_RATE / FFT
    rising = (bins - edges[:-2, None]) / edges.diff()[:-1, None]
    falling = (edges[2:, None] - bins) / edges.diff()[1:, None]
    return torch.minimum(rising, falling).clamp(min=0)
