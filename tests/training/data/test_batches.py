"""Packs and the held-out split: complete, within their size, and functions of the seed."""

import pytest
import torch

from higgs_native.training.data.batches import WINDOW, held_out, pack_by_length, packs


def lengths(count: int) -> list[int]:
    return torch.randint(20, 400, (count,), generator=torch.Generator().manual_seed(count)).tolist()


@pytest.mark.parametrize("count", [1, 7, WINDOW + 5])
def test_every_sample_is_in_one_pack_and_no_pack_is_too_long(count):
    rows = lengths(count)
    packed = packs(rows, 1000, seed=1, epoch=0)
    assert sorted(sample for pack in packed for sample in pack) == list(range(count))
    assert max(sum(rows[sample] for sample in pack) for pack in packed) <= 1000


def test_packs_are_full():
    rows = lengths(WINDOW)
    assert len(pack_by_length(range(WINDOW), rows, 2000)) <= -(-sum(rows) // 2000) + 1


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    rows = lengths(40)
    assert packs(rows, 900, 1, 2) == packs(rows, 900, 1, 2)
    assert packs(rows, 900, 1, 2) != packs(rows, 900, 1, 3)
    assert packs(rows, 900, 1, 2) != packs(rows, 900, 2, 2)


def test_the_split_is_complete_and_keeps_at_least_one_of_each():
    for count, share, expected in ((10, 0.2, 2), (10, 0.001, 1), (2, 0.9, 1), (1, 0.5, 0), (5, 0.0, 0)):
        learned, held = held_out(count, share, seed=3)
        assert sorted(learned + held) == list(range(count))
        assert len(held) == expected
    assert held_out(50, 0.1, 1) == held_out(50, 0.1, 1) != held_out(50, 0.1, 2)
