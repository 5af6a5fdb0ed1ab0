"""The weight-streaming products against plain PyTorch."""

import pytest
import torch

from higgs_native import ops, reference
from tests.ops.tensors import random


DTYPES = [torch.float32, torch.bfloat16]
# Rows: one, a few (streamed), many (blocked, with and without a rest); columns and depth around every block size.
SHAPES = [(1, 1, 1), (1, 9, 64), (2, 17, 33), (3, 16, 1030), (4, 5, 7), (16, 40, 1024), (97, 35, 2050), (200, 4, 16)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "n", "k"), SHAPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_linear_equals_reference(rows, n, k, dtype, with_residual):
    x, weight = random((rows, k)), random((n, k), dtype, 1)
    residual = random((rows, n), seed=2) if with_residual else None
    out, expected = torch.full((rows, n), torch.nan), torch.empty(rows, n)
    ops.linear(out, x, weight, residual)
    reference.linear(expected, x, weight, residual)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5 * k**0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "n", "k"), SHAPES)
def test_rms_norm_linear_equals_reference(rows, n, k, dtype):
    x, norm, weight = random((rows, k)), random((k,), dtype, 1), random((n, k), dtype, 2)
    out, expected = torch.full((rows, n), torch.nan), torch.empty(rows, n)
    ops.rms_norm_linear(out, x, norm, 1e-5, weight)
    reference.rms_norm_linear(expected, x, norm, 1e-5, weight)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-5 * k**0.5)


def test_residual_may_be_the_output():
    x, weight, out = random((3, 20)), random((6, 20), seed=1), random((3, 6), seed=2)
    expected = out + x @ weight.T
    ops.linear(out, x, weight, out)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [64, 1500])
def test_a_row_does_not_depend_on_its_batch(dtype, k):
    """The same row gives the same bits alone, among 2 .. 16 others, and in a block of 100."""
    x, weight = random((100, k)), random((50, k), dtype, 1)
    whole = torch.empty(100, 50)
    ops.linear(whole, x, weight)
    for rows in (1, 2, 3, 4, 7, 16):
        out = torch.empty(rows, 50)
        ops.linear(out, x[:rows].contiguous(), weight)
        assert torch.equal(out, whole[:rows])


def test_no_rows():
    out = torch.empty(0, 4)
    ops.linear(out, torch.empty(0, 8), random((4, 8)))
    ops.rms_norm_linear(out, torch.empty(0, 8), random((8,)), 1e-5, random((4, 8)))


def test_opcheck():
    x, weight, out = random((3, 20)), random((6, 20), seed=1), random((3, 6), seed=2)
    torch.library.opcheck(torch.ops.higgs_native.linear.default, (out, x, weight, None))
    torch.library.opcheck(torch.ops.higgs_native.linear.default, (out, x, weight, random((3, 6))))
    torch.library.opcheck(torch.ops.higgs_native.rms_norm_linear.default, (out, x, random((20,)), 1e-5, weight))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 21)}, r"weight must have shape \[\*, 21\], got \[6, 20\]"),
        ({"x": torch.zeros(20)}, r"x must have shape \[\*, \*\], got \[20\]"),
        ({"x": torch.zeros(3, 20, dtype=torch.float64)}, "x must be float32, got float64"),
        ({"weight": torch.zeros(6, 20, dtype=torch.float16)}, "weight must be float32 or bfloat16, got float16"),
        ({"weight": torch.zeros(20, 6).T}, "weight must be contiguous"),
        ({"out": torch.zeros(3, 7)}, r"out must have shape \[3, 6\], got \[3, 7\]"),
        ({"residual": torch.zeros(1, 6)}, r"residual must have shape \[3, 6\], got \[1, 6\]"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"out": torch.zeros(3, 6), "x": torch.zeros(3, 20), "weight": torch.zeros(6, 20), "residual": None}
    with pytest.raises(RuntimeError, match="linear: " + message):
        ops.linear(**(arguments | change))
