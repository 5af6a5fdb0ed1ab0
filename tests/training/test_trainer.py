"""Training runs: they learn, go on to the bit after an interruption, and refuse bad input before they begin."""

import importlib.util
import itertools
import json
import math
import random
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from higgs_native import HiggsAudio
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.checkpoint.adapter import WEIGHTS_FILE
from higgs_native.checkpoint.files import TensorFiles
from higgs_native.errors import CheckpointError, HiggsNativeError, ParameterError
from higgs_native.generation.delay_pattern import build_delay_pattern
from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model
from higgs_native.training.settings import TrainingSettings
from tests.helpers import transformers_reference as reference  # before peft, which imports transformers
from tests.training.conftest import write_manifest


pytest.importorskip("peft", reason="training needs the extra `train`")

from higgs_native.training import trainer as trainer_module
from higgs_native.training.records import read_log
from higgs_native.training.trainer import Trainer, learning_rate


assert reference

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(base, recordings, tmp_path):
    """Returns the settings of a short run; keywords change them."""

    def settings(**changes) -> TrainingSettings:
        values = {
            "data": str(recordings / "train.jsonl"),
            "output": str(tmp_path / "run"),
            "model": str(base),
            "steps": 6,
            "max_rows": 300,
            "learning_rate": 0.01,
            "warmup_steps": 2,
            "rank": 4,
            "evaluate_every": 100,
            "save_every": 2,
            "speech_samples": 0,
            "device": "cpu",
        }
        return TrainingSettings(**(values | changes))

    return settings


def run(settings: TrainingSettings) -> list[float]:
    Trainer(settings, lambda line: None).run()
    return losses(settings)


def losses(settings: TrainingSettings) -> list[float]:
    records = read_log(Path(settings.output))
    return [record["total"] for record in records if record["kind"] == "train"]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_run_learns(settings, method, dtype):
    parts = ("attention", "audio_ffn", "heads", "embeddings")
    result = run(settings(method=method, dtype=dtype, steps=20, parts=parts))
    assert len(result) == 20
    assert result[-1] < 0.75 * result[0]


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_a_quantized_base_learns_and_its_adapter_speaks(settings, base, tmp_path, format):
    options = {f"{format}_base": True, "parts": ("attention", "audio_ffn", "heads", "embeddings")}
    result = run(settings(steps=20, **options))
    assert result[-1] < 0.75 * result[0]
    adapted = HiggsAudio.from_pretrained(base, adapter=tmp_path / "run" / "adapter", quantization=format)
    assert adapted.speak("Number 1.", voice="anna", seed=1, max_new_tokens=20).codes.shape[1] > 0


