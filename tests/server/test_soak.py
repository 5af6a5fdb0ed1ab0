"""The soak test runs, and finds what is wrong."""

import json

import pytest

from tests.helpers import soak


def test_a_short_soak_finds_nothing_wrong(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        soak.main(["--requests", "60", "--clients", "6", "--seed", "1", "--log", str(tmp_path / "log")])
    result = json.loads(capsys.readouterr().out)
    assert (ended.value.code, result["first_problems"]) == (0, [])
    assert sum(result["ends"].values()) == 60
    assert result["ends"]["whole: spoken"] >= 10
    assert len(result["lives"]) == 3
    assert all(life["resident_mb"][-1] > 100 for life in result["lives"])


def test_a_wrong_byte_and_an_error_are_found():
    load = soak.Soak(soak.Server((), None), 1, 1, 0)
    body = soak._body("Hello.", "alloy", "pcm")
    load._expected[json.dumps(body)] = b"1234"
    assert load._compare(body, b"1234") == "spoken"
    assert load._compare(body, b"1235") == "wrong"
    assert load._compare(body, b"123") == "wrong"
    refusal = b'{"error": {"message": "", "type": "", "param": null, "code": ""}}'
    for status, content, headers in ((500, refusal, {}), (400, refusal, {}), (429, refusal, {}), (503, b"no", {})):
        answer = soak.httpx.Response(status, content=content, headers=headers)
        assert load._refused(body, answer, content) == "wrong"
    full = soak.httpx.Response(429, content=refusal, headers={"retry-after": "1"})
    assert load._refused(body, full, refusal) == "refused"
    assert len(load.problems) == 6
