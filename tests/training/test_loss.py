"""The chunked cross-entropy: torch's values and gradients, without all logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from higgs_native.training import loss
from higgs_native.training.data.rows import IGNORED
from higgs_native.training.loss import chunked_cross_entropy


def case(num_rows: int, groups: int = 3, classes: int = 5, width: int = 4) -> tuple:
    generator = torch.Generator().manual_seed(num_rows)
    head = nn.Linear(width, groups * classes, bias=False).double()
    states = torch.randn(num_rows, width, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, classes, (num_rows, groups), generator=generator)
    targets[torch.rand(num_rows, groups, generator=generator) < 0.3] = IGNORED
    scales = torch.rand(groups, generator=generator, dtype=torch.float64)
    return head, states, targets, scales


@pytest.mark.parametrize("num_rows", [1, 5, 6, 7, 23])
def test_values_and_gradients_are_those_of_torch(monkeypatch, num_rows):
    monkeypatch.setattr(loss, "MIN_CHUNK_ROWS", 6)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 0)
    head, states, targets, scales = case(num_rows)
    total, sums = chunked_cross_entropy(head, states, targets, scales)
    grads = torch.autograd.grad(3 * total, [states, head.weight])
    logits = head(states).unflatten(1, (3, 5))
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    expected = each.unflatten(0, (-1, 3)).sum(dim=0)
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(total, (expected * scales).sum())
    torch.testing.assert_close(grads, torch.autograd.grad(3 * (expected * scales).sum(), [states, head.weight]))


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(loss, "MIN_CHUNK_ROWS", 4)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 0)
    head, states, targets, scales = case(9)

    def total(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return loss.ChunkedCrossEntropy.apply(HeadOf(weight), targets, scales, True, states, weight)[0]

    assert torch.autograd.gradcheck(total, (states, head.weight))


class HeadOf(nn.Module):
    """A head with a given tensor as its weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight_of = lambda: weight
        self.out_features = weight.shape[0]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self.weight_of())


def test_a_frozen_head_gets_no_gradient():
    head, states, targets, scales = case(5)
    head.requires_grad_(False)
    chunked_cross_entropy(head, states, targets, scales)[0].backward()
    assert head.weight.grad is None
    assert states.grad.abs().max() > 0


def test_no_gradients_are_computed_where_none_are_wanted():
    head, states, targets, scales = case(5)
    calls = []
    head.register_forward_hook(lambda module, inputs, output: calls.append(output.requires_grad))
    with torch.no_grad():
        total, _ = chunked_cross_entropy(head, states, targets, scales)
    assert calls == [False]
    assert not total.requires_grad


def test_the_logits_of_all_rows_never_exist_at_once():
    head = nn.Linear(8, 8 * 1026, bias=False)
    shapes = []
    head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    states = torch.randn(700, 8, requires_grad=True)
    chunked_cross_entropy(head, states, torch.zeros(700, 8, dtype=torch.int64), torch.ones(8))[0].backward()
    assert sum(shape[0] for shape in shapes) == 700
    assert max(shape.numel() for shape in shapes) <= loss.CHUNK_LOGITS
