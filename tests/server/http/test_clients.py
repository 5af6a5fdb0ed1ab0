"""Clients of `POST /v1/audio/speech` that come at once, leave, wait, or read slowly."""

import concurrent.futures
import json
import socket
import threading
import time

import httpx
import pytest

from higgs_native.pipeline import HiggsAudio
from higgs_native.streaming import SpeechStream
from tests.server.conftest import TEXT, THREE_SENTENCES, events, until


def test_clients_at_once_get_what_each_gets_alone(start, streamed):
    server = start(max_running=4, max_queued=64)
    voices = ("feminine", "masculine", "scottish", "child")
    expected = {voice: streamed(voice=voice, seed=5).tobytes() for voice in voices}
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        jobs = [(voice, pool.submit(server.speak, response_format="pcm", seed=5, voice=voice)) for voice in voices * 6]
        for voice, job in jobs:
            assert job.result().content == expected[voice]
    assert server.service.admission.running == 0


class Slow:
    """Lets a speech go on frame by frame: `steps` allows frames."""

    def __init__(self, monkeypatch):
        self.steps = threading.Semaphore(0)
        self.frames = 0
        on_frame = SpeechStream._on_frame

        def slow(stream, frame):
            self.steps.acquire()
            self.frames += 1
            on_frame(stream, frame)

        monkeypatch.setattr(SpeechStream, "_on_frame", slow)

    def go_on(self):
        self.steps.release(10**6)


@pytest.fixture
def slow(monkeypatch):
    held = Slow(monkeypatch)
    yield held
    held.go_on()


def in_background(function, *arguments, **fields):
    pool = concurrent.futures.ThreadPoolExecutor(1)
    job = pool.submit(function, *arguments, **fields)
    pool.shutdown(wait=False)
    return job


def test_a_full_queue_is_told_at_once(start, slow):
    server = start(max_running=1, max_queued=1)
    jobs = [in_background(server.speak, response_format="pcm", seed=1)]
    until(lambda: server.service.admission.running == 1)
    jobs.append(in_background(server.speak, response_format="pcm", seed=1))
    until(lambda: server.service.admission.queued == 1)
    begin = time.monotonic()
    refused = server.speak()
    assert time.monotonic() - begin < 2
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert server.client.get("/health").status_code == 200
    assert server.metric("higgs_native_requests_queued") == 1
    slow.go_on()
    assert jobs[0].result().content == jobs[1].result().content != b""


def test_a_client_that_leaves_frees_its_slot(start, slow, streamed):
    server = start(max_running=1, max_queued=4)
    slow.steps.release(30)  # some more than the first chunk takes
    with server.client.stream("POST", "/v1/audio/speech", json={"input": TEXT, "response_format": "pcm"}) as response:
        pieces = response.iter_raw()  # without the name it would be closed at once
        next(pieces)
        waiting = in_background(server.speak, response_format="pcm", seed=7)
        until(lambda: server.service.admission.queued == 1)
    slow.steps.release()  # the thread notices at its next frame
    until(lambda: server.service.admission.queued == 0)
    slow.go_on()
    assert waiting.result().content == streamed(seed=7).tobytes()
    until(lambda: server.metric("higgs_native_clients_left_total") == 1)


def test_a_client_that_leaves_a_long_text_frees_its_slot(start, engine, monkeypatch):
    server = start(max_running=1, max_queued=4)
    generated = []
    prepare_request = HiggsAudio.prepare_request

    def counted(self, *arguments, **options):
        generated.append(arguments)
        return prepare_request(self, *arguments, **options)

    monkeypatch.setattr(HiggsAudio, "prepare_request", counted)
    body = {"input": THREE_SENTENCES * 20, "response_format": "pcm"}
    with server.client.stream("POST", "/v1/audio/speech", json=body) as response:
        pieces = response.iter_raw()  # without the name it would be closed at once
        next(pieces)
    until(lambda: server.service.admission.running == 0)
    spoken = len(generated)
    assert 0 < spoken < 30
    time.sleep(0.2)
    assert len(generated) == spoken


