"""Another speed keeps the pitch."""

import sys

import numpy as np
import pytest

from higgs_native.audio.tempo import at_speed
from higgs_native.errors import ParameterError


RATE = 24000


def tone(seconds: float, hertz: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz / RATE * np.arange(round(seconds * RATE)))).astype(np.float32)


@pytest.mark.parametrize("speed", [0.25, 0.7, 1.3, 4])
def test_the_length_changes_and_the_pitch_stays(speed):
    pytest.importorskip("av")
    changed = at_speed(tone(2, 330), RATE, speed)
    assert changed.dtype == np.float32
    assert len(changed) / RATE == pytest.approx(2 / speed, rel=0.05)
    spectrum = np.abs(np.fft.rfft(changed))
    assert np.argmax(spectrum) * RATE / len(changed) == pytest.approx(330, abs=5)


def test_speed_1_changes_nothing():
    samples = tone(0.1, 330)
    assert at_speed(samples, RATE, 1) is samples


@pytest.mark.parametrize("speed", [0.2, 4.1, float("nan"), "fast", None])
def test_wrong_speeds(speed):
    with pytest.raises(ParameterError, match=r"speed must be (between 0\.25 and 4|a number), got"):
        at_speed(tone(0.1, 330), RATE, speed)


def test_without_pyav_other_speeds_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(at_speed(tone(0.1, 330), RATE, 1)) == 2400
    with pytest.raises(ParameterError, match="speed must be 1 without PyAV, got 2; pip install av changes speeds"):
        at_speed(tone(0.1, 330), RATE, 2)
