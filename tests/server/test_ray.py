"""The server and the batch job on a cluster of three nodes, all on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import higgs_native
from higgs_native.long_form.long_speech import LongSpeech
from tests.helpers.waiting import PATIENCE, until
from tests.server.conftest import LONG_TEXT, TEXT


ray = pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("ray.data", reason="needs the extra ray")
serve = pytest.importorskip("ray.serve", reason="needs the extra ray")

PACKAGE = str(Path(higgs_native.__file__).parent.parent)
MARK = "HIGGS_NATIVE_TEST_CLUSTER"
THREE = LONG_TEXT[:70]  # sentences
STORE = 80 << 20  # bytes of each node's object store


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without cores and two nodes with two each; gives its address."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, str(os.getpid()))
        patch.setenv("PYTHONPATH", PACKAGE)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Paths of sockets have at most 107 characters.
        patch.setenv("RAY_TMPDIR", str(tmp_path_factory.getbasetemp().parent))
        nodes = Cluster(True, head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False})
        try:
            for _ in range(2):
                nodes.add_node(num_cpus=2, object_store_memory=STORE)
            yield nodes.address
        finally:
            nodes.shutdown()


def processes(title: str) -> list[int]:
    """The processes of this cluster with a title."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = f"{MARK}={os.getpid()}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if is_ours and (folder / "cmdline").read_text().startswith(title):
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.fixture(scope="module")
def speech(cluster):
    """The application with two replicas; gives a client."""
    from higgs_native.server.ray import SpeechOptions, application
    from higgs_native.server.settings import ServerSettings

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(cluster, log_to_driver=False)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        settings = ServerSettings(max_running=4, max_queued=4)
        serve.run(application(SpeechOptions(min_replicas=2, max_replicas=2, settings=settings)))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            yield client
    finally:
        serve.shutdown()
        ray.shutdown()


def speak(client: httpx.Client, headers: dict | None = None, **fields) -> httpx.Response:
    body = {"input": TEXT, "voice": "alloy", "response_format": "pcm", "seed": 7, **fields}
    return client.post("/v1/audio/speech", json=body, headers=headers)


def metrics(client: httpx.Client, name: str) -> list[float]:
    """A metric of each replica, in a fixed order; each request goes to any of them."""
    found = {}
    for _ in range(100):
        lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        found[lines["higgs_native_audio_seconds_created"]] = float(lines[name])
        if len(found) == 2:
            break
    return [found[replica] for replica in sorted(found)]


def test_a_replica_answers_as_a_server_does(speech, streamed):
    response = speak(speech)
    assert response.content == streamed(seed=7).tobytes()
    assert response.headers["x-seed"] == "7"
    assert len(response.headers.get_list("x-request-id")) == 1
    refused = speak(speech, input="")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
    body = {"input": LONG_TEXT, "voice": "alloy", "response_format": "pcm", "seed": 7}
    with speech.stream("POST", "/v1/audio/speech", json=body) as response:
        moments = [time.monotonic() for _ in response.iter_raw()]
    assert moments[-1] > moments[0]


def test_a_voice_finds_its_replica_again(speech):
    name = "higgs_native_audio_seconds_total"
    voice = {"serve_multiplexed_model_id": "feminine"}
    speak(speech, voice, voice="feminine")
    time.sleep(1)  # replicas tell their voices a few times per second
    before = metrics(speech, name)
    for _ in range(10):
        assert speak(speech, voice, voice="feminine").status_code == 200
    assert sum(now == then for now, then in zip(metrics(speech, name), before, strict=True)) == 1


def test_a_client_that_leaves_ends_the_generation(speech):
    left = sum(metrics(speech, "higgs_native_clients_left_total"))
    body = {"input": LONG_TEXT * 20, "voice": "alloy", "response_format": "pcm"}
    with speech.stream("POST", "/v1/audio/speech", json=body) as response:
        pieces = response.iter_raw()  # without the name it would be closed at once
        next(pieces)
    until(lambda: sum(metrics(speech, "higgs_native_clients_left_total")) == left + 1)
    assert metrics(speech, "higgs_native_requests_running") == [0, 0]


