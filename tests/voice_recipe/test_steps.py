"""Trainings of the voice's recipe: the schedule of their learning rates, and the optimizer of matrices."""

import itertools

import pytest
import torch
from recipe import matrix_optimizer, steps
from torch import nn


def test_the_learning_rate_rises_stays_and_falls(tmp_path):
    network = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    training = steps.Steps({"n": network}, {"o": optimizer}, tmp_path, "n", 1000, averaged="n")
    rates = {}
    for step in range(1000):
        training.update(network(torch.ones(1, 2)).sum(), "o")
        rates[step] = optimizer.param_groups[0]["lr"]
        training.advance()
    assert rates[0] == pytest.approx(0.0025)
    assert rates[99] == pytest.approx(0.25)
    assert {rates[step] for step in range(200, 700)} == {0.5}
    assert rates[850] == pytest.approx(0.25)
    assert rates[999] == pytest.approx(0.005)


def test_the_learning_rate_rises_again_if_more_steps_are_given(tmp_path):
    network = nn.Linear(2, 1)

    def run(total, count):
        optimizer = torch.optim.SGD(network.parameters(), 0.5)
        training = steps.Steps({"n": network}, {"o": optimizer}, tmp_path, "n", total, averaged="n")
        rates = []
        for _ in range(count):
            training.update(network(torch.ones(1, 2)).sum(), "o")
            training.update(network(torch.ones(1, 2)).sum(), "o")
            rates.append(optimizer.param_groups[0]["lr"])
            training.advance()
        training.save()
        return rates

    assert run(400, 400)[-1] == pytest.approx(0.005)
    rates = run(4000, 300)
    assert rates[0] == pytest.approx(0.0075)
    assert max(after - before for before, after in itertools.pairwise(rates)) == pytest.approx(0.5 / 200)
    assert rates[-1] == 0.5


def test_muon_of_a_convolution_is_muon_of_its_matrix():
    torch.manual_seed(0)
    layer = nn.Conv1d(6, 4, 3)
    matrix = nn.Parameter(layer.weight.detach().clone().flatten(1))
    above = torch.randn(4, 6, 3)
    found = matrix_optimizer.muon([layer.weight], 0.1, 0.01)
    expected = torch.optim.Muon([matrix], 0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    before = layer.weight.detach().clone()
    for _ in range(3):
        for optimizer in (found, expected):
            optimizer.zero_grad()
        (layer.weight * above).sum().backward()
        matrix.grad = above.flatten(1).clone()
        assert layer.weight.grad is None
        for optimizer in (found, expected):
            optimizer.step()
    torch.testing.assert_close(layer.weight.detach().flatten(1), matrix.detach())
    assert (layer.weight - before).abs().mean() > 0.01
