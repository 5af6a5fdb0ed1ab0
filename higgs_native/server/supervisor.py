"""One server of several processes, one per device, behind one port.

The processes inherit one socket, and the kernel gives each connection to one that waits for it. A process that dies
after it has served is started again, while the others go on. A process that dies before it serves would die again, so
the server ends, after the others have drained.
"""

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from higgs_native._C import cpu_quota
from higgs_native.errors import HiggsNativeError
from higgs_native.pipeline import HiggsAudio
from higgs_native.server.observing import LOGGER, log_as_json
from higgs_native.server.running import run
from higgs_native.server.settings import ServerSettings
from higgs_native.server.workers import Worker


assert sys.platform != "win32"  # whose processes inherit no socket; `higgs-native serve` refuses --devices there

_SPAWN = multiprocessing.get_context("spawn")  # a forked process can't use CUDA


class WorkerError(RuntimeError):
    """A process of the server has died, and the server with it."""


class Supervisor:
    """Starts the processes, restarts those that die, and ends them all.

    Args:
        devices: one per process; a device may be named several times.
        load: returns the engine on a `device`. It is pickled.
        settings: of the server. Limits hold for each process.
        bound: the socket to listen at.
        on_listening: called when all processes serve for the first time.
        wyoming: the socket for clients of that protocol.
    """

    def __init__(
        self,
        devices: tuple[str, ...],
        load: Callable[..., HiggsAudio],
        settings: ServerSettings,
        bound: socket.socket,
        on_listening: Callable[[], None],
        wyoming: socket.socket | None = None,
    ) -> None:
        self._devices = devices
        self._load = load
        self._settings = settings
        self._bound = bound
        self._wyoming = wyoming
        self._on_listening = on_listening
        self._processes: dict[int, BaseProcess] = {}
        self._loading = set(range(len(devices)))  # until the first time that they serve
        self._is_stopping = False

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain. A second signal ends all processes at once.

        Raises:
            HiggsNativeError: the weights, or the folder of voices, can't be read.
            WorkerError: a process died before it served, or while it drained.
        """
        log_as_json()
        _share_cores(self._devices)
        with tempfile.TemporaryDirectory(prefix="higgs-native-") as folder:
            asyncio.run(self._run(Path(folder)))

    async def _run(self, folder: Path) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop)
        workers = [Worker(index, self._devices, folder) for index in range(len(self._devices))]
        ends = await asyncio.gather(*map(self._keep, workers), return_exceptions=True)
        for error in filter(None, ends):
            raise error

    def _stop(self) -> None:
        for process in self._processes.values():
            if self._is_stopping:
                process.kill()
            else:
                process.terminate()
        self._is_stopping = True

    async def _keep(self, worker: Worker) -> None:
        """Keep a worker running, in a new process if one dies, until the server ends. An error ends the server."""
        try:
            while not self._is_stopping:
                await self._watch(worker)
        except Exception:
            if not self._is_stopping:
                self._stop()
            raise

    async def _watch(self, worker: Worker) -> None:
        """Start a process, and wait for its end."""
        process, messages = self._start(worker)
        self._processes[worker.index] = process
        serves = await self._is_serving(messages)
        if serves:
            self._loading.discard(worker.index)
            if not self._loading:
                self._on_listening()
                self._on_listening = lambda: None
        await _readable(process.sentinel)
        process.join()
        self._check(worker, process.exitcode or 0, serves)  # None: not ended, which `join` has waited for

    def _start(self, worker: Worker) -> tuple[BaseProcess, Connection]:
        """Start a process. Return it with the pipe that tells that it serves, or which error ended it."""
        messages, sender = _SPAWN.Pipe(duplex=False)
        arguments = (worker, self._load, self._settings, self._bound, self._wyoming, sender)
        process = _SPAWN.Process(target=_work, args=arguments, name=f"worker {worker.index}")
        # Ctrl-C goes to all processes of a terminal, and this one passes it on. Ignoring it is inherited.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.start()
        signal.signal(signal.SIGINT, handler)
        sender.close()
        return process, messages

    async def _is_serving(self, messages: Connection) -> bool:
        """Wait until a process serves or has ended. Return whether it serves."""
        with messages:
            await _readable(messages.fileno())
            try:
                error = messages.recv()
            except EOFError:
                return False
        if error is not None:
            raise error
        return True

    def _check(self, worker: Worker, exit_code: int, has_served: bool) -> None:
        """Raise WorkerError if the end of a process must end the server."""
        device = self._devices[worker.index]
        if self._is_stopping:
            if exit_code not in (0, -signal.SIGTERM, -signal.SIGKILL):
                raise WorkerError(f"worker {worker.index} on {device} must drain, got exit code {exit_code}")
            return
        if not has_served:
            raise WorkerError(f"worker {worker.index} on {device} must serve, got exit code {exit_code} before it did")
        fields = {"worker": worker.index, "device": device, "exit_code": exit_code}
        LOGGER.error("worker died and is started again", extra={"fields": fields})


def _work(
    worker: Worker,
    load: Callable[..., HiggsAudio],
    settings: ServerSettings,
    bound: socket.socket,
    wyoming: socket.socket | None,
    messages: Connection,
) -> None:
    """Run a process of the server."""
    load_here = partial(load, device=worker.devices[worker.index])
    try:
        run(load_here, settings, bound, lambda: messages.send(None), worker, wyoming)
    except HiggsNativeError as error:
        with suppress(BrokenPipeError):
            messages.send(error)


def _share_cores(devices: tuple[str, ...]) -> None:
    """Give each process on the CPU its share of the cores: more threads than cores wait for each other."""
    on_cpu = devices.count("cpu")
    if on_cpu > 1:
        if sys.platform == "linux":
            cores = len(os.sched_getaffinity(0))
        else:
            cores = os.cpu_count() or 1
        cores = min(cores, cpu_quota("") or cores)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // on_cpu)))


async def _readable(descriptor: int) -> None:
    """Wait until a pipe has something to read, or its other end is closed."""
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