def test_no_request_is_lost_silently_when_a_replica_dies(speech):
    """Each ends with all of its audio, or with an error, and new ones are spoken."""
    expected = {seed: speak(speech, seed=seed, input=THREE).content for seed in range(2)}
    killed = threading.Event()
    ends = []

    def client() -> None:
        for number in range(12):
            seed = number % 2
            try:
                response = speak(speech, seed=seed, input=THREE)
            except (httpx.NetworkError, httpx.ProtocolError):
                ends.append(("error", killed.is_set()))
                continue
            if response.status_code == 200:
                assert response.content == expected[seed]
                ends.append(("spoken", killed.is_set()))
            else:
                assert response.status_code in (500, 503), response.text
                ends.append(("refused", killed.is_set()))

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client) for _ in range(6)]
        until(lambda: len(ends) >= 12)
        os.kill(processes("ray::ServeReplica")[0], signal.SIGKILL)
        killed.set()
        for job in clients:
            job.result()
    assert len(ends) == 72
    assert ends.count(("spoken", True)) >= 20, ends
    until(lambda: len(processes("ray::ServeReplica")) == 2)
    assert speak(speech, seed=1, input=THREE).content == expected[1]


def job(cluster: str, *arguments: object) -> subprocess.Popen:
    """Start the batch job on the cluster."""
    return subprocess.Popen(
        [sys.executable, "-m", "higgs_native.server.ray_batch", *map(str, arguments), "--address", cluster],
        env={**os.environ, "PYTHONPATH": PACKAGE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_job_that_was_killed_does_only_what_is_missing(cluster, tmp_path, engine):
    rows = [
        {"id": f"row{index}", "text": f"{TEXT} {TEXT}", "seed": index, "voice": ("feminine", "masculine")[index % 2]}
        for index in range(16)
    ]
    manifest, out = tmp_path / "manifest.jsonl", tmp_path / "out"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "wrong", "text": "<|AUDIO|>"}]))
    arguments = (manifest, "--out", out, "--actors", 2, "--parallel", 2)
    with job(cluster, *arguments) as killed:
        until(lambda: out.is_dir() and len(list(out.glob("*.wav"))) >= 4)
        killed.kill()
    until(lambda: not processes("ray::MapWorker"))
    done = {path: path.stat().st_mtime_ns for path in out.glob("*.wav")}
    assert 4 <= len(done) < 16
    with job(cluster, *arguments) as again:
        told, errors = again.communicate()
        first, *told = told.splitlines()
    assert again.returncode == 1  # of the row that can't be spoken
    assert first == f"{out}: {len(done)} of 17 are done"
    assert len(told) == 16 - len(done)
    (error,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {manifest}, line 17: ")
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{row['id']}.wav" for row in rows)
    for row in rows[:: len(rows) - 1]:
        engine.speak(row["text"], voice=row["voice"], seed=row["seed"]).save(tmp_path / "alone.wav")
        assert (out / f"{row['id']}.wav").read_bytes() == (tmp_path / "alone.wav").read_bytes()


def test_a_shelf_of_books_goes_on_within_a_book(cluster, tmp_path, engine):
    shelf, out = tmp_path / "books", tmp_path / "out"
    shelf.mkdir()
    for name in ("one", "two"):
        (shelf / f"{name}.txt").write_text(LONG_TEXT * 4)
    arguments = (shelf, "--out", out, "--actors", 2, "--voice", "masculine", "--seed", 3)
    with job(cluster, *arguments) as killed:
        until(lambda: len(list(out.glob("*.parts/*.json"))) >= 6)
        killed.kill()
    until(lambda: not processes("ray::MapWorker"))
    assert list(out.glob("*.wav")) == []
    with job(cluster, *arguments) as again:
        assert sorted(again.communicate()[0].splitlines()[1:]) == [str(out / "one.wav"), str(out / "two.wav")]
    assert again.returncode == 0
    assert sorted(path.name for path in out.iterdir()) == ["one.wav", "two.wav"]
    LongSpeech(engine, LONG_TEXT * 4, voice="masculine", seed=3).save(tmp_path / "alone.wav")
    assert (out / "one.wav").read_bytes() == (out / "two.wav").read_bytes() == (tmp_path / "alone.wav").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--actors", "0"), "--actors must be at least 1, got 0"),
        (("--voice", "zoe"), "--voice must be one of "),
        ((), "the folder of books must hold .txt files, got "),
    ],
)
def test_wrong_arguments_are_told_before_the_work(tmp_path, capsys, arguments, message):
    from higgs_native.server.ray_batch import main

    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "--out", str(tmp_path / "out"), *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []
