"""Rounding of weight matrices to integers, against plain PyTorch."""

import pytest
import torch

from higgs_native import ops, reference
from tests.ops.tensors import random


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("format", ["fp8", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 128), (40, 300)])
def test_quantize_linear_equals_reference(n, k, dtype, format, clip, device):
    weight = (random((n, k)) * (1 + random((n, k), seed=1).abs() ** 3)).to(dtype)
    values, scales = (part.cpu() for part in ops.quantize_linear(weight, format, clip))
    weight = weight.cpu()
    expected_values, expected_scales = reference.quantize_linear(weight, format, clip)
    # Two scales may have nearly the same error, which then depends on the order of its sum.
    same = scales == expected_scales
    assert same.float().mean() >= (0.95 if clip else 1)
    columns = same.view(n, -1).repeat_interleave(128 if format == "int4" else k, 1)[:, :k]
    # A value halfway between two integers may round to either.
    difference = values.float()[columns] - expected_values.float()[columns]
    assert difference.abs().max() <= (32 if format == "fp8" else 1)
    assert (difference == 0).float().mean() > 0.99


def test_zeros_have_a_scale_of_one():
    for format in ("fp8", "int8", "int4"):
        for implementation in (ops, reference):
            values, scales = implementation.quantize_linear(torch.zeros(3, 200), format)
            assert not values.float().any()
            assert (scales == 1).all()
