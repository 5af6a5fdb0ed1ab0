"""The language model's training pass on a CPU with matrix units, against torch's own layers in float32."""

import pytest
import torch
from recipe import initial_weights, packed_pass, phoneme_tokenizer, row_kernels, sequences, train_language_model
from torch import nn
from torch.nn import functional as F

from higgs_native.training.loss import LossWeights, TargetCounts, losses_of
from higgs_native.training.model import TrainableModel


pytestmark = pytest.mark.skipif(not row_kernels.can_compile(), reason="g++ is needed, and is not there")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def assert_near(found, expected, share=0.01):
    difference = (found.float() - expected.float()).norm() / expected.float().norm()
    assert difference < share


def gradients(outputs, inputs, above):
    return torch.autograd.grad(outputs, inputs, above.float())


@pytest.mark.parametrize("width", [5, 64, 72])
def test_the_norm_and_its_gradient(width):
    x, above, before = noise(7, width), noise(7, width, seed=1), noise(7, width, seed=2)
    weight = noise(width, seed=3).float()
    normed, inverse, of_weight = torch.empty_like(x), torch.empty(7), torch.zeros(width)
    row_kernels.run("rms_norm", x, weight, normed, inverse, 7, width, 1e-5)
    wide, leaf = x.float().requires_grad_(), weight.clone().requires_grad_()
    expected = F.rms_norm(wide, (width,), leaf, 1e-5)
    assert_near(normed, expected)
    of_x, expected_of_weight = gradients(expected, (wide, leaf), above)
    found = before.clone()
    row_kernels.run("rms_norm_backward", above, x, weight, inverse, found, of_weight, 7, width)
    assert_near(found, before + of_x)
    assert_near(of_weight, expected_of_weight)


def test_the_gated_product_and_its_gradient():
    gates, above = 4 * noise(6, 2 * 40), noise(6, 40, seed=1)
    gates[0, 0], gates[1, 0] = 100, -100
    product = torch.empty(6, 40, dtype=torch.bfloat16)
    row_kernels.run("silu_mul", gates, product, 6, 40)
    wide = gates.float().requires_grad_()
    gate, up = wide.chunk(2, 1)
    assert_near(product, F.silu(gate) * up)
    (expected,) = gradients(F.silu(gate) * up, wide, above)
    row_kernels.run("silu_mul_backward", above, gates, 6, 40)
    assert_near(gates, expected)


def test_the_softmax_of_the_keys_that_are_seen_and_its_gradient():
    scores, above = 5 * noise(2, 3, 4, 37), noise(2, 3, 4, 37, seed=1)
    seen = torch.tensor([[1, 5, 36, 37], [2, 17, 20, 0]], dtype=torch.int32)
    wide = scores.float().requires_grad_()
    hidden = torch.arange(37) >= seen[:, None, :, None]
    # A query that sees nothing gets zeros, not a softmax over nothing.
    expected = (wide * 0.5).masked_fill(hidden, -1e9).softmax(-1) * ~hidden
    (of_scores,) = gradients(expected, wide, above)
    row_kernels.run("masked_softmax", scores, seen, *scores.shape, 0.5)
    assert_near(scores, expected)
    assert not scores[1, :, 3].any()
    row_kernels.run("masked_softmax_backward", scores, above, seen, *scores.shape, 0.5)
    assert_near(above, of_scores, 0.02)


def test_the_cross_entropy_and_its_gradient():
    logits = 3 * noise(5, 2, 33)
    targets = torch.tensor([[0, 32], [-100, 4], [7, -100], [-100, -100], [1, 1]])
    wide = logits.float().requires_grad_()
    expected = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none").view(5, 2).sum(0)
    (of_logits,) = gradients(expected, wide, torch.ones(2))
    losses = torch.zeros(2, dtype=torch.float64)
    row_kernels.run("cross_entropy", logits, targets, losses, 5, 2, 33)
    torch.testing.assert_close(losses.float(), expected, rtol=1e-5, atol=1e-5)
    assert_near(logits, of_logits)


