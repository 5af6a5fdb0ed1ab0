"""The load generator: what it listens to, and a run against a server."""

import json

import numpy as np
import pytest

from benchmarks.bench_serving import Listener, main, percentiles
from tests.helpers.waiting import PATIENCE


SECOND = (np.ones(24_000) * 3000).astype("<i2").tobytes()


def test_a_piece_that_comes_late_is_an_under_run():
    listener = Listener()
    for at in (0.5, 1.4, 2.4, 4.0, 4.1):  # played until 1.5, 2.5, 3.5, 5.0
        listener.add(SECOND, at)
    assert listener.underruns == 1
    assert listener.num_samples == 5 * 24_000
    assert listener.first_audible == 0.5


def test_silence_is_not_heard():
    listener = Listener()
    listener.add(bytes(24_000), 0.2)  # half a second
    listener.add(bytes(12_001), 0.3)  # ends within a sample
    assert listener.first_audible is None
    listener.add(bytes(1199) + SECOND, 0.4)
    assert listener.first_audible == pytest.approx(0.2 + 0.5 + 0.25 + 0.025)
    assert listener.underruns == 0


def test_percentiles_are_in_milliseconds():
    assert percentiles([None, *(0.001 * value for value in range(101))]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([None]) is None


def test_a_server_is_loaded(start, tmp_path, capsys):
    server = start()
    report, picture = tmp_path / "report.json", tmp_path / "report.png"
    (tmp_path / "texts").write_text("Hello.\n\nGood morning.\n")
    load = ("--url", server.url, "--seconds", "2", "--texts", str(tmp_path / "texts"), "--timeout", str(PATIENCE))
    mix = ("--seed", "1", "--formats", "pcm,mp3", "--malformed", "0.2")
    main([*load, *mix, "--rates", "3,30", "--json", str(report), "--plot", str(picture)])
    slow, fast = json.loads(report.read_text())
    assert slow["outcomes"]["complete"] >= 1
    assert fast["outcomes"]["complete"] >= 1
    assert fast["outcomes"]["malformed"] >= 1
    for summary in (slow, fast):
        assert sum(summary["outcomes"].values()) == summary["requests"]
        assert not {"failed", "refused"} & summary["outcomes"].keys()
        assert summary["errors"] == {}
        assert summary["audio_seconds_per_second"] > 0
        assert 0 < summary["first_audio_ms"]["p50"] <= summary["first_audio_ms"]["p99"]
    assert fast["requests"] > 30
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 4
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("outcome", ["refused", "aborted"])
def test_what_is_not_spoken_is_counted(start, tmp_path, outcome):
    server = start(max_running=1, max_queued=0 if outcome == "refused" else 64)
    server.service.admission.running = 1  # a request that runs for as long as the load does
    aborts = {"refused": "0", "aborted": "1"}[outcome]
    options = ("--seconds", "0.5", "--rates", "20", "--aborts", aborts, "--timeout", str(PATIENCE))
    main(["--url", server.url, *options, "--json", str(tmp_path / "report.json")])
    (summary,) = json.loads((tmp_path / "report.json").read_text())
    assert summary["outcomes"] == {outcome: summary["requests"]}
    assert summary["first_audio_ms"] is None
    assert summary["errors"] == {}


@pytest.mark.parametrize("option", [("--rates", "0"), ("--rates", "a"), ("--aborts", "2")])
def test_wrong_options_are_refused(option, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*option])
    assert ended.value.code == 2
