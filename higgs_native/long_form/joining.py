"""Joining of spoken chunks: trimmed silence, and ends without clicks."""

import numpy as np


EDGE_SECONDS = 0.05
"""Silence that is kept before and after speech, for a breath and a fading sound."""
FADE_SECONDS = 0.01
AUDIBLE_RATIO = 0.01
"""Samples below this share of the loudest one (-40 dB) are silence at the ends of speech."""


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
