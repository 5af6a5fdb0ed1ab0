"""Steps that fail, requests whose logits can't be drawn from, and engines of a wrong size."""

from dataclasses import replace

import pytest
import torch

from higgs_native.errors import GenerationError, ParameterError
from higgs_native.generation.engine import Engine
from higgs_native.generation.model import generate_batch
from tests.generation.random_requests import NUM_SLOTS, assert_equal, load, random_request


def test_a_failed_step_ends_its_requests_and_frees_their_pages(model, monkeypatch):
    """An interrupt is raised where it came; other callers get an error of their own."""
    engine = Engine(model, NUM_SLOTS)
    handles = [engine.add(random_request(model, index)) for index in range(3)]
    engine.step()
    monkeypatch.setattr(engine, "_advance", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.undo()
    for handle in handles:
        with pytest.raises(GenerationError, match="ended by KeyboardInterrupt"):
            handle.result()
    assert engine.metrics.pages_held == engine.metrics.running == 0
    assert_equal(engine.add(random_request(model, 1)).result(), generate_batch(model, [random_request(model, 1)])[0])


def raising(error: BaseException):
    def function():
        raise error

    return function


def test_bad_logits_end_their_request_alone(folder):
    """The others go on, and get what they get alone."""
    model = load(folder)
    expected = [generate_batch(model, [random_request(model, index)])[0] for index in range(6)]
    bad_token = 120  # no other prompt has it
    model.text_table[bad_token] = torch.inf
    request = random_request(model, 6)
    ids = torch.cat([torch.tensor([[bad_token]]), request.input_ids], dim=1)
    engine = Engine(model, NUM_SLOTS)
    handles = [engine.add(random_request(model, index)) for index in range(6)]
    failing = engine.add(replace(request, input_ids=ids))
    while engine.step():
        pass
    with pytest.raises(GenerationError, match="can't be drawn: its logits hold a NaN"):
        failing.result()
    for handle, alone in zip(handles, expected, strict=True):
        assert_equal(handle.result(), alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": 3}, "num_slots must be a power of two up to 1024, got 3"),
        ({"cache_bytes": 1000}, r"cache_bytes must be at least \d+ for 256 positions"),
        ({"prefix_bytes": -1}, "prefix_bytes must be at least 0, got -1"),
    ],
)
def test_sizes_out_of_range_are_refused(model, options, message):
    with pytest.raises(ParameterError, match=message):
        Engine(model, **options)
