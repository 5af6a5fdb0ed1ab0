"""Whose frames are drawn next, by a clock that the test sets."""

from dataclasses import replace

import pytest

from higgs_native.errors import ParameterError
from higgs_native.generation.engine import Engine
from higgs_native.generation.requests import Playback
from higgs_native.generation.steps.scheduler import FRAME_SECONDS
from tests.generation.random_requests import NUM_SLOTS, load, random_request


LAG, FIRST = 6, 3


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


class Playing:
    """An engine whose steps take a given time, and streams of it.

    Args:
        model: of the engine.
        step_seconds: of each step.
    """

    def __init__(self, model, step_seconds: float) -> None:
        self.now = 0.0
        self.step_seconds = step_seconds
        self.engine = Engine(model, NUM_SLOTS, clock=lambda: self.now)
        request = random_request(model, 4)
        self.request = replace(request, sampling=replace(request.sampling, max_new_tokens=200), adapter=None)

    def add(self, playback: Playback | None):
        return self.engine.add(replace(self.request, playback=playback))

    def steps(self, count: int, *handles) -> list[int]:
        """Compute steps; return how many frames each handle got."""
        frames = [0] * len(handles)
        for _ in range(count):
            self.engine.step()
            self.now += self.step_seconds
            frames = [before + len(handle.take()) for before, handle in zip(frames, handles, strict=True)]
        return frames

    def steps_to_first_audio(self, handle) -> int:
        frames = steps = 0
        while frames < LAG + FIRST:
            frames += sum(self.steps(1, handle))
            steps += 1
        return steps


def test_a_stream_without_audio_yet_goes_before_those_that_are_ahead(model):
    playing = Playing(model, step_seconds=0.001)
    first = playing.add(Playback(LAG, FIRST))
    playing.steps(60, first)  # far more audio than has been played
    second = playing.add(Playback(LAG, FIRST))
    alone = Playing(model, step_seconds=0.001)
    expected = alone.steps_to_first_audio(alone.add(Playback(LAG, FIRST)))
    first.take()
    # One step in nine is for all: nobody stands still for long.
    assert playing.steps_to_first_audio(second) <= expected + expected // 8 + 1
    assert 1 <= len(first.take()) <= 3
    playing.steps(40, second)
    assert len(first.take()) >= 20  # both are ahead: they share the steps


def test_a_stream_that_is_played_already_lets_others_go_on(model):
    """A passage behind another one: its listener has audio, so its own is not urgent."""
    playing = Playing(model, step_seconds=0.001)
    first = playing.add(Playback(LAG, FIRST))
    playing.steps(60, first)
    second = playing.add(Playback(LAG, FIRST, ahead=3.0))
    playing.steps(5, first, second)
    assert min(playing.steps(20, first, second)) == 20


def test_a_stream_whose_audio_ends_soon_goes_first(model):
    playing = Playing(model, step_seconds=0.001)
    first = playing.add(Playback(LAG, FIRST))
    playing.steps(60, first)
    second = playing.add(Playback(LAG, FIRST, ahead=0.1))
    playing.steps(2, first, second)
    ahead, urgent = playing.steps(6, first, second)
    assert urgent >= 5
    assert ahead <= 1


def test_pauses_of_the_playback_are_counted(model):
    playing = Playing(model, step_seconds=FRAME_SECONDS / 2)
    handle = playing.add(Playback(LAG, FIRST))
    playing.steps(40, handle)
    assert playing.engine.metrics.underruns == 0
    playing.now += 10.0
    playing.steps(5, handle)
    assert playing.engine.metrics.underruns == 1


@pytest.mark.parametrize("values", [{"lag": -1}, {"first": 0}, {"ahead": -0.1}, {"ahead": float("inf")}])
def test_a_playback_out_of_range_is_refused(values):
    with pytest.raises(ParameterError, match="lag and ahead must be at least 0 and first at least 1, got "):
        Playback(**values)
