"""Clients of `POST /v1/audio/speech` that come at once, leave, wait, or read slowly."""

import concurrent.futures
import itertools
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest

from higgs_native.generation.engine import Engine
from higgs_native.pipeline import HiggsAudio
from higgs_native.server.speech.encoder import AudioEncoder
from higgs_native.server.speech.speaking import Speaker
from higgs_native.streaming import SpeechStream
from tests.helpers.waiting import until
from tests.server.conftest import ENDLESS, TEXT, THREE_SENTENCES, events


def test_clients_at_once_get_what_each_gets_alone(start, streamed):
    server = start(max_running=16, max_queued=64)
    voices = ("feminine", "masculine", "george", "puck") * 16
    expected = {voice: streamed(voice=voice, seed=5).tobytes() for voice in set(voices)}
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        jobs = [(voice, pool.submit(server.speak, response_format="pcm", seed=5, voice=voice)) for voice in voices]
        for voice, job in jobs:
            assert job.result().content == expected[voice]
    assert server.service.admission.running == 0


def in_background(function, *arguments, **fields):
    pool = concurrent.futures.ThreadPoolExecutor(1)
    job = pool.submit(function, *arguments, **fields)
    pool.shutdown(wait=False)
    return job


def test_a_full_queue_is_told_at_once(start, held):
    server = start(max_running=1, max_queued=1)
    jobs = [in_background(server.speak, response_format="pcm", seed=1)]
    until(lambda: server.service.admission.running == 1)
    jobs.append(in_background(server.speak, response_format="pcm", seed=1))
    until(lambda: server.service.admission.queued == 1)
    refused = server.speak()  # answered while the others are held
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert server.client.get("/health").status_code == 200
    assert server.metric("higgs_native_requests_queued") == 1
    held.go_on()
    assert jobs[0].result().content == jobs[1].result().content != b""


def test_a_client_that_leaves_frees_its_slot(start, held, streamed):
    server = start(max_running=1, max_queued=4)
    held.steps.release(30)  # a few more than the first chunk takes
    with server.client.stream("POST", "/v1/audio/speech", json={"input": TEXT, "response_format": "pcm"}) as response:
        pieces = response.iter_raw()  # without the name it would be closed at once
        next(pieces)
        waiting = in_background(server.speak, response_format="pcm", seed=7)
        until(lambda: server.service.admission.queued == 1)
    until(lambda: server.service.admission.queued == 0)
    held.go_on()
    assert waiting.result().content == streamed(seed=7).tobytes()
    until(lambda: server.metric("higgs_native_clients_left_total") == 1)


def test_a_client_that_leaves_a_long_text_frees_its_slot(start, held, monkeypatch):
    server = start(max_running=1, max_queued=4)
    generated = []
    prepare_request = HiggsAudio.prepare_request

    def counted(self, *arguments, **options):
        generated.append(arguments)
        return prepare_request(self, *arguments, **options)

    monkeypatch.setattr(HiggsAudio, "prepare_request", counted)
    held.steps.release(30)
    body = {"input": THREE_SENTENCES * 20, "response_format": "pcm"}
    with server.client.stream("POST", "/v1/audio/speech", json=body) as response:
        pieces = response.iter_raw()  # without the name it would be closed at once
        next(pieces)
    until(lambda: server.service.admission.running == 0)
    spoken = len(generated)
    assert 0 < spoken < 30
    held.go_on()
    time.sleep(0.2)  # in which a speech that goes on would prepare the next sentence
    assert len(generated) == spoken


def test_a_client_that_leaves_the_queue_takes_no_turn(start, held):
    server = start(max_running=1, max_queued=4)
    first = in_background(server.speak, response_format="pcm", seed=1)
    until(lambda: server.service.admission.running == 1)
    with connected(server, input=TEXT):
        until(lambda: server.service.admission.queued == 1)
    until(lambda: server.service.admission.queued == 0)
    held.go_on()
    assert first.result().status_code == 200
    until(lambda: server.service.admission.running == 0)


def test_a_request_ends_at_its_deadline(start, held, monkeypatch):
    server = start(max_running=1, max_queued=4)
    first = in_background(server.speak, response_format="pcm")
    until(lambda: server.service.admission.running == 1)
    monkeypatch.setattr(server.service, "settings", replace(server.service.settings, deadline_seconds=0.3))
    waited = server.speak()
    held.go_on()
    assert first.result().status_code == 200
    while held.steps.acquire(blocking=False):
        continue
    for answer in (waited, server.speak()):  # one in the queue, one that is spoken
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
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
    # A request is counted when its response has been sent.
    until(lambda: server.metric('higgs_native_errors_total{code="internal_error"}') == 3)


@contextmanager
def connected(server, **fields) -> Iterator[socket.socket]:
    """A client that has sent a request, and reads as little as it likes."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"response_format": "pcm", "seed": 7, "voice": "alloy", **fields}).encode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect((host, int(port)))
        client.sendall(head.encode() + body)
        yield client


def test_a_slow_reader_keeps_no_slot(start, streamed):
    """The speech is made as fast as it can be; the client reads it later."""
    server = start(max_running=1, max_queued=4)
    with connected(server, input=TEXT) as client:
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
    with connected(server, **ENDLESS):
        until(lambda: server.metric("higgs_native_clients_left_total") == 1)
        until(lambda: server.service.admission.running == 0)


def test_work_is_not_done_in_the_event_loop(start, monkeypatch):
    """Other requests are answered while a text is spoken."""
    server = start()
    threads = defaultdict(set)

    def record(owner, name):
        function = getattr(owner, name)

        def recorded(*arguments, **options):
            threads[name].add(threading.get_ident())
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, recorded)

    work = {
        Speaker: ("utterance", "_stream", "_timed_words"),
        AudioEncoder: ("encode", "finish"),
        SpeechStream: ("_on_frame",),
        Engine: ("step",),
    }
    for owner, names in work.items():
        for name in names:
            record(owner, name)
    fields = {"speed": 0.5, "stream_format": "sse", "timestamp_granularities": ["word"]}
    for text in (TEXT, THREE_SENTENCES):
        assert server.speak(input=text, **fields).status_code == 200
    assert sorted(threads) == sorted(itertools.chain.from_iterable(work.values()))
    assert [name for name, idents in threads.items() if server.thread.ident in idents] == []
