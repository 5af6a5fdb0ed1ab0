"""`POST /v1/audio/speech/batch`."""

import base64

import httpx
import pytest

from tests.helpers.waiting import PATIENCE, until
from tests.server.conftest import TEXT, decoded


def batch(server, *items, **options) -> httpx.Response:
    return server.client.post("/v1/audio/speech/batch", json={"items": items}, **options)


def test_each_item_has_a_result(start, streamed):
    server = start(max_running=2, max_queued=0)
    voices = ("feminine", "masculine", "puck", "george")
    items = [{"input": TEXT, "voice": voice, "response_format": "pcm", "seed": 7} for voice in voices]
    wrong = [{"input": ""}, {}, {"input": TEXT, "voice": "zoe"}, {"input": TEXT, "model": "none"}]
    response = batch(server, *items, *wrong, {"input": TEXT, "voice": "alloy"})
    assert response.status_code == 200
    results = response.json()["data"]
    assert [result["index"] for result in results] == list(range(9))
    assert [result["status"] for result in results] == [200] * 4 + [400, 400, 400, 404, 200]
    for voice, result in zip(voices, results[:4], strict=True):
        samples = streamed(voice=voice, seed=7)
        assert base64.b64decode(result["audio"]) == samples.tobytes()
        assert result["seconds"] == pytest.approx(len(samples) / 24_000, abs=1e-3)
        assert (result["seed"], result["failures"], result["media_type"]) == (7, [], "audio/pcm")
    assert [result["error"]["param"] for result in results[4:8]] == ["input", "input", "voice", "model"]
    assert len(decoded(base64.b64decode(results[8]["audio"]))[0]) > 24_000


@pytest.mark.parametrize("body", [{}, {"items": []}, {"items": "a"}, {"items": [1]}, {"items": [{}] * 33}, []])
def test_a_body_that_is_no_batch_is_refused(server, body):
    response = server.client.post("/v1/audio/speech/batch", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == (None if body == [] else "items")


def test_a_client_that_leaves_ends_its_batch(start, held):
    server = start(max_running=1, max_queued=1)
    with pytest.raises(httpx.ReadTimeout):
        batch(server, *[{"input": TEXT}] * 20, timeout=httpx.Timeout(PATIENCE, read=0.5))
    until(lambda: server.service.admission.running == 0)
    until(lambda: server.metric("higgs_native_clients_left_total") == 1)
    held.go_on()
    assert server.speak().status_code == 200
