"""`higgs-native serve --devices`: several processes behind one port."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

import higgs_native
from higgs_native.cli import main
from higgs_native.server.observing import merged_metrics
from higgs_native.server.supervisor import _share_cores
from tests.helpers.waiting import PATIENCE, until
from tests.server.conftest import ENDLESS, LONG_TEXT, get, serving, speak, speech_begun


def statuses(url: str) -> list[str]:
    return [worker["status"] for worker in get(url, "/health").json()["workers"]]


def workers(process: subprocess.Popen) -> list[int]:
    """The processes of a server that serve, by the order of their start."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in process_file(child, "cmdline")]


def process_file(pid: int | str, name: str) -> str:
    """A file of a process in /proc; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def has_ended(pid: int) -> bool:
    """Whether a process has ended, whether or not its parent has waited for it."""
    return process_file(pid, "stat").rpartition(") ")[2][:1] in ("", "Z", "X")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stops a process for a while."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: process_file(pid, "stat").rpartition(") ")[2][:1] == "T")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def spoken(url: str) -> list[float]:
    """The number of speeches of each worker."""
    counts = {"0": 0.0, "1": 0.0}
    for line in get(url, "/metrics").text.splitlines():
        if line.startswith('higgs_native_requests_total{route="/v1/audio/speech",status="200",worker='):
            counts[line.partition('worker="')[2][0]] = float(line.split()[-1])
    return list(counts.values())


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A server of two processes, which takes voices."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "voices").mkdir()
    with serving(folder) as start:
        yield start("--devices", "cpu,cpu", "--voices", "voices")


def test_processes_share_one_port_and_tell_of_each_other(pair):
    process, url, _ = pair
    before = spoken(url)
    assert get(url, "/health").json() == {
        "status": "ok",
        "workers": [{"worker": index, "device": "cpu", "status": "ready", "model": "loaded"} for index in (0, 1)],
    }
    answers = set()
    for other in reversed(workers(process)):
        with stopped(other), ThreadPoolExecutor(8) as pool:
            answers |= set(pool.map(lambda _: speak(url, input="Hello.", response_format="pcm").content, range(8)))
    assert len(answers) == 1
    assert [now - then for now, then in zip(spoken(url), before, strict=True)] == [8, 8]
    metrics = get(url, "/metrics").text
    assert metrics.count("# TYPE higgs_native_requests_running gauge") == 1
    for index in ("0", "1"):
        assert f'higgs_native_worker_up{{device="cpu",worker="{index}"}} 1.0' in metrics
        assert f'higgs_native_cache_pages{{worker="{index}"}}' in metrics
    # A voice is in the folder, which all read.
    sample = speak(url, input=LONG_TEXT[:70], response_format="wav", stream=False).content
    uploads = [("anna", sample)] * 4 + [("berta", sample)] * 4
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(
            lambda upload: (
                httpx.post(
                    url + "/v1/audio/voices",
                    data={"name": upload[0]},
                    files={"audio_sample": upload[1]},
                    timeout=PATIENCE,
                ).status_code
            ),
            uploads,
        )
    assert sorted(answers) == [200] * 2 + [409] * 6
    for other in workers(process):
        with stopped(other):
            assert speak(url, input="Hello.", voice="anna").status_code == 200


def test_a_process_that_dies_is_started_again(pair):
    process, url, log = pair
    expected = speak(url, input=LONG_TEXT, response_format="pcm").content
    first, second = workers(process)
    with ExitStack() as streams:
        with stopped(second):
            whole = streams.enter_context(speech_begun(url, input=LONG_TEXT))
        with stopped(first):
            broken = streams.enter_context(speech_begun(url, **ENDLESS))
        with stopped(process.pid):  # which would start it again
            os.kill(second, signal.SIGKILL)
            until(lambda: statuses(url) == ["ready", "down"])
            assert get(url, "/health").json()["status"] == "degraded"
            assert 'higgs_native_worker_up{device="cpu",worker="1"} 0.0' in get(url, "/metrics").text
        assert b"".join(whole) == expected
        with pytest.raises(httpx.TransportError):
            list(broken)
    until(lambda: statuses(url) == ["ready", "ready"])
    for other in workers(process):
        with stopped(other):
            assert speak(url, input=LONG_TEXT, response_format="pcm").content == expected
    (line,) = [line for line in log.read_text().splitlines() if "worker died" in line]
    assert {"worker": 1, "device": "cpu", "exit_code": -9}.items() <= json.loads(line).items()


def test_sigterm_drains_all(serve):
    process, url, log = serve("--devices", "cpu,cpu")
    alone = speak(url, input=LONG_TEXT, response_format="pcm").content
    served = workers(process)
    with ExitStack() as streams:
        begun = [streams.enter_context(speech_begun(url, input=LONG_TEXT)) for _ in range(6)]
        for pid in (process.pid, *served):  # as service managers do
            os.kill(pid, signal.SIGTERM)
        assert {b"".join(pieces) for pieces in begun} == {alone}
    assert process.wait(PATIENCE) == 0
    assert "Traceback" not in log.read_text()
    with pytest.raises(httpx.ConnectError):
        get(url, "/health")


def test_a_second_signal_ends_all_at_once(serve):
    process, url, _ = serve("--devices", "cpu,cpu")
    served = workers(process)
    with speech_begun(url, **ENDLESS) as pieces:
        process.send_signal(signal.SIGINT)
        until(lambda: "draining" in statuses(url))
        process.send_signal(signal.SIGINT)
        with pytest.raises(httpx.TransportError):
            list(pieces)
    assert process.wait(PATIENCE) == 0
    assert all(map(has_ended, served))


def test_processes_end_with_their_supervisor(serve):
    process, url, _ = serve("--devices", "cpu")
    (served,) = workers(process)
    assert statuses(url) == ["ready"]
    process.kill()
    process.wait()
    until(lambda: has_ended(served))


# Imported by Python as it starts: a process that would serve waits instead.
NEVER_SERVES = """
import sys, time
while "spawn_main" in " ".join(sys.orig_argv):
    time.sleep(1)
