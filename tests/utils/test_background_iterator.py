import asyncio
import gc
import random
import threading
import time
from types import SimpleNamespace

import pytest

from higgs_native.errors import ParameterError
from higgs_native.utils import background_iterator
from higgs_native.utils.background_iterator import BackgroundIterator
from tests.helpers.descriptors import no_descriptor_stays
from tests.helpers.waiting import PATIENCE, join, until


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "higgs-native"]


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert not running()


def count_to(last: int, made: list[int] | None = None, pause: float = 0.0):
    """Makes the numbers below `last`, and appends each to `made`."""

    def make(background):
        for number in range(last):
            if made is not None:
                made.append(number)
            time.sleep(pause)
            background.put(number)

    return make


def fail_after(count: int):
    def make(background):
        count_to(count)(background)
        raise ValueError("no more")

    return make


async def collect(background, max_items: int | None = None) -> list:
    items = []
    async for item in background:
        items.append(item)
        if len(items) == max_items:
            break
    return items


@pytest.mark.parametrize("capacity", [1, 3, 100])
def test_all_items_come_in_order(capacity):
    assert list(BackgroundIterator(count_to(50), capacity)) == list(range(50))
    assert asyncio.run(collect(BackgroundIterator(count_to(50), capacity))) == list(range(50))
    assert list(BackgroundIterator(count_to(0), capacity)) == []


def test_an_error_comes_after_the_items_before_it():
    for run in (list, lambda background: asyncio.run(collect(background))):
        with pytest.raises(ValueError, match="no more"):
            run(BackgroundIterator(fail_after(3), 10))
    items = iter(BackgroundIterator(fail_after(3), 1))
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_a_slow_consumer_holds_the_thread_up(monkeypatch):
    made: list[int] = []
    reads: list[float] = []  # of a clock that goes on while the consumer works
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: reads.append(clock.now) or clock.now)
    monkeypatch.setattr(background_iterator, "time", clock)
    background = BackgroundIterator(count_to(10**6, made), 4)
    for item in background:
        # The taken items, the waiting items, and one that the thread is about to put. It has read the clock before
        # and after each wait but the one that it is in.
        num_made = item + 1 + 4 + 1
        until(lambda num_reads=2 * num_made - 1: len(reads) == num_reads)
        assert len(made) == num_made
        clock.now += 1.0
        if item == 3:
            break
    assert background.waited == 4.0


def test_leaving_the_loop_ends_the_thread():
    made: list[int] = []
    background = BackgroundIterator(count_to(10**6, made), 4)
    for item in background:
        if item == 2:
            break
    assert not running()
    assert len(made) <= 8
    with pytest.raises(ParameterError, match="must be iterated once, and not after close"):
        next(iter(background))


def test_an_error_in_the_loop_ends_the_thread():
    with pytest.raises(ZeroDivisionError):
        sum(1 / item for item in BackgroundIterator(count_to(10**6), 4))


def test_leaving_an_asynchronous_loop_ends_the_thread():
    made: list[int] = []

    async def run():
        assert await collect(BackgroundIterator(count_to(10**6, made), 4), max_items=3) == [0, 1, 2]
        gc.collect()
        end = time.monotonic() + PATIENCE
        while running():
            assert time.monotonic() < end, "the thread goes on"
            await asyncio.sleep(0.01)

    asyncio.run(run())
    assert len(made) <= 8


def test_nothing_runs_before_the_iteration():
    made: list[int] = []
    background = BackgroundIterator(count_to(3, made), 4)
    aiter(background)
    iter(background)
    assert made == []
    background.close()
    with pytest.raises(ParameterError, match="must be iterated once, and not after close"):
        list(background)


def test_check_ends_a_function_that_puts_nothing():
    def make(background):
        background.put(1)
        while True:
            time.sleep(0.001)
            background.check()

    assert next(iter(BackgroundIterator(make, 1))) == 1


def test_closing_from_another_thread_ends_the_loop():
    begun = threading.Event()

    def make(background):
        begun.set()
        while True:
            time.sleep(0.001)
            background.check()

    def close():
        assert begun.wait(PATIENCE)
        background.close()

    background = BackgroundIterator(make, 1)
    other = threading.Thread(target=close)
    other.start()
    assert list(background) == []
    join(other)


def test_leaving_at_random_moments_leaves_nothing():
    generator = random.Random(0)

    async def run(seconds):
        task = asyncio.create_task(collect(BackgroundIterator(count_to(10**6, pause=1e-4), 4)))
        await asyncio.sleep(seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with no_descriptor_stays():
        for _ in range(100):
            moment = generator.random() * 0.01
            asyncio.run(run(moment))
            end = time.perf_counter() + moment
            for _ in BackgroundIterator(count_to(10**6, pause=1e-4), 4):
                if time.perf_counter() > end:
                    break
            assert not running()


def test_a_second_cancellation_leaves_no_thread_behind():
    inside, go_on = threading.Event(), threading.Event()

    def make(background):
        background.put(0)
        inside.set()
        go_on.wait(PATIENCE)
        background.check()

    async def run():
        task = asyncio.create_task(collect(BackgroundIterator(make, 4)))
        await asyncio.to_thread(inside.wait, PATIENCE)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()
        assert running()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not running()

    asyncio.run(run())


def test_a_cancellation_while_the_thread_ends_is_not_lost():
    go_on = threading.Event()

    def make(background):
        background.put(0)
        go_on.wait(PATIENCE)
        background.check()

    async def leave():
        iterator = aiter(BackgroundIterator(make, 4))
        assert await anext(iterator) == 0
        await iterator.aclose()
        raise AssertionError("the cancellation was lost")

    async def run():
        task = asyncio.create_task(leave())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_an_event_loop_that_is_closed_ends_the_thread():
    background = BackgroundIterator(count_to(10**6, pause=1e-3), 100)
    loop = asyncio.new_event_loop()
    iterator = aiter(background)
    assert loop.run_until_complete(anext(iterator)) == 0
    loop.close()
    join(background._thread)
