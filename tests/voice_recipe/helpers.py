"""Words, tones, and how steps of the voice's recipe are run."""

import contextlib
import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


WORDS = ["the", "a", "cat", "dog", "sees", "hears", "and", "but", "with", "old", "red", "house", "one", "two", "six"]
"""That the dictionary of the tests knows."""


def voiced(seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A tone of three harmonics whose pitch glides, between silences: audio int16, F0 and phase as the teacher's."""
    rng = np.random.default_rng(seed)
    frames = int(seconds * 80)
    f0 = np.linspace(*rng.uniform(90, 260, 2), frames).astype(np.float32)
    f0[: frames // 5] = f0[-frames // 5 :] = 6
    phase = np.cumsum(f0 / 80)
    fine = np.interp((np.arange(300 * frames) + 0.5) / 300 - 0.5, np.arange(frames), phase)
    loud = np.repeat(f0 > 45, 300)
    # A cosine, so that its own phase is the source's.
    audio = loud * sum(0.2 / k * np.cos(2 * np.pi * k * fine) for k in (1, 2, 3))
    return (audio * 32767).astype(np.int16), f0, phase


def run_step(step: ModuleType, path: Path, *options: str) -> str:
    """What a step prints, run in this process: torch takes seconds to import."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [step.__name__, "--folder", str(path), *options])
        step.main()
    return printed.getvalue()