"""


def test_a_process_that_dies_before_it_serves_ends_the_server(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NEVER_SERVES)
    package = Path(higgs_native.__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "higgs_native", "serve", "--port", "0", "--devices", "cpu,cpu"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{package}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        until(lambda: len(workers(process)) == 2)
        os.kill(workers(process)[0], signal.SIGKILL)
        assert process.wait(PATIENCE) == 1
        *_, line = process.stderr.read().splitlines()
    assert line.startswith("error: WorkerError: worker 0 on cpu must serve, got exit code -9 before it did")


def test_a_missing_model_is_told_in_one_line(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-m", "higgs_native", "serve", "--port", "0", "--devices", "cpu,cpu", "--model", "none"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert finished.returncode == 2
    told = "error: model must be a folder or a Hub name such as owner/name, got none, which does not exist\n"
    assert finished.stderr == told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--devices", "cpu", "--device", "cpu"), "--device must be left out with --devices, got cpu"),
        (("--devices", "cpu,tpu"), "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (("--devices", ""), "device must be auto, cpu, cuda or cuda:N, got ''"),
    ],
)
def test_wrong_devices_are_told_before_weights_are_loaded(options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", *options])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_metrics_of_a_process_that_is_down_are_left_out():
    text = '# HELP a_total Some.\n# TYPE a_total counter\na_total{x="y"} 3.0\n'
    merged = merged_metrics([text, None, text], ["cpu", "cuda:0", "cuda:1"]).decode().splitlines()
    assert [line for line in merged if not line.startswith("#")] == [
        'higgs_native_worker_up{device="cpu",worker="0"} 1.0',
        'higgs_native_worker_up{device="cuda:0",worker="1"} 0.0',
        'higgs_native_worker_up{device="cuda:1",worker="2"} 1.0',
        'a_total{worker="0",x="y"} 3.0',
        'a_total{worker="2",x="y"} 3.0',
    ]


@pytest.mark.parametrize(
    ("devices", "threads"),
    [(("cpu",) * 2, "2"), (("cpu",) * 5, "1"), (("cpu",), None), (("cuda:0", "cuda:1"), None)],
)
def test_processes_on_the_cpu_share_the_cores(monkeypatch, devices, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr(os, "environ", {})
    _share_cores(devices)
    assert os.environ.get("OMP_NUM_THREADS") == threads
