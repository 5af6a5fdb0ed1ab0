"""The trainable model: its losses and gradients are those of transformers."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_native.checkpoint.language_model import (
    TEXT_LM_HEAD,
    LanguageModelFiles,
    expected_tensors,
    transformers_name,
)
from higgs_native.errors import CheckpointError
from higgs_native.model.batch import Batch
from higgs_native.model.transformer import LanguageModel
from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model
from higgs_native.training.data.rows import IGNORED, PackedRows
from higgs_native.training.loss import LossWeights, TargetCounts
from higgs_native.training.model import Reorder, TrainableModel
from tests.helpers import transformers_reference as reference
from tests.training.samples import random_sample, transformers_inputs


# Rows of text and audio in turn; the last is text alone.
RUNS = ((7, 12), (5, 20, 9, 6), (11, 3, 4, 15, 2), (6,))
SHAPES = {
    "plain rope": {"rope": reference.PLAIN_ROPE},
    "one head per group": {"kv_heads": 4, "rope": reference.LLAMA3_ROPE},
    "wide heads": {"head_dim": 32, "layers": 3},
    "one layer, 4 codebooks": {"layers": 1, "codebooks": 4, "codebook_size": 18},
    "one group": {"kv_heads": 1, "hidden": 48, "ffn": 80},
}


def parameters_by_name(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return dict(model.named_parameters())


def pair(seed: int, **shape) -> tuple[torch.nn.Module, TrainableModel]:
    """A model of transformers, and ours with the same weights."""
    theirs = reference.tiny_model(seed, text_head=True, **shape).train()
    ours = TrainableModel(reference.native_config(theirs.config))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def make_plain(theirs: torch.nn.Module, ours: TrainableModel, plain: list[int]) -> TrainableModel:
    """Return ours with plain layers, whose weights serve both kinds of rows of the others' layers."""
    for index in plain:
        layer = theirs.model.layers[index]
        layer.audio_mlp = layer.mlp
        layer.audio_input_layernorm = layer.input_layernorm
        layer.audio_post_attention_layernorm = layer.post_attention_layernorm
    dual = tuple(layer for layer in range(ours.config.num_hidden_layers) if layer not in plain)
    partial = TrainableModel(replace(ours.config, audio_dual_ffn_layers=dual))
    partial.load_state_dict({name: theirs.state_dict()[name] for name in partial.state_dict()})
    return partial


def check_gradients(theirs: torch.nn.Module, ours: TrainableModel, text_weight: float) -> None:
    samples = [random_sample(ours.config, runs, seed) for seed, runs in enumerate(RUNS)]
    inputs = transformers_inputs(ours.config, samples)
    if not text_weight:
        del inputs["labels"]
        samples = [replace(sample, text_targets=torch.full((len(sample),), IGNORED)) for sample in samples]
    rows = PackedRows.pack(samples)
    weights = LossWeights((1.0,) * ours.config.num_codebooks, text_weight)
    losses = ours(rows, weights, TargetCounts.of(rows))
    losses.total.backward()
    expected = theirs(**inputs).loss
    expected.backward()
    torch.testing.assert_close(losses.total, expected, rtol=1e-6, atol=0)
    named = parameters_by_name(theirs)
    for name, parameter in ours.named_parameters():
        grad = named[name].grad
        if grad is None:
            assert name == "text_lm_head.weight"
            assert not text_weight
            assert parameter.grad is None
            continue
        # The largest element sets the scale of float32's rounding of the sums.
        error = (parameter.grad - grad).abs().max() / grad.abs().max()
        assert error < 1e-5, f"{name}: {error}"


@pytest.mark.parametrize("text_weight", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_gradients_of_every_parameter_equal_those_of_transformers(shape, text_weight):
    check_gradients(*pair(1, **shape), text_weight)


@pytest.mark.parametrize("plain", [[0], [1], [0, 2]])
def test_gradients_of_plain_layers_are_those_of_shared_weights(plain):
    theirs, ours = pair(2, layers=3)
    check_gradients(theirs, make_plain(theirs, ours, plain), 1.0)


def test_layers_that_audio_skips_compute_text_rows_as_the_inference_does(tmp_path):
    config = replace(
        DEMO_CONFIG, audio_adapter_type="dual_ffn_fast_forward", audio_dual_ffn_layers=(1,), num_hidden_layers=3
    )
    write_language_model(tmp_path, config, layout="original", dtype=torch.float32)
    ours = TrainableModel.from_pretrained(tmp_path, torch.float32, torch.device("cpu"))
    sample = random_sample(config, (9, 14), 3)
    native = LanguageModel.from_pretrained(tmp_path, dtype=torch.float32)
    batch = Batch.text_then_audio([(sample.token_ids.tolist(), sample.codes.T)])
    states = native.forward(batch, native.new_cache(1, 64))
    rows = PackedRows.pack([sample])
    expected = native.audio_logits(states).flatten(1)[len(sample.token_ids) :][rows.kept_audio]
    with torch.no_grad():
        actual = ours.audio_lm_head(ours.states(rows))[len(rows.kept_text) :]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_losses_equal_those_of_transformers_over_20_steps():
    theirs, ours = pair(3, layers=2)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (theirs, ours)]
    weights = LossWeights((1.0,) * 8, 1.0)
    first = None
    for step in range(20):
        samples = [random_sample(ours.config, runs, 10 * (step % 2) + seed) for seed, runs in enumerate(RUNS)]
        rows = PackedRows.pack(samples)
        losses = (
            theirs(**transformers_inputs(ours.config, samples)).loss,
            ours(rows, weights, TargetCounts.of(rows)).total,
        )
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)
        first = first or losses[1].item()
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[1].item() < 0.9 * first


