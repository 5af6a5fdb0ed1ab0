"""Requests of an attacker are refused in the contract's shape, or read within limits, and the server goes on.

Two hundred requests drawn from the OpenAPI document run by default, the same ones in every run. More, and others:

    HIGGS_NATIVE_API_CASES=10000 python -m pytest tests/server/http/test_adversarial.py -n 0 -s
"""

import gzip
import io
import json
import os
import resource
import warnings
import wave
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress

import httpx
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.helpers.waiting import PATIENCE, until
from tests.server.conftest import open_session


CASES = int(os.environ.get("HIGGS_NATIVE_API_CASES", "200"))


def check_shape(response: httpx.Response) -> None:
    """Fail unless an error has the contract's shape, in one printable line."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].isprintable()
    assert len(error["message"]) <= 500


def peak_memory() -> int:
    """The maximum resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_requests_drawn_from_the_document_are_answered(start, tmp_path):
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    from requests.exceptions import ChunkedEncodingError  # of its client

    server = start(voices_folder=tmp_path, max_characters=30, max_batch=2, deadline_seconds=2)
    operations = [
        result.ok() for result in schemathesis.openapi.from_url(server.url + "/openapi.json").get_all_operations()
    ]
    assert len(operations) >= 10
    answers = Counter()
    # Speech takes time, and the routes that read most fields are the interesting ones.
    weights = {operation.label: 4 if operation.method == "post" else 1 for operation in operations}
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            count = max(1, CASES * weights[operation.label] // (2 * sum(weights.values())))

            @settings(
                max_examples=count,
                deadline=None,
                database=None,
                derandomize=CASES <= 200,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(mode))
            def answered(case):
                try:
                    response = case.call(timeout=PATIENCE)
                except ChunkedEncodingError:  # the deadline came after the first audio
                    answers[case.operation.label, "broken"] += 1
                    return
                answers[case.operation.label, response.status_code] += 1
                if response.status_code >= 400 and case.method != "HEAD":
                    assert response.status_code in (400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 504), (
                        response.text
                    )
                    check_shape(response)

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what schemathesis can't generate
                # Without parameters and body, nothing can be wrong.
                nothing_wrong = (
                    suppress(Unsatisfiable) if mode is schemathesis.GenerationMode.NEGATIVE else nullcontext()
                )
                with nothing_wrong:
                    answered()
    print(f"\n{sum(answers.values())} requests: {dict(answers)}")
    assert {label for label, _ in answers} == set(weights)
    assert server.client.get("/health").status_code == 200
    until(lambda: server.service.admission.running == 0)
    assert all(path.resolve().parent == tmp_path.resolve() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/v1/audio/speech", "application/json"),
        ("/v1/audio/speech/batch", "application/json"),
        ("/v1/audio/voices", "multipart/form-data; boundary=x"),
    ],
)
def test_a_body_of_100_megabytes_is_refused_before_it_is_read(server, path, content_type, has_length):
    sent = 0
    is_form = content_type.startswith("multipart")
    form_head = b'--x\r\nContent-Disposition: form-data; name="audio_sample"; filename="a"\r\n\r\n'
    head = form_head if is_form else b'{"input": "'

    def body():
        nonlocal sent
        yield head
        for _ in range(100):
            sent += 1 << 20
            yield b"a" * (1 << 20)

    headers = {"content-type": content_type}
    if has_length:
        headers["content-length"] = str(len(head) + (100 << 20))
    before = peak_memory()
    try:
        response = server.client.post(path, content=body(), headers=headers)
    except (httpx.NetworkError, httpx.ProtocolError):  # the server has closed the connection before it was all sent
        assert sent < 100 << 20
    else:
        assert response.status_code == 413
        check_shape(response)
    assert peak_memory() - before < 90 << 20
    assert server.client.get("/health").status_code == 200


def audio_bomb(seconds: int) -> bytes:
    """Silence in a file that is thousands of times smaller than its samples."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(seconds * 8000, dtype=np.int16), 8000, format="FLAC")
    return file.getvalue()


def lying_wav() -> bytes:
    """A header that promises 4 GB of samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(8000)
        wav.writeframes(bytes(8000))
    data = bytearray(file.getvalue())
    data[40:44] = b"\xff\xff\xff\xff"
    return bytes(data)


def test_audio_that_grows_when_it_is_decoded_is_refused(server):
    bomb = audio_bomb(3600)
    assert 1000 * len(bomb) < 3600 * 8000 * 4  # as float32
    before = peak_memory()
    for data in (bomb, gzip.compress(bytes(1 << 24)), zlib.compress(bytes(1 << 24))):
        response = server.client.post("/v1/audio/voices/check", files={"audio_sample": ("a", data)})
        assert response.status_code == 400
        check_shape(response)
    assert server.client.post("/v1/audio/voices/check", files={"audio_sample": ("a", lying_wav())}).status_code in (
        200,
        400,
    )
    assert peak_memory() - before < 300 << 20


def test_a_compressed_body_is_not_unpacked(server):
    body = gzip.compress(json.dumps({"input": "a" * (1 << 24)}).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = server.client.post("/v1/audio/speech", content=body, headers=headers)
    assert response.status_code == 400
    check_shape(response)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/audio/voices/..%2f..%2fetc%2fpasswd",
        "/v1/audio/voices/%00",
        "/v1/audio/voices/" + "a" * 10_000,
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e/%2e%2e/cli/serve.py",
        "/page/%00",
        "//etc/passwd",
        "/v1/models/..%2f..",
    ],
)
def test_a_path_leads_nowhere_else(server, path):
    for method in ("GET", "DELETE"):
        # The client would resolve the dots itself.
        url = httpx.URL(server.url).copy_with(raw_path=path.encode())
        response = server.client.request(method, url)
        assert response.status_code in (403, 404, 405)
        check_shape(response)


def test_a_flood_of_sessions_is_refused(start):
    server = start(max_running=2, max_queued=6)
    refusals = []
    num_opened = 0
    with ExitStack() as sessions:
        for _ in range(30):
            try:
                sessions.enter_context(open_session(server))
                num_opened += 1
            except InvalidStatus as error:
                refusals.append(error.response)
        for response in refusals:
            assert response.status_code == 429
            assert set(json.loads(response.body)["error"]) == {"message", "type", "param", "code"}
        assert (num_opened, len(refusals)) == (8, 22)
        assert server.client.get("/health").status_code == 200
        assert server.speak().status_code == 200
    until(lambda: server.service.sessions == 0)


@pytest.mark.parametrize(
    ("message", "count"),
    [
        ('{"type": "text", "text": ""}', 20_000),
        ('{"type": "flush"}', 20_000),
        ('{"type": "cancel"}', 20_000),
        ('{"type": "text", "text": "a. "}', 30_000),
        ('{"type": "text", "text": "' + "a" * (20 << 20) + '"}', 1),
    ],
    ids=["empty", "flush", "cancel", "sentences", "large"],
)
def test_a_flood_of_messages_ends_the_session_only(start, message, count):
    server = start(max_running=2, max_characters=2000)
    before = peak_memory()
    with open_session(server) as socket, ThreadPoolExecutor(1) as pool:
        socket.send('{"type": "session", "voice": "alloy"}')

        def flood():
            try:
                for _ in range(count):
                    socket.send(message)
                socket.close()
            except ConnectionClosed:
                return

        job = pool.submit(flood)
        for _ in range(3):
            assert server.client.get("/health").status_code == 200
        job.result()
    until(lambda: server.service.sessions == 0)
    until(lambda: server.service.admission.running == 0)
    assert peak_memory() - before < 200 << 20
    assert server.speak().status_code == 200
