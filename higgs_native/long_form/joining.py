"""Joining of spoken chunks: trimmed silence, ends without clicks, and pauses between chunks."""

from dataclasses import dataclass, fields

import numpy as np

from higgs_native.errors import ParameterError
from higgs_native.long_form.chunking import Boundary
from higgs_native.utils.checks import check_number


EDGE_SECONDS = 0.05
"""Silence that is kept before and after speech, for a breath and a fading sound."""
FADE_SECONDS = 0.01
AUDIBLE_RATIO = 0.01
"""Samples below this share of the loudest one (-40 dB) are silence at the ends of speech."""

_MAX_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Pauses:
    """The silence before a chunk, in seconds, by its boundary; before a `word` there is none.

    The speech itself has up to `EDGE_SECONDS` of silence at each end.

    Raises:
        ParameterError: a pause is negative or longer than a minute.
    """

    paragraph: float = 0.7
    turn: float = 0.4
    sentence: float = 0.25
    chapter: float = 1.5

    def __post_init__(self) -> None:
        for field in fields(self):
            seconds = getattr(self, field.name)
            check_number(f"{field.name}_pause", seconds)
            if not 0 <= seconds <= _MAX_PAUSE_SECONDS:
                raise ParameterError(
                    f"{field.name}_pause must be between 0 and {_MAX_PAUSE_SECONDS:g} seconds, got {seconds}"
                )

    def before(self, boundary: Boundary) -> float:
        """Return the pause before what begins at a boundary, in seconds."""
        return 0.0 if boundary == "word" else getattr(self, boundary)


def trim_silence(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Cut the silence at both ends to `EDGE_SECONDS`, and fade the ends in and out.

    The fade is half a period of a cosine, `FADE_SECONDS` long. It begins or ends at zero, so that neither silence nor
    other speech beside it makes a click.

    Args:
        audio: [samples], float32.
        sampling_rate: in Hz.

    Returns:
        [samples], float32, a copy; empty if all of it is silence.
    """
    levels = np.abs(audio)
    audible = np.flatnonzero(levels > AUDIBLE_RATIO * levels.max(initial=0))
    if not len(audible):
        return audio[:0].copy()
    edge = round(EDGE_SECONDS * sampling_rate)
    kept = audio[max(0, audible[0] - edge) : audible[-1] + 1 + edge].copy()
    length = min(round(FADE_SECONDS * sampling_rate), len(kept) // 2)
    fade = (0.5 - 0.5 * np.cos(np.pi * np.arange(length) / max(1, length))).astype(np.float32)
    kept[:length] *= fade
    kept[len(kept) - length :] *= fade[::-1]
    return kept
