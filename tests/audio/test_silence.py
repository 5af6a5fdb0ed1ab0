"""Silence is cut frame by frame, whatever the pieces are."""

import numpy as np
import pytest

from higgs_native.audio.silence import QUIET_LEVEL, SilenceTrimmer


HOP = 4
LOUD, QUIET = 2 * QUIET_LEVEL, QUIET_LEVEL / 2


def frames(pattern: str) -> np.ndarray:
    """A frame per character: `x` is loud, `.` is silent."""
    return np.repeat([LOUD if mark == "x" else QUIET for mark in pattern], HOP).astype(np.float32)


@pytest.mark.parametrize(
    ("pattern", "begin", "end", "expected"),
    [
        ("..x.x...", False, False, "..x.x..."),
        ("..x.x...", True, False, ".x.x..."),
        ("..x...x...", False, True, "..x...x."),
        ("...x..x...", True, True, ".x..x."),
        ("xx", True, True, "xx"),
        ("....", True, True, ""),
        ("....", False, True, ""),
        ("", True, True, ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_ends_are_cut_to_a_frame(pattern, begin, end, expected, size):
    trimmer = SilenceTrimmer(HOP, begin, end)
    samples = frames(pattern)
    pieces = [trimmer.trim(samples[start : start + size * HOP]) for start in range(0, len(samples), size * HOP)]
    kept = np.concatenate([np.zeros(0, dtype=np.float32), *pieces])
    np.testing.assert_array_equal(kept, frames(expected))
