"""Captured work: on a GPU, and its order of events without one."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from higgs_native.utils import cuda_graph
from higgs_native.utils.cuda_graph import CAPTURE_LOCK, GraphedWork, capture_graphs
from tests.helpers.devices import NEEDS_CUDA


class Increment(GraphedWork):
    """Adds 1 to `total`, and counts the calls of `compute`."""

    def __init__(self, size: int, device: str = "cpu") -> None:
        self.total = torch.zeros(size, device=device)
        self.computed = 0

    def compute(self) -> None:
        self.computed += 1
        self.total += torch.ones_like(self.total)


class FakeStream:
    device = torch.device("cpu")

    def wait_stream(self, other: object) -> None:
        pass


class FakeGraph:
    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def captures(monkeypatch):
    """Stands in for torch's captures; returns the arguments of each."""
    taken = []

    @contextmanager
    def capture(graph, **options):
        with ThreadPoolExecutor(1) as other:
            assert not other.submit(CAPTURE_LOCK.acquire, blocking=False).result()
        taken.append(options)
        yield

    @contextmanager
    def on_stream(stream):
        yield

    monkeypatch.setattr(cuda_graph.torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(cuda_graph.torch.cuda, "graph", capture)
    monkeypatch.setattr(cuda_graph.torch.cuda, "stream", on_stream)
    monkeypatch.setattr(cuda_graph.torch.cuda, "current_stream", lambda device: FakeStream())
    monkeypatch.setattr(cuda_graph.torch.cuda, "graph_pool_handle", lambda: (0, 1))
    return taken


def test_work_that_is_not_captured_is_computed():
    work = Increment(3)
    work.run()
    work.run()
    assert work.computed == 2
    assert work.total.tolist() == [2, 2, 2]


def test_captures_share_a_pool_and_the_lock_and_are_replayed(captures):
    works, stream = [Increment(size) for size in (4, 2, 1)], FakeStream()
    capture_graphs(works, stream)
    assert captures == 3 * [{"pool": (0, 1), "stream": stream, "capture_error_mode": "thread_local"}]
    for work in works:
        assert work.computed == 2  # a run before the capture, and the capture
        work.run()
        assert work.computed == 2
        assert work._graph.replays == 1
    assert CAPTURE_LOCK.acquire(blocking=False)
    CAPTURE_LOCK.release()


def test_a_capture_that_fails_raises_and_releases_the_lock(captures):
    class Refused(Increment):
        def compute(self) -> None:
            super().compute()
            if self.computed == 2:
                raise RuntimeError("operation not permitted when stream is capturing")

    work = Refused(1)
    with pytest.raises(RuntimeError, match="not permitted"):
        capture_graphs([work], FakeStream())
    assert work._graph is None
    with ThreadPoolExecutor(1) as other:
        assert other.submit(CAPTURE_LOCK.acquire, blocking=False).result()
        other.submit(CAPTURE_LOCK.release).result()


@NEEDS_CUDA
def test_a_replay_does_the_work_on_a_gpu():
    work = Increment(5, "cuda")
    capture_graphs([work], torch.cuda.Stream())
    for _ in range(3):
        work.run()
    # The run before the capture counts, the capture does not.
    assert work.total.tolist() == [4] * 5


@NEEDS_CUDA
def test_threads_may_capture_at_once_on_a_gpu():
    def totals(_: int) -> list[float]:
        works = [Increment(size, "cuda") for size in (64, 8, 1)]
        capture_graphs(works, torch.cuda.Stream())
        for work in works:
            work.run()
        torch.cuda.synchronize()
        return [work.total[0].item() for work in works]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(totals, range(4))) == 4 * [[2.0, 2.0, 2.0]]