def test_dropout_changes_training_alone():
    _, ours = pair(7)
    dropping = TrainableModel(ours.config, dropout=0.3)
    dropping.load_state_dict(ours.state_dict())
    rows = PackedRows.pack([random_sample(ours.config, runs, seed) for seed, runs in enumerate(RUNS)])
    with torch.no_grad():
        whole = ours.states(rows)
        assert torch.equal(dropping.eval().states(rows), whole)
        first, second = (dropping.train().states(rows) for _ in range(2))
        assert not torch.equal(first, second)
        # What is left is scaled up, so the mean stays.
        network, x = dropping.model.layers[0].audio_mlp, torch.randn(8, ours.config.hidden_size)
        mean = torch.stack([network(x) for _ in range(400)]).mean(dim=0)
        torch.testing.assert_close(mean.norm(), network.eval()(x).norm(), rtol=0.1, atol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_gradients_are_the_same_to_the_bit(dropout):
    _, model = pair(4)
    ours = TrainableModel(model.config, dropout=dropout)
    ours.load_state_dict(model.state_dict())
    rows = PackedRows.pack([random_sample(ours.config, runs, seed) for seed, runs in enumerate(RUNS)])
    grads = []
    for checkpoints in (False, True):
        torch.manual_seed(0)
        ours.checkpoints_gradients = checkpoints
        ours.zero_grad()
        ours(rows, LossWeights((1.0,) * 8, 1.0), TargetCounts.of(rows)).total.backward()
        grads.append([parameter.grad.clone() for parameter in ours.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        assert torch.equal(plain, checkpointed)


def test_a_pass_of_several_samples_is_the_sum_of_passes_of_one():
    _, ours = pair(5)
    samples = [random_sample(ours.config, runs, seed) for seed, runs in enumerate(RUNS)]
    passes = [PackedRows.pack([sample]) for sample in samples]
    counts = TargetCounts.of(*passes)
    weights = LossWeights(tuple(float(k) for k in range(8)), 0.5)
    together = ours(PackedRows.pack(samples), weights, counts)
    apart = [ours(rows, weights, counts) for rows in passes]
    torch.testing.assert_close(together.total, sum(losses.total for losses in apart))
    torch.testing.assert_close(together.codebooks, sum(losses.codebooks for losses in apart))
    torch.testing.assert_close(together.text, sum(losses.text for losses in apart))


def test_reordering_has_the_gradient_of_an_index():
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(Reorder.apply(x, order, order.argsort()), x[order])
    assert torch.autograd.gradcheck(lambda x: Reorder.apply(x, order, order.argsort()), x)


@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_a_checkpoint_of_either_layout_loads(tmp_path, layout):
    write_language_model(tmp_path, DEMO_CONFIG, layout=layout, dtype=torch.float32)
    ours = TrainableModel.from_pretrained(tmp_path, torch.float32, torch.device("cpu"))
    files = LanguageModelFiles(tmp_path, DEMO_CONFIG)
    named = parameters_by_name(ours)
    assert {transformers_name(name) for name in expected_tensors(DEMO_CONFIG)} == set(named)
    assert TEXT_LM_HEAD in files
    for name in expected_tensors(DEMO_CONFIG):
        with files.opened(name, torch.float32) as stored:
            assert torch.equal(named[transformers_name(name)], stored)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    """Training would go on with losses of NaN, and write an adapter of NaN."""
    write_language_model(tmp_path, DEMO_CONFIG, layout="transformers", dtype=torch.float32)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][-1] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight must be finite in float32, got NaN or infinity"):
        TrainableModel.from_pretrained(tmp_path, torch.float32, torch.device("cpu"))


def test_the_model_compiles():
    _, ours = pair(6)
    rows = PackedRows.pack([random_sample(ours.config, runs, seed) for seed, runs in enumerate(RUNS)])
    arguments = rows, LossWeights((1.0,) * 8, 1.0), TargetCounts.of(rows)
    eager = ours(*arguments).total
    eager.backward()
    grads = [parameter.grad.clone() for parameter in ours.parameters()]
    ours.zero_grad()
    compiled = torch.compile(ours, backend="aot_eager", dynamic=True)(*arguments).total
    compiled.backward()
    torch.testing.assert_close(compiled, eager)
    for parameter, grad in zip(ours.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)
