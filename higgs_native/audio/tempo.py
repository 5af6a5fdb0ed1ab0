"""The speed of speech, changed by FFmpeg's filter `atempo`; the pitch stays."""

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from higgs_native.audio.samples import pcm_samples
from higgs_native.errors import ParameterError
from higgs_native.utils.checks import check_number


if TYPE_CHECKING:
    import av


MIN_SPEED, MAX_SPEED = 0.25, 4.0

_MIN_STEP = 0.5  # of the filter
_MIN_PIECE = 2  # samples; the filter fails on a piece that makes less than half a sample
_STEADY_PIECE = 960


class Tempo:
    """Changes the speed of speech, piece by piece.

    Args:
        sampling_rate: in Hz.
        speed: 0.25 to 4; 2 halves the duration.
        is_steady: whether the result must not depend on the pieces. The filter's does, now and then, so it then gets
            pieces of one length.

    Raises:
        ParameterError: the speed is out of range, or PyAV is missing.
    """

    def __init__(self, sampling_rate: int, speed: float, is_steady: bool = False) -> None:
        check_speed(speed)
        import av

        self._ends = av.BlockingIOError, av.EOFError
        self._sampling_rate = sampling_rate
        self._is_steady = is_steady
        self._position = 0
        self._held = np.zeros(0, dtype=np.int16)  # too few for the filter
        self._graph = av.filter.Graph()
        steps = [speed] if speed >= _MIN_STEP else [_MIN_STEP, speed / _MIN_STEP]
        nodes = [
            self._graph.add_abuffer(
                format="s16", sample_rate=sampling_rate, layout="mono", time_base=Fraction(1, sampling_rate)
            ),
            *(self._graph.add("atempo", f"{step:.6f}") for step in steps),
            self._graph.add("abuffersink"),
        ]
        self._graph.link_nodes(*nodes).configure()

    def change(self, samples: np.ndarray) -> np.ndarray:
        """Return what is ready of the samples so far, all [samples], int16."""
        samples = np.concatenate([self._held, samples])
        length = _STEADY_PIECE if self._is_steady else max(len(samples), _MIN_PIECE)
        end = len(samples) // length * length
        self._held = samples[end:]
        for begin in range(0, end, length):
            self._push(samples[begin : begin + length])
        return self._pull()

    def finish(self) -> np.ndarray:
        """Return the rest, [samples], int16."""
        if len(self._held) >= _MIN_PIECE:
            self._push(self._held)
        self._graph.push(None)
        return self._pull()

    def _push(self, samples: np.ndarray) -> None:
        self._graph.push(audio_frame(samples, self._sampling_rate, self._position))
        self._position += len(samples)

    def _pull(self) -> np.ndarray:
        pieces = [np.zeros(0, dtype=np.int16)]
        while True:
            try:
                pieces.append(self._graph.pull().to_ndarray().reshape(-1))
            except self._ends:
                return np.concatenate(pieces)


def check_speed(speed: float) -> None:
    """Raise ParameterError if a speed is out of range, or PyAV, which changes it, is missing."""
    check_number("speed", speed)
    if not MIN_SPEED <= speed <= MAX_SPEED:
        raise ParameterError(f"speed must be between {MIN_SPEED:g} and {MAX_SPEED:g}, got {speed}")
    if speed != 1:
        try:
            import av  # noqa: F401
        except ImportError:
            raise ParameterError(f"speed must be 1 without PyAV, got {speed}; pip install av changes speeds") from None


def at_speed(samples: np.ndarray, sampling_rate: int, speed: float) -> np.ndarray:
    """Return audio at another speed, both [samples], float32. At speed 1 it is returned as it is; else 16 bits remain.

    Raises:
        ParameterError: as for `Tempo`.
    """
    check_speed(speed)
    if speed == 1:
        return samples
    tempo = Tempo(sampling_rate, speed)
    changed = np.concatenate([tempo.change(pcm_samples(samples)), tempo.finish()])
    return float_samples(changed)


def steady_at_speed(samples: np.ndarray, sampling_rate: int, speed: float) -> np.ndarray:
    """Return audio at another speed, both [samples], int16: what a steady `Tempo` makes of it in any pieces.

    At speed 1 it is returned as it is.

    Raises:
        ParameterError: as for `Tempo`.
    """
    if speed == 1:
        return samples
    tempo = Tempo(sampling_rate, speed, is_steady=True)
    return np.concatenate([tempo.change(samples), tempo.finish()])


def float_samples(samples: np.ndarray) -> np.ndarray:
    """Return samples [samples], int16, as float32, so that `pcm_samples` makes them again."""
    return samples.astype(np.float32) / 32767


def audio_frame(samples: np.ndarray, sampling_rate: int, position: int) -> "av.AudioFrame":
    """Return samples [samples], int16, as PyAV's frame that begins at sample `position`."""
    import av

    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sampling_rate, position, Fraction(1, sampling_rate)
    return frame
