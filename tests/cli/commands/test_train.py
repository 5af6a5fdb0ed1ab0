"""`higgs-native train` and `merge`: from recordings to a checkpoint that speaks."""

import importlib.util
import sys

import pytest
import yaml

from tests.helpers import transformers_reference as reference  # before peft, which imports transformers
from tests.training.conftest import write_manifest, write_recording


needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra `train`")
assert reference


def write_run(folder, model, **changes):
    """Write recordings, their manifest and settings into a folder; return the name of the settings."""
    lines = []
    for index in range(3):
        write_recording(folder / f"{index}.wav", 0.5, index)
        lines.append({"audio": f"{index}.wav", "text": f"Number {index}.", "speaker": "anna"})
    write_manifest(folder / "train.jsonl", lines)
    settings = {"model": str(model), "data": "train.jsonl", "output": "run", "steps": 2, "rank": 2, "device": "cpu"}
    (folder / "run.yaml").write_text(yaml.safe_dump({**settings, "speech_samples": 0, **changes}))
    return "run.yaml"


@needs_peft
def test_recordings_become_an_adapter_and_a_checkpoint_that_speaks(run, model):
    code, out, err = run("train", write_run(run.work, model))
    assert (code, out) == (0, "")
    assert "2 samples to learn, 1 held out" in err
    assert "the adapter is in run/adapter" in err
    code, out, _ = run("merge", model, "run/adapter", "merged")
    assert (code, out) == (0, "merged: 14 tensors changed\n")
    assert run("speak", "Hello.", "--model", "merged", "--max-new-tokens", 12)[0] == 0
    # The same command has nothing left to do, and another target must be chosen.
    code, _, err = run("train", "run.yaml")
    assert code == 0
    assert "resuming after step 2 of 2" in err
    code, _, err = run("merge", model, "run/adapter", "merged")
    assert (code, err) == (2, "error: target must not exist, got merged\n")


@needs_peft
def test_bad_input_is_one_line(run, model):
    write_run(run.work, model)
    (run.work / "1.wav").unlink()
    code, out, err = run("train", "run.yaml")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: train.jsonl, line 2: ")
    code, _, err = run("train", "none.yaml")
    assert (code, err) == (2, "error: none.yaml can't be read: No such file or directory\n")
    code, _, err = run("merge", model, "none", "merged")
    assert (code, err) == (2, "error: none has no adapter_config.json\n")


def test_without_the_extra_the_message_names_it(run, model, monkeypatch):
    for name in list(sys.modules):
        if name.startswith("higgs_native.training"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    code, _, err = run("train", write_run(run.work, model))
    assert code == 2
    assert err == (
        "error: train must have the extra `train`, got no module accelerate: pip install 'higgs-native[train]'\n"
    )
