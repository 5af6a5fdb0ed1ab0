"""The dual feed-forward against plain PyTorch."""

import pytest
import torch

from higgs_native import ops, reference
from higgs_native.ops.formats import WEIGHT_FORMATS
from tests.ops.tensors import random, tolerance


def weights(hidden: int, intermediate: int, dtype: torch.dtype, format: str | None = None) -> tuple:
    scale = hidden**-0.5
    return tuple(
        part
        for seed in (10, 20)
        for part in (
            random((hidden,), dtype, seed),
            ops.pack_gate_up(
                *(random((intermediate, hidden), seed=seed + i).mul(scale).to(dtype) for i in (1, 2)),
                format=format,
            ),
            ops.pack_linear(random((hidden, intermediate), seed=seed + 3).mul(scale).to(dtype), format=format),
        )
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("hidden", "intermediate"), [(8, 1), (33, 50), (64, 160), (40, 33)])
@pytest.mark.parametrize(("num_text", "num_audio"), [(0, 0), (1, 0), (0, 1), (2, 5), (40, 70), (500, 3), (1, 490)])
def test_dual_ffn_equals_reference(num_text, num_audio, hidden, intermediate, dtype):
    rows = num_text + num_audio
    x, parts = random((rows, hidden)), weights(hidden, intermediate, dtype)
    out, expected = torch.full((rows, hidden), torch.nan), torch.empty(rows, hidden)
    ops.dual_ffn(out, x, *parts, 1e-5, num_text)
    reference.dual_ffn(expected, x, *parts, 1e-5, num_text)
    torch.testing.assert_close(out, expected, **tolerance(dtype, max(hidden, intermediate), hidden**-0.5))


@pytest.mark.parametrize("format", ["fp8", "int8", "int4"])
@pytest.mark.parametrize(("num_text", "num_audio"), [(1, 0), (0, 1), (2, 15)])
def test_quantized_weights(num_text, num_audio, format):
    rows, hidden, intermediate = num_text + num_audio, 140, 200
    x, parts = random((rows, hidden)), weights(hidden, intermediate, torch.float32, format)
    out, expected = torch.full((rows, hidden), torch.nan), torch.empty(rows, hidden)
    ops.dual_ffn(out, x, *parts, 1e-5, num_text)
    reference.dual_ffn(expected, x, *parts, 1e-5, num_text)
    torch.testing.assert_close(out, expected, **tolerance(WEIGHT_FORMATS[format].dtype, intermediate))


def test_the_input_may_be_the_output():
    x, parts = random((3, 32)), weights(32, 48, torch.float32)
    expected = torch.empty(3, 32)
    ops.dual_ffn(expected, x, *parts, 1e-5, 1)
    ops.dual_ffn(x, x, *parts, 1e-5, 1)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_gates(dtype):
    """silu goes to 0 on the far left and to its argument on the far right, without overflow."""
    gates = torch.tensor([0.0, 80, 88, 90, 100, 176, 300, 1e4, 1e30])
    largest = torch.finfo(dtype).max
    gates = torch.cat([gates, -gates]).clamp(-largest, largest).to(dtype)
    ones = torch.ones(1, dtype=dtype)
    gate_up = ops.pack_gate_up(gates[:, None].contiguous(), torch.ones(len(gates), 1, dtype=dtype))
    x = torch.ones(1, 1)
    for unit in range(len(gates)):
        selected = torch.zeros(1, len(gates), dtype=dtype)
        selected[0, unit] = 1
        down, out = ops.pack_linear(selected), torch.empty(1, 1)
        ops.dual_ffn(out, x, ones, gate_up, down, ones, gate_up, down, 0.0, 1)
        expected = 1 + torch.nn.functional.silu(gates[unit].double())
        rtol = 1e-5 if dtype == torch.float32 else 5e-3  # activations may be rounded to bfloat16
        torch.testing.assert_close(out[0, 0].double(), expected, rtol=rtol, atol=1e-5)


def test_weights_of_an_empty_segment_are_not_read():
    x, parts = random((2, 32)), list(weights(32, 48, torch.float32))
    expected, out = torch.empty(2, 32), torch.empty(2, 32)
    ops.dual_ffn(expected, x, *parts, 1e-5, 0)
    parts[0].fill_(torch.nan)
    parts[1].data.fill_(torch.nan)
    parts[2].data.fill_(torch.nan)
    ops.dual_ffn(out, x, *parts, 1e-5, 0)
    assert torch.equal(out, expected)


def test_a_width_of_zero_needs_no_memory():
    """The weights of no column take no memory, but the activations between them would take terabytes."""
    norm, gate_up = torch.empty(0), ops.PackedWeight(torch.empty(2**26 - 1, 0, 32, 1))
    down = ops.PackedWeight(torch.empty(0, 2**30 - 16, 32, 1))
    out = torch.empty(480, 0)
    ops.dual_ffn(out, torch.empty(480, 0), norm, gate_up, down, norm, gate_up, down, 1e-5, 240)


def test_the_columns_between_the_weights_may_not_overflow():
    """A weight of no column has no memory, and may have any number of panels."""
    norm, x = torch.empty(0), torch.empty(1, 0)
    gate_up, down = ops.PackedWeight(torch.empty(2**27, 0, 32, 1)), ops.PackedWeight(torch.empty(0, 2**31 - 1, 32, 1))
    with pytest.raises(RuntimeError, match=f"text_gate_up must have at most 2147483647 rows and columns, got {2**32}"):
        ops.dual_ffn(torch.empty(1, 0), x, norm, gate_up, down, norm, gate_up, down, 1e-5, 0)


def test_opcheck():
    x, parts = random((3, 32)), weights(32, 48, torch.float32)
    flat = [item for part in parts for item in (part if isinstance(part, tuple) else (part,))]
    torch.library.opcheck(torch.ops.higgs_native.dual_ffn.default, (torch.empty(3, 32), x, *flat, 1e-5, 1))


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (0, torch.zeros(2, 32), r"out must have shape \[3, 32\], got \[2, 32\]"),
        (2, torch.zeros(31), r"text_norm must have shape \[32\], got \[31\]"),
        (
            3,
            ops.PackedWeight(torch.zeros(96, 32)),
            r"text_gate_up must have 4 dimensions of at most 2147483647, got \[96, 32\]",
        ),
        (
            3,
            ops.PackedWeight(torch.zeros(3, 31, 32, 1)),
            r"text_gate_up must have shape \[3, 32, 32, 1\], got \[3, 31",
        ),
        (4, ops.PackedWeight(torch.zeros(1, 32, 32, 1)), "text_down must have 33 to 48 columns.*, got 32"),
        (7, ops.PackedWeight(torch.zeros(1, 49, 32, 1)), r"audio_down must have shape \[1, 48, 32, 1\], got \[1, 49"),
        (9, 4, "num_text_rows must be between 0 and 3, got 4"),
        (9, -1, "num_text_rows must be between 0 and 3, got -1"),
    ],
)
def test_wrong_arguments_are_named(index, wrong, message):
    arguments = [torch.empty(3, 32), random((3, 32)), *weights(32, 48, torch.float32), 1e-5, 1]
    arguments[index] = wrong
    with pytest.raises(RuntimeError, match="dual_ffn: " + message):
        ops.dual_ffn(*arguments)
