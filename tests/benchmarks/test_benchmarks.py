"""The command line of the benchmarks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import higgs_native
from benchmarks import bench_engine
from higgs_native import HiggsAudioModel
from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model


def test_a_wrong_model_fails_before_anything_is_measured():
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--no-transformers", "--model", "nonexist"],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(higgs_native.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    message = "error: model must be a folder or a Hub name such as owner/name, got nonexist, which does not exist\n"
    assert (finished.returncode, finished.stdout, finished.stderr) == (2, "", message)


def test_a_gpu_run_finds_the_library_that_it_has():
    """If its check failed, it would compile the library, and its time would be over."""
    root = Path(__file__).resolve().parents[2]
    script = (root / "benchmarks/gpu_quick.sh").read_text(encoding="utf-8")
    (check,) = re.findall(r"^load_check='(.*?)'$", script, re.MULTILINE | re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(Path(higgs_native.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", check, "cpu"], cwd=root, env=environment, check=True)
    assert script.count('step 60 load "$python" -c "$load_check"') == 2


def test_requests_side_by_side_are_counted(tmp_path):
    write_language_model(tmp_path / "model", DEMO_CONFIG, endless=True)
    model = HiggsAudioModel.from_pretrained(tmp_path / "model")
    requests = bench_engine.make_requests(model, 3, 12)
    together = bench_engine.run_turn(model, requests)
    alone = [bench_engine.run_turn(model, [request]) for request in requests]
    assert together.frames == sum(turn.frames for turn in alone) == 3 * 12
    # The step that ends a prompt draws its first frame.
    assert [len(turn.full_steps) for turn in alone] == [11] * 3
    assert 0 < len(together.full_steps) <= 11
    assert 0 < together.scheduling_seconds < together.seconds
    report = bench_engine.bench(model, "toy", [1, 3], 12, 2)
    assert [report[count]["side_by_side_s"]["count"] for count in ("1", "3")] == [2, 2]
    assert report["1"]["step_ms"]["count"] == 2 * 11
