"""Silence at the ends of speech, cut off frame by frame while it is generated."""

import numpy as np


QUIET_LEVEL = 3e-3
"""A frame is silent if its RMS level is below -50 dB of full scale. Speech and breath are louder."""


class SilenceTrimmer:
    """Cuts silent frames from the beginning or the end of speech; one is kept at each, since a sound may fade in it.

    The result does not depend on the pieces that the speech comes in.

    Args:
        hop_length: samples per frame.
        begin, end: whether silence is cut there.
    """

    def __init__(self, hop_length: int, begin: bool, end: bool) -> None:
        self._hop_length = hop_length
        self._has_begun = not begin
        self._cuts_end = end
        self._held: list[np.ndarray] = []  # silent frames that stay if speech follows
        self._keeps_next = False

    def trim(self, samples: np.ndarray) -> np.ndarray:
        """Return the samples that are certain to stay.

        Args:
            samples: [frames * hop_length], float32, the next piece.
        """
        kept = [np.zeros(0, dtype=np.float32)]
        for frame in samples.reshape(-1, self._hop_length):
            if np.sqrt(np.square(frame, dtype=np.float64).mean()) >= QUIET_LEVEL:
                kept += [*self._held, frame]
                self._held = []
                self._has_begun = self._keeps_next = True
            elif not self._has_begun:
                self._held = [frame]
            elif self._keeps_next or not self._cuts_end:
                kept.append(frame)
                self._keeps_next = False
            else:
                self._held.append(frame)
        return np.concatenate(kept)
