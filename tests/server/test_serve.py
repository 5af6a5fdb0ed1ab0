"""The command `higgs-native serve`, in a process."""

import json
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from higgs_native.cli import main
from higgs_native.pipeline import HiggsAudio
from tests.helpers.waiting import PATIENCE, until
from tests.server.conftest import ENDLESS, LONG_TEXT, get, speak, speech_begun


def test_sigterm_drains_and_exits_with_0(serve):
    process, url, log = serve("--max-running", "1")
    alone = speak(url, input=LONG_TEXT).content
    with ThreadPoolExecutor(1) as pool:
        with speech_begun(url, **ENDLESS):
            waiting = pool.submit(speak, url, input=LONG_TEXT)
            until(lambda: "higgs_native_requests_queued 1.0" in get(url, "/metrics").text)
            process.send_signal(signal.SIGTERM)
            until(lambda: get(url, "/ready").status_code == 503)
            assert speak(url, input="Hello.").status_code == 503
        assert waiting.result().content == alone
    assert process.wait(PATIENCE) == 0
    assert "Traceback" not in log.read_text()


def test_an_idle_server_frees_the_model_and_loads_it_again(serve):
    process, url, log = serve("--unload-after", "0.5")
    fields = {"input": LONG_TEXT, "response_format": "pcm"}
    before = speak(url, **fields).content
    assert before

    def unloaded():
        return get(url, "/health").json() == {"status": "ok", "model": "unloaded"}

    until(unloaded)
    assert get(url, "/ready").status_code == 200
    assert "higgs_native_model_loaded 0.0" in get(url, "/metrics").text
    assert get(url, "/v1/audio/voices").status_code == 200
    assert unloaded()  # asking for voices loads nothing
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: speak(url, **fields).content, range(3)))
    assert answers == [before] * 3
    events = [json.loads(line).get("event") for line in log.read_text().splitlines() if line.startswith("{")]
    assert [event for event in events if event in ("loaded", "unloaded")][:2] == ["unloaded", "loaded"]
    until(unloaded)
    with speech_begun(url, **fields) as pieces:
        process.send_signal(signal.SIGTERM)
        assert b"".join(pieces) == before
    assert process.wait(PATIENCE) == 0
    assert "Traceback" not in log.read_text()


def test_options_arrive(serve, tmp_path):
    (tmp_path / "keys").write_text("one\n\n two \n")
    (tmp_path / "voices").mkdir()
    options = ("--api-keys", "keys", "--voices", "voices", "--model-id", "mine", "--max-characters", "12")
    _, url, _ = serve(*options)
    headers = {"authorization": "Bearer two"}
    assert get(url, "/v1/models").status_code == 401
    assert get(url, "/v1/models", headers=headers).json()["data"][0]["id"] == "mine"
    too_long = httpx.post(url + "/v1/audio/speech", json={"input": "a" * 13}, headers=headers, timeout=PATIENCE)
    assert too_long.json()["error"]["code"] == "string_above_max_length"
    without_file = httpx.post(url + "/v1/audio/voices", data={"name": "a"}, headers=headers, timeout=PATIENCE)
    assert without_file.json()["error"]["param"] == "audio_sample"


def test_a_second_signal_ends_it_at_once(serve):
    process, url, _ = serve()
    with speech_begun(url, **ENDLESS) as pieces:
        process.send_signal(signal.SIGINT)
        until(lambda: get(url, "/ready").status_code == 503)
        process.send_signal(signal.SIGINT)
        with pytest.raises(httpx.TransportError):
            list(pieces)
    assert process.wait(PATIENCE) == 0


@pytest.fixture
def fails(capsys, monkeypatch):
    """Runs the command with options that are wrong; gives the line that says so."""

    def never(*arguments, **options):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(HiggsAudio, "from_pretrained", never)

    def run(*options):
        with pytest.raises(SystemExit) as ended:
            main(["serve", *options])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_without_the_extra_one_line_says_so(fails, monkeypatch):
    for name in ("av", "fastapi"):
        monkeypatch.setitem(sys.modules, name, None)
        assert fails().startswith(
            f"error: the extra serve must be installed (pip install 'higgs-native[serve]'), got none of {name}"
        )


def test_nothing_of_the_extra_is_imported_without_it(run_python):
    names = ("fastapi", "starlette", "uvicorn", "prometheus_client", "av")
    finished = run_python(f"import sys, higgs_native.cli.main; print(set(sys.modules) & set({names}))")
    assert finished.stdout == "set()\n", finished.stderr


def test_wrong_options_are_told_before_weights_are_loaded(fails, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = fails("--port", str(taken.getsockname()[1]))
        assert line.startswith("error: --host and --port must be free, got 127.0.0.1:")
    assert "--host must be a name or an address, got xxx" in fails("--host", "x" * 300)
    assert "max_running must be at least 1, got 0" in fails("--max-running", "0")
    assert "--api-keys must be a text file" in fails("--api-keys", "none")
    (tmp_path / "keys").touch()
    assert "--api-keys must hold at least one key" in fails("--api-keys", str(tmp_path / "keys"))
    for name in ("none", "x" * 300, "~nobody-has-this-name"):
        assert "reference_folders must be existing" in fails("--reference-folder", name)
    for name in ("none", "~nobody-has-this-name"):
        assert "the folder of voices must exist" in fails("--voices", name)
    assert "--api-keys must be a text file" in fails("--api-keys", "~nobody-has-this-name")
    monkeypatch.setenv("HIGGS_NATIVE_API_KEYS", "a b")
    assert "api_keys must be printable" in fails()
