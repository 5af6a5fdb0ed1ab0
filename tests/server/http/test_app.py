"""Rules of all routes: keys, limits, ids, logs, metrics, and the OpenAPI document."""

import json
import logging
import re
import time

import httpx
import pytest

from higgs_native.errors import ParameterError
from higgs_native.server.observing import LOGGER, log_as_json
from higgs_native.server.settings import ServerSettings
from tests.helpers.waiting import until
from tests.server.conftest import TEXT


def shape(response: httpx.Response) -> dict:
    """The error of a response in the contract's shape."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Bearer secret-12", "Basic secret-1", "secret"]
)
def test_a_wrong_key_is_refused(start, header):
    server = start(api_keys=("secret-1", "secret-22"))
    headers = {} if header is None else {"authorization": header}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/audio/speech"), ("DELETE", "/v1/audio/voices/a")):
        response = server.client.request(method, path, headers=headers)
        assert response.status_code == 401
        assert shape(response)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    assert server.client.get("/v1/models", headers={"authorization": "Bearer secret-22"}).status_code == 200


def test_a_key_has_a_share_of_the_requests(start):
    server = start(api_keys=("one", "two"), max_per_key=1)
    admission = server.service.admission
    admission._per_key["key-0"] = 1  # a request of the first key that runs
    speech = {"input": "Hello.", "voice": "alloy"}
    refused = server.client.post("/v1/audio/speech", json=speech, headers={"authorization": "Bearer one"})
    assert refused.status_code == 429
    assert "retry-after" in refused.headers
    other = server.client.post("/v1/audio/speech", json=speech, headers={"authorization": "Bearer two"})
    assert other.status_code == 200


def test_large_bodies_are_refused(start):
    server = start(max_body_bytes=1000)
    for path in ("/v1/audio/speech", "/v1/audio/voices"):
        response = server.client.post(path, content=b"a" * 1001)
        assert response.status_code == 413
        assert shape(response)["code"] == "request_too_large"

    def pieces():
        for _ in range(20):
            yield b" " * 100

    response = server.client.post("/v1/audio/speech", content=pieces())
    assert response.status_code == 413
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert server.client.post("/v1/audio/voices", content=pieces(), headers=form).status_code in (400, 413)
    assert server.speak().status_code == 200


def test_texts_have_a_limit(start):
    server = start(max_characters=10)
    refused = server.speak(input="a" * 11)
    assert shape(refused)["code"] == "string_above_max_length"
    assert server.speak(input="Hello you.").status_code == 200


def test_other_origins_are_allowed_by_name(start, server):
    allowing = start(cors_origins=("https://app.example",), api_keys=("key",))
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    preflight = allowing.client.options("/v1/audio/speech", headers={"origin": "https://app.example", **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    refused = allowing.client.post("/v1/audio/speech", headers={"origin": "https://app.example"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")
    other = allowing.client.post("/v1/audio/speech", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in server.client.get("/v1/models", headers={"origin": "x"}).headers


def test_unknown_routes_have_the_shape(server):
    for method, path, status in (("GET", "/nope", 404), ("PUT", "/v1/models", 405), ("GET", "/v1/audio/speech", 405)):
        response = server.client.request(method, path)
        assert response.status_code == status
        assert shape(response)["type"] == "invalid_request_error"


def test_a_request_has_an_id(server):
    given = server.client.get("/health", headers={"x-request-id": "abc-1.2_3"})
    assert given.headers["x-request-id"] == "abc-1.2_3"
    for unfit in ("a b", "a" * 65, 'a"b'):
        made = server.client.get("/health", headers={"x-request-id": unfit}).headers["x-request-id"]
        assert made != unfit
        assert made.isalnum()
    ids = {server.client.get("/health").headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


def test_the_log_has_a_line_per_request(server, capsys):
    log_as_json()
    logged = set()
    seen = logging.Handler()  # after the one that writes
    seen.emit = lambda record: logged.add(record.fields["request_id"])
    LOGGER.addHandler(seen)
    try:
        server.client.post(
            "/v1/audio/speech",
            json={"input": TEXT, "voice": "alloy", "seed": 5},
            headers={"x-request-id": "speech-1", "authorization": "Bearer hidden-key"},
        )
        server.client.post("/v1/audio/speech", json={}, headers={"x-request-id": "wrong-1"})
        until(lambda: {"speech-1", "wrong-1"} <= logged)
    finally:
        for logger in (LOGGER, logging.getLogger("uvicorn.error")):
            logger.handlers, logger.propagate = [], True
            logger.setLevel(logging.NOTSET)
    text = capsys.readouterr().err
    lines = {line["request_id"]: line for line in map(json.loads, text.splitlines())}
    speech, wrong = lines["speech-1"], lines["wrong-1"]
    assert (speech["status"], speech["path"], speech["seed"], speech["format"]) == (200, "/v1/audio/speech", 5, "mp3")
    assert speech["characters"] == len(TEXT)
    assert speech["audio_seconds"] > 1
    assert 0 <= speech["queue_seconds"] <= speech["first_audio_seconds"] <= speech["seconds"]
    assert (wrong["status"], wrong["code"]) == (400, "missing_required_parameter")
    assert "hidden-key" not in text
    assert TEXT not in text


def test_metrics_count(start):
    server = start()
    begin = time.monotonic()
    response = server.speak(response_format="pcm", seed=1)
    took = time.monotonic() - begin
    server.speak(voice="zoe")
    seconds = len(response.content) / 48_000
    assert server.metric("higgs_native_audio_seconds_total") == pytest.approx(seconds)
    for status in (200, 400):  # counted when a request is over, after its client has the answer
        name = f'higgs_native_requests_total{{route="/v1/audio/speech",status="{status}"}} 1.0'
        until(lambda name=name: name in server.client.get("/metrics").text)
    assert server.metric('higgs_native_errors_total{code="voice_not_found"}') == 1
    for name in ("time_to_first_audio_seconds", "queue_time_seconds", "real_time_factor"):
        assert server.metric(f"higgs_native_{name}_count") == 1
    assert 0 < server.metric("higgs_native_time_to_first_audio_seconds_sum") < took
    assert server.metric('higgs_native_tokens_total{kind="output"}') > 30
    assert 0 <= server.metric("higgs_native_cache_pages_held") <= server.metric("higgs_native_cache_pages")
    assert server.metric("higgs_native_cache_pages") > 0
    assert server.metric("higgs_native_sequences_running") == server.metric("higgs_native_preempted") == 0
    assert server.metric("higgs_native_requests_running") == server.metric("higgs_native_requests_queued") == 0


def test_a_draining_server_is_not_ready(start):
    server = start()
    assert server.client.get("/ready").json() == {"status": "ready"}
    server.service.admission.is_draining = True
    assert server.client.get("/ready").status_code == 503
    assert server.client.get("/health").status_code == 200
    refused = server.speak()
    assert (refused.status_code, shape(refused)["code"]) == (503, "server_shutting_down")
    assert "retry-after" in refused.headers


def test_the_document_describes_the_request(server):
    document = server.client.get("/openapi.json").json()
    content = document["paths"]["/v1/audio/speech"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    assert {"input", "voice", "speed", "seed", "ref_audio"} <= set(content["application/json"]["schema"]["properties"])
    text = json.dumps(document)
    for name in set(re.findall(r"#/components/schemas/(\w+)", text)):
        assert name in document["components"]["schemas"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_running": 0}, "max_running must be at least 1"),
        ({"max_queued": -1}, "max_queued must be at least 0"),
        ({"max_queued": "3"}, "max_queued must be an integer"),
        ({"deadline_seconds": 0}, "deadline_seconds must be above 0"),
        ({"drain_seconds": float("inf")}, "drain_seconds must be above 0"),
        ({"api_keys": ("a b",)}, "api_keys must be printable"),
        ({"api_keys": ("",)}, "api_keys must be printable"),
        ({"reference_urls": ("https://voices.example",)}, "reference_urls must be such as"),
        ({"reference_urls": ("file:///",)}, "reference_urls must be such as"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ParameterError, match=message):
        ServerSettings(**settings)