def test_each_cut_of_a_recording_is_a_sample_of_its_own(settings, tmp_path):
    """A frame has 960 samples: each of four cuts begins 240 samples after the one before."""
    whole = Trainer(settings(output=str(tmp_path / "whole"), held_out_share=0.4), print)
    cut = Trainer(settings(held_out_share=0.4, cuts=4), print)
    count = len(whole.learned)
    assert [entry.location for entry, _ in cut.learned] == 4 * [entry.location for entry, _ in whole.learned]
    assert all(torch.equal(a.codes, b.codes) for (_, a), (_, b) in zip(whole.evaluated, cut.evaluated, strict=True))
    tokenizer = HiggsAudioTokenizer.from_pretrained(cut.audio_tokenizer_name)
    for index, (entry, sample) in enumerate(cut.learned):
        samples, rate = soundfile.read(entry.clips()[0].audio.audio_url, dtype="float32")
        codes = tokenizer.encode(samples[240 * (index // count) :], rate)
        assert torch.equal(sample.codes, build_delay_pattern(codes, cut.config).to(torch.int64))
    assert not torch.equal(cut.learned[0][1].codes[:5], cut.learned[count][1].codes[:5])
    cut.run()
    assert len(losses(cut.settings)) == cut.settings.steps


def test_codes_of_the_manifest_have_no_cuts(settings, recordings):
    Trainer(settings(), print)
    (codes,) = recordings.glob("0.wav.*.codes")
    write_manifest(recordings / "train.jsonl", 3 * [{"codes": codes.name, "text": "Hello."}])
    with pytest.raises(ParameterError, match=r"train.jsonl, line \d: cuts must be 1 with codes, got 2"):
        Trainer(settings(cuts=2, output="elsewhere"), print)


def test_a_run_whose_gradients_are_not_finite_ends(settings, monkeypatch):
    """Before the weights change; it can go on from the last state."""
    backward, numbers = Trainer._backward, itertools.count(1)

    def diverge(self, model, *arguments):
        result = backward(self, model, *arguments)
        if next(numbers) == 4:
            next(parameter for parameter in model.parameters() if parameter.requires_grad).grad[0] = torch.nan
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_backward", diverge)
        expected = "learning_rate must keep gradients finite, got .* of step 4 are not"
        with pytest.raises(ParameterError, match=expected):
            Trainer(settings(), print).run()
    said = []
    Trainer(settings(), said.append).run()
    assert "resuming after step 2 of 6" in said
    assert all(map(math.isfinite, losses(settings())))


class Killed(BaseException):
    """Ends a run in place of a signal."""


def test_a_run_killed_at_20_random_moments_has_the_same_losses_to_the_bit(settings, tmp_path, monkeypatch):
    options = {"steps": 12, "save_every": 1, "dropout": 0.2, "code_noise": 0.3, "accumulate": 2}
    expected = run(settings(output=str(tmp_path / "whole"), **options))
    generator = random.Random(1)
    moments = []

    def count_down(function, name):
        def counted(*arguments, **keywords):
            countdown[0] -= 1
            if countdown[0] == 0:
                moments.append(name)
                raise Killed
            return function(*arguments, **keywords)

        return counted

    # Moments within a step, within the writing of its record, and before and while a state is written.
    countdown = [0]
    for owner, name in (
        (Trainer, "_backward"),
        (Trainer, "_save"),
        (torch.optim.AdamW, "step"),
        (torch, "save"),
        (trainer_module.Records, "write"),
        (trainer_module, "seed_step"),
    ):
        monkeypatch.setattr(owner, name, count_down(getattr(owner, name), name))
    for _ in range(20):
        countdown[0] = generator.randint(1, 10)
        try:
            run(settings(**options))
        except Killed:
            continue
    countdown[0] = -1
    assert run(settings(**options)) == expected
    assert len(set(moments)) >= 4
    whole, resumed = (load_file(tmp_path / name / "adapter" / WEIGHTS_FILE) for name in ("whole", "run"))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


# Ends after the step of that number, if it is given.
TRAIN = """
import os, sys

sys.path.append(sys.argv[2])
from tests.helpers import transformers_reference  # before peft, which imports transformers
from higgs_native.cli.main import main
from higgs_native.training.trainer import Trainer

save, last = Trainer._save, int(sys.argv[3])

def save_and_end(self, model, optimizer, done):
    save(self, model, optimizer, done)
    if done == last:
        os._exit(0)

Trainer._save = save_and_end
sys.argv[1:] = ["train", sys.argv[1]]
main()
"""


@pytest.fixture
def run_twice(tmp_path, run_python):
    """Trains with two processes; returns the losses."""

    def run_twice(settings: TrainingSettings, last: int = 0) -> list[float]:
        (tmp_path / "two.yaml").write_text(json.dumps(settings.to_dict()))  # JSON is YAML, too
        (tmp_path / "train.py").write_text(TRAIN)
        result = run_python(
            "from torch.distributed.run import main; main()",
            *("--standalone", "--nproc_per_node=2", str(tmp_path / "train.py")),
            *(str(tmp_path / "two.yaml"), str(ROOT), str(last)),
            ACCELERATE_USE_CPU="true",
            OMP_NUM_THREADS="1",
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return losses(settings)

    return run_twice


def assert_alike(folder: Path, other: Path, rtol: float = 1e-3) -> None:
    """The weights of two runs are equal but for the order of sums."""
    first, second = (load_file(next(path.glob("*.safetensors"))) for path in (folder, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=rtol, atol=1e-6)


def test_two_processes_learn_what_one_learns_with_twice_the_passes(settings, tmp_path, run_twice):
    options = {"dtype": "float32", "max_rows": 160, "steps": 4}
    expected = run(settings(accumulate=2, output=str(tmp_path / "one"), **options))
    assert run_twice(settings(output=str(tmp_path / "two"), **options)) == pytest.approx(expected, rel=1e-6)
    assert_alike(tmp_path / "one" / "adapter", tmp_path / "two" / "adapter")


@pytest.mark.parametrize(("method", "dtype", "tolerance"), [("lora", "bfloat16", 1e-3), ("full", "float32", 1e-6)])
def test_two_processes_that_share_the_weights_learn_the_same(settings, tmp_path, run_twice, method, dtype, tolerance):
    """With LoRA in two runs, of which the second one resumes from what the first one wrote."""
    parts = ("attention", "audio_ffn", "heads", "embeddings")
    options = {"method": method, "dtype": dtype, "parts": parts, "max_rows": 160, "steps": 4, "evaluate_every": 2}
    expected = run(settings(accumulate=4, output=str(tmp_path / "one"), **options))
    shared = settings(accumulate=2, output=str(tmp_path / "two"), shard=True, **options)
    if method == "lora":
        assert run_twice(shared, last=2) == pytest.approx(expected[:2], rel=tolerance)
    assert run_twice(shared) == pytest.approx(expected, rel=tolerance)
    if method == "full":
        # The checkpoint is bfloat16.
        assert_alike(tmp_path / "one" / "model", tmp_path / "two" / "model", rtol=2**-7)


def test_passes_of_a_step_add_up_to_one_large_pass(settings, tmp_path):
    # All samples in one pass, or in several; without dropout.
    one = run(settings(dtype="float32", max_rows=4000, steps=1, output=str(tmp_path / "one")))
    trainer = Trainer(settings(dtype="float32", max_rows=160, steps=1, output=str(tmp_path / "count")), print)
    packs = next(iter(trainer._steps()))
    assert len(packs) == 1
    count = len(list(trainer_module.packs([len(s) for s in trainer.learned_samples], 160, 1, 0)))
    several = run(settings(dtype="float32", max_rows=160, steps=1, accumulate=count, output=str(tmp_path / "several")))
    assert count > 1
    assert several == pytest.approx(one, rel=1e-6)


def test_what_a_run_writes(settings, tmp_path):
    chosen = settings(speech_samples=1, evaluate_every=3, steps=6, held_out_share=0.4)
    run(chosen)
    folder = tmp_path / "run"
    kinds = [record["kind"] for record in read_log(folder)]
    assert kinds == ["train"] * 3 + ["held out"] + ["train"] * 3 + ["held out"]
    assert len(read_log(folder)[0]["codebooks"]) == 8
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    for step in (3, 6):
        for path in (folder / "samples" / f"{step:06}").glob("*.wav"):
            assert soundfile.info(path).samplerate == 24000
    if importlib.util.find_spec("tensorboard") is not None:  # without it, nothing is written
        assert any((folder / "tensorboard").iterdir())


def test_the_adapter_speaks(settings, base, tmp_path):
    run(settings(parts=("attention", "audio_ffn", "heads", "embeddings")))
    adapted = HiggsAudio.from_pretrained(base, adapter=tmp_path / "run" / "adapter")
    assert adapted.trained_voices == ("anna",)
    options = {"voice": "anna", "seed": 1, "max_new_tokens": 20}
    plain = HiggsAudio.from_pretrained(base).speak("Number 1.", scene="SPEAKER0: anna", seed=1, max_new_tokens=20)
    assert not torch.equal(adapted.speak("Number 1.", **options).codes, plain.codes)
    for format in ("int8", "int4"):
        quantized = HiggsAudio.from_pretrained(base, adapter=tmp_path / "run" / "adapter", quantization=format)
        assert quantized.speak("Number 1.", **options).codes.shape[1] > 0


def test_full_training_changes_its_parts_alone(settings, base, tmp_path):
    run(settings(method="full", parts=("audio_ffn",), dtype="float32"))
    before, after = TensorFiles(base), TensorFiles(tmp_path / "run" / "model")
    assert before.names() == after.names()
    for name in before.names():
        assert torch.equal(before.get(name), after.get(name)) == (".audio_mlp." not in name), name
    HiggsAudio.from_pretrained(tmp_path / "run" / "model")


def test_full_training_has_dropout(settings):
    options = {"method": "full", "parts": ("audio_ffn",), "dtype": "float32", "steps": 1}
    plain = run(settings(**options))
    assert run(settings(**options, dropout=0.5, output=settings().output + "2")) != plain


def test_a_run_begins_with_an_adapter(settings, tmp_path):
    first = run(settings(output=str(tmp_path / "first"), steps=12))
    second = run(settings(adapter=str(tmp_path / "first" / "adapter")))
    assert second[0] < 0.95 * first[0]


def test_another_run_does_not_go_on(settings):
    run(settings(steps=2))
    with pytest.raises(ParameterError, match="output must be a new folder or hold the same run"):
        Trainer(settings(steps=3), print)


def test_a_damaged_state_is_refused(settings, tmp_path):
    run(settings(steps=2))
    (tmp_path / "run" / "state.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged"):
        run(settings(steps=2))


def refused(chosen: TrainingSettings, monkeypatch) -> str:
    """The message of the error that refuses a run before weights are loaded."""
    monkeypatch.setattr(trainer_module.TrainableModel, "from_pretrained", None)
    with pytest.raises(HiggsNativeError) as raised:
        Trainer(chosen, lambda line: None)
    assert not Path(chosen.output).exists()
    return str(raised.value)


def test_bad_input_is_refused_before_training_begins(settings, recordings, base, tmp_path, monkeypatch):
    def data(*lines) -> str:
        write_manifest(recordings / "bad.jsonl", lines)
        return str(recordings / "bad.jsonl")

    good = {"audio": "0.wav", "text": "Number 0."}
    missing = refused(settings(data=data(good, {**good, "audio": "none.wav"})), monkeypatch)
    assert "bad.jsonl, line 2: " in missing
    assert "none.wav" in missing
    assert "line 2 has no 'text'" in refused(settings(data=data(good, {"audio": "0.wav"})), monkeypatch)
    long = refused(settings(max_rows=60), monkeypatch)
    assert "train.jsonl, line 1: a sample must take at most 60 rows (max_rows), got" in long
    assert "8 numbers, got 2" in refused(settings(codebook_weights=(1.0, 1.0)), monkeypatch)


def test_an_adapter_of_another_base_is_refused(settings, base, tmp_path, monkeypatch):
    run(settings(output=str(tmp_path / "first"), steps=1))
    write_language_model(tmp_path / "other", DEMO_CONFIG, seed=9)
    (tmp_path / "other" / "audio_tokenizer").symlink_to(base / "audio_tokenizer")
    adapter = str(tmp_path / "first" / "adapter")
    message = "must be of this base, got one of another base"
    assert message in refused(settings(model=str(tmp_path / "other"), adapter=adapter), monkeypatch)
    with pytest.raises(CheckpointError, match=message):
        HiggsAudio.from_pretrained(tmp_path / "other", adapter=adapter)


def test_the_learning_rate_rises_and_falls(settings):
    chosen = settings(steps=12, warmup_steps=4, learning_rate=1.0)
    rates = [learning_rate(chosen, step) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[12] == pytest.approx(0.1)