def test_a_client_that_leaves_the_queue_takes_no_turn(start, slow):
    server = start(max_running=1, max_queued=4)
    first = in_background(server.speak, response_format="pcm", seed=1)
    until(lambda: server.service.admission.running == 1)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + "/v1/audio/speech", json={"input": TEXT}, timeout=0.5)
    until(lambda: server.service.admission.queued == 0)
    slow.go_on()
    assert first.result().status_code == 200
    until(lambda: server.service.admission.running == 0)


def test_a_request_ends_at_its_deadline(start, slow):
    server = start(max_running=1, max_queued=4, deadline_seconds=0.6)
    first = in_background(server.speak, response_format="pcm")
    until(lambda: server.service.admission.running == 1)
    second = server.speak()
    assert second.status_code == 504
    assert second.json()["error"]["code"] == "deadline_exceeded"
    slow.go_on()  # the thread notices at its next frame
    assert first.result().status_code == 504
    until(lambda: server.service.admission.running == 0)


def test_an_error_in_the_middle_breaks_the_connection(start, monkeypatch):
    """A client must not take the beginning for the whole. As events, the error has a shape."""
    server = start()
    on_frame = SpeechStream._on_frame
    frames = 0

    def broken(stream, frame):
        nonlocal frames
        frames += 1
        if frames % 25 == 0:
            raise RuntimeError("the device is gone")
        on_frame(stream, frame)

    monkeypatch.setattr(SpeechStream, "_on_frame", broken)
    with pytest.raises(httpx.RemoteProtocolError):
        server.speak(response_format="pcm", seed=7)
    frames = 0
    *deltas, last = events(server.speak(response_format="pcm", seed=7, stream_format="sse"))
    assert deltas
    assert last["type"] == "error"
    assert last["error"]["code"] == "internal_error"
    assert "device" not in last["error"]["message"]
    frames = 24
    response = server.speak(response_format="pcm", seed=7)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert server.metric('higgs_native_errors_total{code="internal_error"}') == 3


def test_a_slow_reader_keeps_no_slot(start, streamed):
    """The speech is made as fast as it can be; the client reads it later."""
    server = start(max_running=1, max_queued=4)
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"input": TEXT, "response_format": "pcm", "seed": 7, "voice": "alloy"}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect((host, int(port)))
        client.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        until(lambda: server.metric("higgs_native_audio_seconds_total") > 1)
        assert server.speak(response_format="pcm", seed=7).content == streamed(seed=7).tobytes()
        received = b""
        while piece := client.recv(512):
            received += piece
    chunks = received.partition(b"\r\n\r\n")[2]
    audio = b""
    while chunks:
        size, _, chunks = chunks.partition(b"\r\n")
        audio, chunks = audio + chunks[: int(size, 16)], chunks[int(size, 16) + 2 :]
    assert audio == streamed(seed=7).tobytes()


def test_a_client_that_never_reads_is_dropped(start):
    server = start(max_running=1, max_queued=0, idle_seconds=0.5)
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"input": THREE_SENTENCES * 8, "response_format": "pcm", "seed": 7, "speed": 0.25}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect((host, int(port)))
        client.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        until(lambda: server.metric("higgs_native_clients_left_total") == 1)
        until(lambda: server.service.admission.running == 0)


def test_the_event_loop_is_never_blocked(start):
    """While texts are spoken, other requests are answered in the time of a few frames."""
    server = start(max_running=4)
    done = threading.Event()
    longest = 0.0

    def ping():
        nonlocal longest
        with httpx.Client(base_url=server.url) as client:
            while not done.is_set():
                begin = time.monotonic()
                assert client.get("/health").status_code == 200
                longest = max(longest, time.monotonic() - begin)
                time.sleep(0.02)

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        jobs = [in_background(server.speak, input=THREE_SENTENCES, speed=0.5) for _ in range(4)]
        assert {job.result().status_code for job in jobs} == {200}
    finally:
        done.set()
        thread.join()
    assert 0 < longest < 1.5
