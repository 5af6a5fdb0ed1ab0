"""A server in a thread, and what clients need to speak to it."""

import io
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import uvicorn
from websockets.sync.client import ClientConnection, connect

import higgs_native
from higgs_native.audio.samples import pcm_samples
from higgs_native.pipeline import HiggsAudio
from higgs_native.server.http.app import create_app
from higgs_native.server.settings import ServerSettings
from higgs_native.server.speech.service import SpeechService
from higgs_native.streaming import SpeechStream
from tests.helpers.waiting import PATIENCE, join, until


THREE_SENTENCES = "The sun rises in the east. We walk home. The water is cold and clear."
TEXT = "The sun rises in the east."
LONG_TEXT = f"{THREE_SENTENCES} " * 3
ENDLESS = {"input": LONG_TEXT * 20, "response_format": "pcm", "speed": 0.25}
"""A speech of 60 MB, more than all buffers hold: it goes on as long as its client does not read."""


@dataclass
class Running:
    """A server that runs, with a client for it, and the thread of its event loop."""

    url: str
    service: SpeechService
    client: httpx.Client
    thread: threading.Thread

    def speak(self, **fields) -> httpx.Response:
        return self.client.post("/v1/audio/speech", json={"input": TEXT, "voice": "alloy", **fields})

    def metric(self, name: str) -> float:
        (value,) = [
            line.split()[-1] for line in self.client.get("/metrics").text.splitlines() if line.startswith(name + " ")
        ]
        return float(value)


@contextmanager
def running(engine: HiggsAudio, **settings) -> Iterator[Running]:
    app = create_app(engine, ServerSettings(**settings))
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=PATIENCE) as client:
            yield Running(url, app.state.service, client, thread)
    finally:
        server.should_exit = True
        join(thread)


@pytest.fixture(scope="session")
def engine() -> HiggsAudio:
    """The embedded voice."""
    return HiggsAudio.from_pretrained()


@pytest.fixture(scope="module")
def start(engine) -> Iterator[Callable[..., Running]]:
    """Starts a server with settings; it runs until the end of the module."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(engine, **settings))


@pytest.fixture(scope="module")
def server(start) -> Running:
    """A server with default settings."""
    return start()


@pytest.fixture(scope="session")
def streamed(engine) -> Callable[..., np.ndarray]:
    """Speaks by `HiggsAudio.stream`; returns samples as int16."""

    def speak(text: str = TEXT, voice: str = "feminine", **options) -> np.ndarray:
        return pcm_samples(np.concatenate([chunk.samples for chunk in engine.stream(text, voice=voice, **options)]))

    return speak


class Held:
    """Lets speeches go on frame by frame: `steps` allows frames. A speech whose client has left ends."""

    def __init__(self, monkeypatch):
        self.steps = threading.Semaphore(0)
        on_frame = SpeechStream._on_frame

        def held(stream, frame):
            while not self.steps.acquire(timeout=0.01):
                stream.check()
            on_frame(stream, frame)

        monkeypatch.setattr(SpeechStream, "_on_frame", held)

    def go_on(self):
        self.steps.release(10**6)


@pytest.fixture
def held(monkeypatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.go_on()


@contextmanager
def serving(folder: Path) -> Iterator[Callable[..., tuple[subprocess.Popen, str, Path]]]:
    """Starts the command with options in a folder; gives the process, the address and the file of its log."""
    processes = []

    def start(*options, **variables):
        log = folder / f"{len(processes)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "higgs_native", "serve", "--port", "0", *options],
                env={**os.environ, "PYTHONPATH": str(Path(higgs_native.__file__).parent.parent), **variables},
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=file,
            )
        processes.append(process)

        def address():
            assert process.poll() is None, log.read_text()
            complete, _, _ = log.read_text().rpartition("\n")
            return [line for line in complete.splitlines() if line.startswith("Speech at ")]

        until(lambda: bool(address()))
        url = address()[0].removeprefix("Speech at ").removesuffix("/v1/audio/speech")
        until(lambda: answers(url))
        return process, url, log

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable[..., tuple[subprocess.Popen, str, Path]]]:
    """See `serving`."""
    with serving(tmp_path) as start:
        yield start


def answers(url: str) -> bool:
    try:
        return get(url, "/health").status_code == 200
    except httpx.ConnectError:
        return False


def get(url: str, path: str, **options) -> httpx.Response:
    """Ask a server in a process."""
    return httpx.get(url + path, timeout=PATIENCE, **options)


def speak(url: str, **fields) -> httpx.Response:
    """Send a request to a server in a process."""
    return httpx.post(url + "/v1/audio/speech", json={"voice": "alloy", "seed": 1, **fields}, timeout=PATIENCE)


@contextmanager
def speech_begun(url: str, **fields) -> Iterator[Iterator[bytes]]:
    """A speech that has begun: what follows of its audio, which the client doesn't read by itself."""
    body = {"voice": "alloy", "seed": 1, "response_format": "pcm", **fields}
    with httpx.stream("POST", url + "/v1/audio/speech", json=body, timeout=PATIENCE) as response:
        pieces = response.iter_raw()
        first = next(pieces)
        yield itertools.chain([first], pieces)


def open_session(server: Running, **options) -> ClientConnection:
    """Open a WebSocket, to be used as a context manager."""
    url = server.url.replace("http", "ws") + "/v1/audio/speech/stream"
    limits = {"open_timeout": PATIENCE, "close_timeout": PATIENCE, "ping_interval": None}
    return connect(url, proxy=None, **limits, **options)


def decoded(data: bytes, format: str | None = None) -> tuple[np.ndarray, int]:
    """Decode an encoded file: samples [samples], float32, and the sampling rate. None: the format is detected."""
    with av.open(io.BytesIO(data), format=format) as container:
        resampler = av.AudioResampler("fltp", "mono")
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        return np.concatenate([frame.to_ndarray()[0] for frame in frames]), container.streams.audio[0].rate


def events(response: httpx.Response) -> list[dict]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def correlation(decoded_samples: np.ndarray, samples: np.ndarray) -> float:
    """The maximum of the normalized cross-correlation of two signals, which may begin at different times."""
    size = 1 << (len(decoded_samples) + len(samples)).bit_length()
    spectrum = np.fft.rfft(decoded_samples, size) * np.conj(np.fft.rfft(samples, size))
    products = np.fft.irfft(spectrum, size)
    return float(products.max() / np.sqrt((decoded_samples**2).sum() * (samples**2).sum()))
