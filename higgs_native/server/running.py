"""One process of a server: it serves until a signal, then drains."""

import asyncio
import contextlib
import math
import multiprocessing
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import uvicorn

from higgs_native.audio.quality import VoiceWarning
from higgs_native.pipeline import HiggsAudio
from higgs_native.server.http.app import create_app
from higgs_native.server.observing import log, log_as_json
from higgs_native.server.settings import ServerSettings
from higgs_native.server.speech.service import SpeechService
from higgs_native.server.workers import Worker


_BACKLOG = 2048


def run(
    load: Callable[..., HiggsAudio],
    settings: ServerSettings,
    bound: socket.socket,
    on_listening: Callable[[], None],
    worker: Worker | None = None,
    wyoming: socket.socket | None = None,
) -> None:
    """Load the weights and serve until SIGTERM or SIGINT, then drain. A second signal ends the server at once.

    Args:
        load: returns the engine; it takes `local_files_only`, as `HiggsAudio.from_pretrained`.
        settings: of the server.
        bound: the socket to listen at.
        on_listening: called when connections are accepted.
        worker: this process, if it is one of several. Its supervisor sends one signal, and kills it instead of sending
            a second; service managers may have sent theirs to both.
        wyoming: the socket for clients of that protocol.

    Raises:
        HiggsNativeError: the weights, or the folder of voices, can't be read.
    """
    warnings.filterwarnings("ignore", category=VoiceWarning)  # uploads are answered with the same advice
    engine = load()
    if engine.is_embedded_voice:
        # Requests run side by side on all cores. Sharing the small operators of one makes them wait for each other.
        torch.set_num_threads(1)
    # A name on the Hub stays the version that was loaded first.
    app = create_app(engine, settings, worker, partial(load, local_files_only=True))
    del engine  # the application alone holds it, so that it can be released
    log_as_json(**({} if worker is None else {"worker": worker.index}))
    # Logs have a line per request already. Half a minute fits the pauses of clients that reuse connections.
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),  # for clients that still read
    )
    if worker is not None:
        bound = _SharedSocket(fileno=bound.detach())
    bound.listen(_BACKLOG)
    on_listening()
    asyncio.run(_serve(_Server(config), app.state.service, bound, worker, wyoming))


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_serve`: uvicorn would stop listening at once, and raise the signal again at the end."""
        yield


class _SharedSocket(socket.socket):
    """Gives an event loop one connection per wake-up.

    asyncio accepts until no connection is left, so the first of several processes to wake up would take all of them.
    """

    _is_asked_again = True

    def accept(self) -> tuple[socket.socket, Any]:
        self._is_asked_again = not self._is_asked_again
        if self._is_asked_again:
            raise BlockingIOError
        return super().accept()


async def _serve(
    server: uvicorn.Server,
    service: SpeechService,
    bound: socket.socket,
    worker: Worker | None,
    wyoming: socket.socket | None,
) -> None:
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set() and worker is None:
            server.should_exit = server.force_exit = True
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT) if worker is None else (signal.SIGTERM,):
        if sys.platform == "win32":  # whose event loops handle no signals
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
        else:
            loop.add_signal_handler(number, stop)
    if worker is not None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        supervisor = parent.sentinel

        def stop_without_supervisor() -> None:
            loop.remove_reader(supervisor)
            stop()

        loop.add_reader(supervisor, stop_without_supervisor)
    async with contextlib.AsyncExitStack() as beside:
        if worker is not None:
            await beside.enter_async_context(worker.reporting(service.report))
        if wyoming is not None:
            from higgs_native.server.wyoming import serving_wyoming

            await beside.enter_async_context(serving_wyoming(service, wyoming))
        if (seconds := service.settings.unload_seconds) is not None:
            releasing = asyncio.create_task(service.release_when_idle(seconds))
            beside.callback(releasing.cancel)
        serving = asyncio.create_task(server.serve([bound]))
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            log("draining", running=service.admission.running, queued=service.admission.queued)
            draining = asyncio.create_task(service.admission.drain(service.settings.drain_seconds))
            await asyncio.wait((serving, draining), return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
            server.should_exit = True
        stopped.cancel()
        await serving
