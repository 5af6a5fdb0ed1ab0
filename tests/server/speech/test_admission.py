"""Who runs, who waits, who is refused."""

import asyncio
import random

import pytest

from higgs_native.server.speech.admission import Admission, Refused
from tests.helpers.waiting import PATIENCE


async def hold(admission: Admission, release: asyncio.Event, order: list, name: object, key: str = "key") -> None:
    async with admission.slot(key):
        order.append(name)
        await release.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_requests_run_in_the_order_in_which_they_came():
    async def scenario():
        admission, order = Admission(2, 3), []
        releases = [asyncio.Event() for _ in range(5)]
        tasks = [asyncio.create_task(hold(admission, release, order, i)) for i, release in enumerate(releases)]
        await settle()
        assert (order, admission.running, admission.queued) == ([0, 1], 2, 3)
        with pytest.raises(Refused, match="waiting requests must be at most 3") as refused:
            await hold(admission, releases[0], order, "late")
        assert 1 <= refused.value.retry_seconds <= 60
        assert not refused.value.is_draining
        releases[1].set()
        await settle()
        assert order == [0, 1, 2]
        for release in releases:
            release.set()
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]
        assert (admission.running, admission.queued) == (0, 0)

    asyncio.run(scenario())


def test_a_client_that_leaves_the_queue_takes_no_turn():
    async def scenario():
        admission, order, release = Admission(1, 5), [], asyncio.Event()
        tasks = [asyncio.create_task(hold(admission, release, order, i)) for i in range(4)]
        await settle()
        tasks[1].cancel()
        tasks[0].cancel()  # at the same moment as the one that comes next
        await settle()
        assert (order, admission.running, admission.queued) == ([0, 2], 1, 1)
        release.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 2, 3]
        assert (admission.running, admission.queued) == (0, 0)

    asyncio.run(scenario())


def test_a_key_has_its_share():
    async def scenario():
        admission, order, release = Admission(1, 10, max_per_key=2), [], asyncio.Event()
        tasks = [asyncio.create_task(hold(admission, release, order, i, "a")) for i in range(2)]
        await settle()
        with pytest.raises(Refused, match="requests of one key at once must be at most 2"):
            await hold(admission, release, order, "more", "a")
        tasks.append(asyncio.create_task(hold(admission, release, order, "b", "b")))
        await settle()
        assert admission.queued == 2
        release.set()
        await asyncio.gather(*tasks)
        await hold(admission, release, order, "again", "a")
        assert order == [0, 1, "b", "again"]

    asyncio.run(scenario())


def test_draining_refuses_new_requests_and_waits_for_the_others():
    async def scenario():
        admission, order, release = Admission(1, 5), [], asyncio.Event()
        assert await Admission(1, 1).drain(PATIENCE)
        tasks = [asyncio.create_task(hold(admission, release, order, i)) for i in range(2)]
        await settle()
        assert not await admission.drain(0.01)
        with pytest.raises(Refused, match="shutting down") as refused:
            await hold(admission, release, order, "new")
        assert refused.value.is_draining
        draining = asyncio.create_task(admission.drain(PATIENCE))
        await settle()
        assert not draining.done()
        release.set()
        assert await draining
        await asyncio.gather(*tasks)
        assert order == [0, 1]

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(20))
def test_no_turn_is_lost_whoever_leaves(seed):
    """After requests that end, fail, or leave at any moment, every slot is free, and never were too many taken."""

    async def scenario():
        draw = random.Random(seed)
        admission = Admission(3, 8)
        most = refused = 0

        async def request():
            nonlocal most, refused
            try:
                async with admission.slot(draw.choice("ab")):
                    most = max(most, admission.running)
                    for _ in range(draw.randrange(5)):
                        await asyncio.sleep(0)
                    if draw.random() < 0.2:
                        raise KeyError
            except Refused:
                refused += 1

        tasks = []
        for _ in range(200):
            tasks.append(asyncio.create_task(request()))
            if draw.random() < 0.3:
                draw.choice(tasks).cancel()
            if draw.random() < 0.7:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (admission.running, admission.queued) == (0, 0)
        assert most == 3
        assert refused < 200
        assert await admission.drain(PATIENCE)

    asyncio.run(scenario())
