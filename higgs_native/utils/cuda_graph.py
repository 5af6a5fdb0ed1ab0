"""CUDA graphs: work on fixed tensors, captured once and then launched as one."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch


CAPTURE_LOCK = threading.RLock()
"""Held during captures. A capture begins by waiting for the device, which fails while another thread captures; so does
an allocation that has to give cached memory back, so whoever allocates gigabytes takes the lock, too.
"""


class GraphedWork(ABC):
    """Work that reads and writes the same tensors each time; `run` does it, as one CUDA graph after `capture_graphs`.

    A base class, not a wrapper around a function: a wrapper that holds a bound method would form a reference cycle
    with its owner, and a model's memory would wait for the garbage collector.
    """

    _graph: torch.cuda.CUDAGraph | None = None

    @abstractmethod
    def compute(self) -> None:
        """Do the work by launching its kernels one by one."""

    def run(self) -> None:
        """Do the work on the current stream."""
        if self._graph is None:
            self.compute()
        else:
            self._graph.replay()


def capture_graphs(works: Iterable[GraphedWork], stream: torch.cuda.Stream) -> None:
    """Capture each work on `stream`, after running it once there: a kernel's first run may do what a capture can't.

    The graphs share a memory pool, so no two of them may run at the same time. Pass the largest work first: the others
    then fit into its memory.

    A capture that fails raises, and nothing falls back to `compute`: torch's allocator and random generators stay in
    capture mode after a failure, so later allocations of the process could fail.

    Raises:
        RuntimeError: the work can't be captured; torch.OutOfMemoryError: the device has no memory left for it.
    """
    pool = torch.cuda.graph_pool_handle()
    with CAPTURE_LOCK:
        for work in works:
            current = torch.cuda.current_stream(stream.device)
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                work.compute()
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may go on with their own work.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                work.compute()
            work._graph = graph
