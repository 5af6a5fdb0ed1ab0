"""Memory for weights: where it begins, and that it is given back."""

import gc

import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_native.utils.memory import empty_weight
from tests.helpers.memory import resident_bytes


CPU = torch.device("cpu")
HUGE_PAGE = 2 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(), (0, 4), (3, 5), (4, 1 << 20), (3001, 1, 1999), (5, (1 << 20) + 1)])
def test_a_weight_is_as_any_tensor(tmp_path, shape, dtype):
    weight = empty_weight(shape, dtype, CPU)
    assert (weight.shape, weight.dtype, weight.is_contiguous()) == (shape, dtype, True)
    expected = torch.arange(weight.numel()).view(shape).to(torch.int8).to(dtype)
    weight.copy_(expected)
    save_file({"weight": weight}, tmp_path / "weight.safetensors")
    assert torch.equal(load_file(tmp_path / "weight.safetensors")["weight"].float(), expected.float())


def test_a_large_weight_begins_at_a_huge_page():
    for columns in (1 << 20, 1_234_567):
        assert empty_weight((4, columns), torch.float32, CPU).data_ptr() % HUGE_PAGE == 0


def test_memory_is_given_back():
    gc.collect()
    before = resident_bytes()
    weights = [empty_weight((1 << 24,), torch.int8, CPU).fill_(1) for _ in range(10)]
    filled = resident_bytes()
    assert 160 << 20 <= filled - before < 200 << 20
    view = weights[0][5:]
    del weights
    assert filled - resident_bytes() > 140 << 20
    assert view.sum() == (1 << 24) - 5  # a view keeps its weight's memory, and none of the others'
