"""Who computes the steps: callers in turn, a thread of the engine, or an event loop."""

import asyncio
import threading
from dataclasses import replace

import pytest
import torch

from higgs_native.errors import ParameterError
from higgs_native.generation.engine import Engine
from higgs_native.generation.handle import RequestHandle
from higgs_native.generation.model import generate_batch
from higgs_native.generation.sampling_params import SamplingParams
from tests.generation.random_requests import NUM_SLOTS, assert_equal, random_request
from tests.helpers.waiting import join


def test_threads_share_the_steps(model):
    """Callers drive the engine in turn; nobody waits for a caller that has gone."""
    engine, outputs = model.engine, {}
    before = engine.metrics.steps

    def call(index: int) -> None:
        outputs[index] = generate_batch(model, [random_request(model, index)])[0]

    threads = [threading.Thread(target=call, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    assert engine.metrics.steps - before <= sum(output.completion_tokens for output in outputs.values())
    for index, output in outputs.items():
        assert_equal(output, generate_batch(model, [random_request(model, index)])[0])


def test_a_thread_of_the_engine(model):
    engine = Engine(model, NUM_SLOTS)
    engine.start()
    try:
        with pytest.raises(ParameterError, match="must be stopped"):
            engine.start()
        handles = [engine.add(random_request(model, index)) for index in range(20)]
        handles[3].abort()
        items = [list(handle) for handle in handles]
        assert [handle.sequence.request.sampling.seed for handle in handles] == list(range(20))
    finally:
        engine.stop()
    for index, handle in enumerate(handles):
        alone = generate_batch(model, [random_request(model, index)])[0]
        if index != 3:
            assert_equal(handle.result(), alone)
            assert sum(not isinstance(item, int) for item in items[index]) == sum(
                segment.shape[1] for segment in alone.audio_segments
            )


class HeldEngine(Engine):
    """Computes no more than 10 steps before `left` is set: the request that is left ends by itself after 18."""

    steps_before = 10

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.left = threading.Event()

    def step(self) -> bool:
        if self.steps_before == 0 and not self.left.wait(0.001):
            return True
        self.steps_before -= self.steps_before > 0
        return super().step()


def test_a_handle_in_an_event_loop(model):
    """Without a thread of the engine, and with one; leaving the loop aborts the request."""

    async def read(engine: HeldEngine, index: int) -> list:
        return [item async for item in engine.add(random_request(model, index))]

    async def leave(engine: HeldEngine) -> RequestHandle:
        handle = engine.add(replace(random_request(model, 0), sampling=SamplingParams(seed=0, max_new_tokens=80)))
        items = aiter(handle)
        await anext(items)
        await items.aclose()
        engine.left.set()
        return handle

    async def all_of_them(engine: HeldEngine) -> tuple:
        return await asyncio.gather(leave(engine), *(read(engine, index) for index in range(1, 8)))

    for starts in (False, True):
        engine = HeldEngine(model, NUM_SLOTS)
        if starts:
            engine.start()
        try:
            left, *items = asyncio.run(all_of_them(engine))
            left.result()
        finally:
            engine.stop()
        assert left.future.result().finish_reason == "aborted"
        for index, got in enumerate(items, 1):
            alone = generate_batch(model, [random_request(model, index)])[0]
            frames = [item for item in got if not isinstance(item, int)]
            drawn = [frame for segment in alone.audio_segments for frame in segment.T]
            assert len(frames) == len(drawn)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(frames, drawn, strict=True))
