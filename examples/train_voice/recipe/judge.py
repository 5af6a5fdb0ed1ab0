"""Judges of speech: words (Whisper base), quality (DNSMOS), and how much the pitch moves."""

from pathlib import Path

import numpy as np
import soxr

from recipe.frames import SAMPLING_RATE


_RATE = 16000
_WINDOW = int(9.01 * _RATE)
"""Samples that DNSMOS hears at a time."""
_OVERALL = (-0.06766283, 1.11546468, 0.04602535)
"""From the network's overall score to opinions: DNSMOS's polynomial."""
_BANDS, _FFT, _HOP = 120, 321, 160
_LOWEST_F0, _HIGHEST_F0 = 60.0, 500.0
_PITCH_WINDOW = 960


def mel_filters(rate: int = _RATE, fft: int = _FFT, bands: int = _BANDS) -> np.ndarray:
    """Triangular filters on Slaney's mel scale (linear below 1 kHz), each of area one: [bands, fft // 2 + 1]."""
    break_hz, step, log_step = 1000.0, 200.0 / 3, np.log(6.4) / 27
    top = break_hz / step + np.log(rate / 2 / break_hz) / log_step
    mels = np.linspace(0, top, bands + 2)
    edges = np.where(
        mels < break_hz / step, mels * step, break_hz * np.exp(log_step * (mels - break_hz / step).clip(0))
    )
    bins = np.arange(fft // 2 + 1) * rate / fft
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.minimum(rising, falling).clip(0) * (2 / (edges[2:] - edges[:-2]))[:, None]


def log_mels(audio: np.ndarray) -> np.ndarray:
    """What DNSMOS P.808 looks at: decibels below the loudest, from -1 at 80 down to 1: [frames, bands]."""
    padded = np.pad(audio, _FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FFT) / _FFT)
    power = np.abs(np.fft.rfft(frames * window)) ** 2 @ mel_filters().T
    decibels = 10 * np.log10(power.clip(1e-10) / max(power.max(), 1e-10))
    return ((decibels.clip(-80) + 40) / 40).astype(np.float32)


class Quality:
    """DNSMOS of audio at 24 kHz."""

    def __init__(self, materials: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        folder = materials / "judges" / "dnsmos"
        self._overall, self._p808 = (
            onnxruntime.InferenceSession(folder / name, options, ["CPUExecutionProvider"])
            for name in ("sig_bak_ovr.onnx", "model_v8.onnx")
        )

    def scores(self, audio: np.ndarray) -> tuple[float, float]:
        """Overall quality, and quality as P.808 asks for it: both from 1 to 5."""
        heard = soxr.resample(audio.astype(np.float32), SAMPLING_RATE, _RATE).clip(-1, 1)
        # What is short is heard again and again.
        heard = np.tile(heard, -(-_WINDOW // len(heard)))
        overall, p808 = [], []
        for start in range(0, len(heard) - _WINDOW + 1, _RATE):
            part = heard[start : start + _WINDOW]
            raw = self._overall.run(None, {"input_1": part[None]})[0][0][2]
            overall.append(float(np.polyval(_OVERALL, raw)))
            p808.append(float(self._p808.run(None, {"input_1": log_mels(part[:-_HOP])[None]})[0][0][0]))
        return float(np.mean(overall)), float(np.mean(p808))


class Recognizer:
    """Whisper base, one sentence a window."""

    def __init__(self, materials: Path) -> None:
        from faster_whisper import WhisperModel
        from whisper_normalizer.english import EnglishTextNormalizer

        self._model = WhisperModel(
            str(materials / "judges" / "base"), device="cpu", compute_type="int8", cpu_threads=1
        )
        self._normalizer = EnglishTextNormalizer()

    def hear(self, audio: np.ndarray) -> str:
        """The words of audio at 24 kHz."""
        heard = soxr.resample(audio.astype(np.float32), SAMPLING_RATE, _RATE)
        segments, _ = self._model.transcribe(
            heard, language="en", beam_size=5, temperature=0.0, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)

    def word_error_rate(self, texts: list[str], heard: list[str]) -> float:
        """Over all words, both sides written alike."""
        import jiwer

        return jiwer.wer([self._normalizer(text) for text in texts], [self._normalizer(text) for text in heard])


def pitches(audio: np.ndarray) -> np.ndarray:
    """F0 in Hz of each voiced stretch of 40 ms, by autocorrelation; audio at 24 kHz."""
    shortest, longest = int(SAMPLING_RATE / _HIGHEST_F0), int(SAMPLING_RATE / _LOWEST_F0)
    frames = np.lib.stride_tricks.sliding_window_view(audio, 2 * _PITCH_WINDOW)[:: _PITCH_WINDOW // 2]
    frames = frames - frames.mean(1, keepdims=True)
    loud = np.square(frames).mean(1)
    frames = frames[loud > 0.02 * loud.max()]
    spectra = np.fft.rfft(frames, 4 * _PITCH_WINDOW)
    correlated = np.fft.irfft(np.abs(spectra) ** 2)[:, : longest + 1]
    # Each lag by the number of samples that it compares.
    correlated = correlated / correlated[:, :1] / (1 - np.arange(longest + 1) / (2 * _PITCH_WINDOW))
    candidates = correlated[:, shortest:]
    # The shortest period that is nearly as good as the best: not two of them.
    good = candidates > 0.9 * candidates.max(1, keepdims=True)
    peak = good & (candidates >= np.roll(candidates, 1, 1)) & (candidates >= np.roll(candidates, -1, 1))
    lags = shortest + peak.argmax(1)
    voiced = candidates.max(1) > 0.6
    return SAMPLING_RATE / lags[voiced & peak.any(1)]


def pitch_spread(audio: np.ndarray) -> float:
    """The standard deviation of the pitch, in semitones; octaves that the search got wrong are left out."""
    found = pitches(audio)
    if len(found) < 5:
        return 0.0
    semitones = 12 * np.log2(found / np.median(found))
    return float(semitones[np.abs(semitones) < 10].std())