WEIGHTS = LossWeights(tuple(map(float, range(1, 9))))


def small_model(dropout=0.0):
    torch.manual_seed(0)
    config = train_language_model.model_config(phoneme_tokenizer.build_tokenizer(), 128, 96, layers=2)
    model = TrainableModel(config, text_head=False, dropout=dropout)
    initial_weights.initialise_layers(model)
    return model


@pytest.mark.parametrize("kind", ["single", "reference", "dialogue"])
def test_the_pass_and_its_gradients_are_those_of_the_model(rendered, kind):
    model = small_model()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    maker = sequences.SequenceMaker(sequences.Corpus(rendered, held_out=False), seed=0)
    # Prompts of two kinds, texts and audio of several lengths.
    rows = maker.make([0, 1, 2, 5, 6, 7], augmented=True, kind=kind).rows
    parameters = dict(model.named_parameters())

    def differentiate(losses, states):
        total = losses.total + states.float().square().mean()
        return torch.autograd.grad(total, list(parameters.values()), materialize_grads=True)

    states = packed_pass.packed_states(model, rows)
    found = packed_pass.packed_losses(states, rows, model.audio_lm_head, WEIGHTS)
    found_gradients = differentiate(found, states)
    expected_states = model.states(rows)
    expected = losses_of(expected_states, rows, model.audio_lm_head, None, WEIGHTS, TargetCounts.of(rows))
    assert_near(states, expected_states)
    torch.testing.assert_close(found.total, expected.total, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found.codebooks, expected.codebooks, rtol=2e-3, atol=2e-3)
    for name, gradient, right in zip(
        parameters, found_gradients, differentiate(expected, expected_states), strict=True
    ):
        assert (gradient - right).norm() <= 0.03 * right.norm(), name


def test_dropout_is_a_function_of_the_seed():
    def dropped(seed, number, share=0.25):
        x = torch.ones(100, 50, dtype=torch.bfloat16)
        packed_pass.Dropout(share, seed).apply(x, number)
        return x

    x = dropped(1, 0)
    assert set(x.unique().tolist()) == {0, dropped(2, 0).max().item()}
    assert x.max().item() == pytest.approx(4 / 3, rel=4e-3)
    assert (x == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(x, dropped(1, 0))
    for other in (dropped(1, 1), dropped(2, 0)):
        assert (x != other).float().mean() > 0.3
    assert (dropped(1, 0, share=0.0) == 1).all()


def test_the_gradient_is_that_of_the_pass_with_dropout(rendered):
    model = small_model(dropout=0.5)
    # So that layers say much, and what they drop counts.
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data *= 10
    maker = sequences.SequenceMaker(sequences.Corpus(rendered, held_out=False), seed=0)
    rows = maker.make([0, 1, 2, 5, 6, 7], augmented=True).rows
    layers = list(model.model.layers.parameters())

    def loss(change=0.0):
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter, part in zip(layers, direction, strict=True):
                parameter += change * part
        states = packed_pass.packed_states(model, rows)
        value = packed_pass.packed_losses(states, rows, model.audio_lm_head, LossWeights((1.0,) * 8)).total
        with torch.no_grad():
            for parameter, part in zip(layers, direction, strict=True):
                parameter -= change * part
        return value

    direction = [torch.zeros_like(parameter) for parameter in layers]
    direction = torch.autograd.grad(loss(), layers, materialize_grads=True)
    slope = sum(part.square().sum() for part in direction)
    change = 0.2 / slope
    assert (loss(change) - loss(-change)).item() == pytest.approx(0.4, rel=0.1)
    dropped = packed_pass.packed_states(model, rows)
    model.eval()
    whole = packed_pass.packed_states(model, rows)
    assert (dropped - whole).norm() > 0.1 * whole.norm()
