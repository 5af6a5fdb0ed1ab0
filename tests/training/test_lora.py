"""LoRA: adapters load in PEFT over transformers' model, and give the same logits there, here, and merged."""

import dataclasses

import pytest
import torch

from higgs_native.checkpoint.adapter import Adapter
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.model.batch import Batch
from higgs_native.model.transformer import LanguageModel
from higgs_native.training.data.rows import PackedRows
from higgs_native.training.loss import LossWeights, TargetCounts
from higgs_native.training.model import TrainableModel
from tests.helpers import transformers_reference as reference  # before peft, which imports transformers
from tests.training.samples import random_sample, transformers_inputs


peft = pytest.importorskip("peft", reason="training needs the extra `train`")

from higgs_native.training.lora import add_lora, load_adapter, save_adapter, train_parts  # noqa: E402 (needs peft)


ALL = ("attention", "text_ffn", "audio_ffn", "heads", "embeddings")


@pytest.fixture
def base(tmp_path):
    return reference.save(reference.tiny_model(1, text_head=True), tmp_path / "base")


def load(base, parts=ALL, rank=3):
    model = TrainableModel.from_pretrained(base, torch.float32, torch.device("cpu"))
    return add_lora(model, parts, rank, 6.0, 0.0, str(base))


def trained(base, parts=ALL, steps=3):
    """A model after a few steps on a sample, and the sample."""
    adapted = load(base, parts)
    sample = random_sample(adapted.base_model.model.config, (9, 14), 1)
    rows = PackedRows.pack([sample])
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        adapted(rows, LossWeights((1.0,) * 8, 1.0), TargetCounts.of(rows)).total.backward()
        optimizer.step()
    return adapted, sample


@torch.no_grad()
def logits(adapted, sample) -> torch.Tensor:
    """The audio logits of the rows that predict audio."""
    model = adapted.base_model.model
    rows = PackedRows.pack([sample])
    return model.audio_lm_head(model.states(rows))[rows.predict_audio]


@pytest.mark.parametrize("parts", [ALL, ("attention", "audio_ffn"), ("heads",), ("embeddings",)])
def test_the_adapter_gives_the_same_logits_in_peft_over_transformers(base, tmp_path, parts):
    adapted, sample = trained(base, parts)
    save_adapter(adapted, tmp_path / "adapter", "0" * 64, ["anna"])
    theirs = reference.load(base) if "heads" not in parts else reference.tiny_model(1, text_head=True)
    before = theirs(**without_labels(sample, adapted)).logits
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        after = theirs(**without_labels(sample, adapted)).logits
    predicting = (sample.audio_targets != -100).any(dim=1)
    torch.testing.assert_close(logits(adapted, sample), after[0][predicting], rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 0.01


def without_labels(sample, adapted) -> dict[str, torch.Tensor]:
    inputs = transformers_inputs(adapted.base_model.model.config, [sample])
    return {name: value for name, value in inputs.items() if "labels" not in name}


def test_merged_at_load_it_gives_the_same_logits(base, tmp_path):
    adapted, sample = trained(base)
    save_adapter(adapted, tmp_path / "adapter", "", [])
    native = LanguageModel.from_pretrained(
        base, dtype="float32", adapter=dataclasses.replace(Adapter.from_pretrained(tmp_path / "adapter"), base=None)
    )
    batch = Batch.text_then_audio([(sample.token_ids.tolist(), sample.codes.T)])
    states = native.forward(batch, native.new_cache(1, 64))
    rows = PackedRows.pack([sample])
    by_position = native.audio_logits(states).flatten(1)
    expected = by_position[(sample.audio_targets != -100).any(dim=1)]
    assert len(rows.predict_audio) == len(expected)
    torch.testing.assert_close(logits(adapted, sample), expected, rtol=1e-3, atol=1e-3)


def test_a_saved_adapter_is_loaded_to_the_bit(base, tmp_path):
    adapted, sample = trained(base)
    save_adapter(adapted, tmp_path / "adapter", "", [])
    again = load(base)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again, sample), logits(adapted, sample))
    for other in (load(base, rank=4), load(base, parts=("attention",))):
        with pytest.raises(CheckpointError, match="adapter must have the parts and the rank of this run"):
            load_adapter(other, tmp_path / "adapter")


def test_only_factors_are_trained_and_a_new_adapter_changes_nothing(base):
    model = TrainableModel.from_pretrained(base, torch.bfloat16, torch.device("cpu"))
    sample = random_sample(model.config, (9, 14), 1)
    rows = PackedRows.pack([sample])
    with torch.no_grad():
        before = model.states(rows)
    adapted = add_lora(model, ("attention",), 3, 6.0, 0.0, "base")
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.states(rows), before)


def test_parts_train_in_float32(base):
    model = TrainableModel.from_pretrained(base, torch.bfloat16, torch.device("cpu"))
    train_parts(model, ("audio_ffn", "norms"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "audio_mlp" in name or "norm" in name}
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name in trained else torch.bfloat16)


def test_parts_without_matrices_are_refused(base):
    with pytest.raises(ParameterError, match="parts must have matrices for method lora, got norms"):
        load(base, parts=("norms",))
