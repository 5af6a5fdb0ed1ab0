"""The audio tokenizer's operators against plain PyTorch."""

import pytest
import torch
from torch.nn import functional as F

from higgs_native import ops, reference
from tests.ops.tensors import random


def positive(count: int, seed: int = 0) -> torch.Tensor:
    return 0.3 + random((count,), seed=seed).abs()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (1, 4, 64), (1, 2, 67), (3, 5, 200), (0, 3, 4), (1, 3, 0)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0, 1e4])
def test_snake_equals_its_definition(shape, scale):
    x, alpha = scale * random(shape), positive(shape[1], 1)
    # The argument of the sine is rounded to float32, as in both public implementations; the rest is exact.
    y, slope = (alpha[:, None] * x).double(), (alpha[:, None] + 1e-9).double()
    expected = x.double() + y.sin().square() / slope
    out = torch.full(shape, torch.nan)
    ops.snake(out, x, alpha)
    torch.testing.assert_close(out.double(), expected, rtol=2e-7, atol=1e-6)


def test_snake_of_any_float():
    """Far beyond the range that occurs, beside ordinary values, and where it is not defined."""
    x = torch.tensor([[[0.0, -0.0, 1e5, -3e7, 1e30, 0.5, torch.inf, torch.nan] * 9]])
    expected, out = torch.empty_like(x), torch.empty_like(x)
    reference.snake(expected, x, torch.ones(1))
    ops.snake(out, x, torch.ones(1))
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_snake_in_place():
    x, alpha, expected = random((2, 3, 70)), positive(3), torch.empty(2, 3, 70)
    reference.snake(expected, x, alpha)
    ops.snake(x, x, alpha)
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)


def unit(batch: int, channels: int, time: int, taps: int = 7, dilation: int = 1) -> dict:
    return {
        "out": torch.full((batch, channels, time), torch.nan),
        "x": random((batch, channels, time)),
        "alpha1": positive(channels, 1),
        "weight1": random((channels, channels, taps), seed=2) / (channels * taps) ** 0.5,
        "bias1": random((channels,), seed=3),
        "alpha2": positive(channels, 4),
        "weight2": random((channels, channels, 1), seed=5) / channels**0.5,
        "bias2": random((channels,), seed=6),
        "dilation": dilation,
    }


@pytest.mark.parametrize(
    ("batch", "channels", "time", "taps", "dilation"),
    [
        (1, 1, 1, 7, 1),
        (1, 2, 3, 7, 9),
        (2, 5, 17, 3, 2),
        (1, 32, 100, 7, 3),
        (1, 66, 53, 7, 9),
        (1, 9, 1000, 1, 1),
        (3, 4, 8300, 7, 9),
        (1, 600, 130, 5, 1),
    ],
)
def test_residual_unit_equals_reference(batch, channels, time, taps, dilation):
    arguments = unit(batch, channels, time, taps, dilation)
    expected = torch.empty_like(arguments["x"])
    reference.residual_unit(**(arguments | {"out": expected}))
    ops.residual_unit(**arguments)
    torch.testing.assert_close(arguments["out"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_residual_unit_does_not_depend_on_threads(threads):
    arguments = unit(1, 16, 777, dilation=3)
    expected = torch.empty_like(arguments["x"])
    reference.residual_unit(**(arguments | {"out": expected}))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ops.residual_unit(**arguments)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(arguments["out"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    ("batch", "channels", "out_channels", "time"),
    [(1, 1, 1, 1), (2, 6, 3, 5), (1, 64, 32, 47), (1, 3, 9, 700), (1, 700, 5, 100)],
)
def test_transposed_convolution_equals_torch(stride, batch, channels, out_channels, time):
    x, alpha, bias = random((batch, channels, time)), positive(channels, 1), random((out_channels,), seed=2)
    weight = random((channels, out_channels, 2 * stride), seed=3) / channels**0.5
    packed = ops.pack_conv_transpose1d(weight)
    out = torch.full((batch, out_channels, time * stride), torch.nan)
    ops.snake_conv_transpose1d(out, x, alpha, packed, bias)
    activated = torch.empty_like(x)
    reference.snake(activated, x, alpha)
    expected = F.conv_transpose1d(activated, weight, bias, stride, (stride + 1) // 2, stride % 2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    reference.snake_conv_transpose1d(out, x, alpha, packed, bias)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "channels", "out_channels", "time", "taps"),
    [(1, 1, 1, 1, 7), (2, 5, 3, 17, 3), (1, 256, 70, 9, 7), (1, 32, 1, 3000, 7), (1, 9, 40, 100, 1)],
)
def test_convolution_equals_torch(batch, channels, out_channels, time, taps):
    x, bias = random((batch, channels, time)), random((out_channels,), seed=1)
    weight = random((out_channels, channels, taps), seed=2) / (channels * taps) ** 0.5
    out = torch.full((batch, out_channels, time), torch.nan)
    ops.conv1d(out, x, weight, bias)
    expected = F.conv1d(x, weight, bias, padding=taps // 2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    reference.conv1d(out, x, weight, bias)
    torch.testing.assert_close(out, expected)


def convolutions(time: int) -> dict[str, tuple[dict, int]]:
    """Arguments of each operator that can write a part of its result, and how long the result is."""
    x, out = random((2, 6, time)), torch.full((2, 9, time), torch.nan)
    conv = {"x": x, "weight": random((9, 6, 7), seed=2), "bias": random((9,), seed=3)}
    upsample = {"x": x, "alpha": positive(6), "weight": random((9, 5, 6, 2), seed=2), "bias": random((9,), seed=3)}
    return {
        "conv1d": ({"out": out} | conv, time),
        "residual_unit": (unit(2, 6, time, dilation=3), time),
        "snake_conv_transpose1d": ({"out": torch.full((2, 9, 5 * time), torch.nan)} | upsample, 5 * time),
    }


@pytest.mark.parametrize("name", ["conv1d", "residual_unit", "snake_conv_transpose1d"])
@pytest.mark.parametrize("module", [ops, reference])
def test_a_part_of_the_columns_has_the_bits_of_the_whole(name, module):
    arguments, length = convolutions(83)[name]
    getattr(module, name)(**arguments)
    whole = arguments["out"]
    for first, last in ((0, 1), (0, length), (1, 4), (17, 18), (length - 3, length), (40, 83), (5, 5)):
        part = torch.full_like(whole[..., first:last], torch.nan)
        getattr(module, name)(**(arguments | {"out": part, "first": first}))
        assert torch.equal(part, whole[..., first:last])


@pytest.mark.parametrize(("batch", "time"), [(0, 5), (2, 0)])
def test_nothing_is_convolved(batch, time):
    ops.conv1d(torch.empty(batch, 4, time), torch.empty(batch, 3, time), torch.ones(4, 3, 5), torch.ones(4))
    ops.residual_unit(**unit(batch, 4, time))
    x, out = torch.empty(batch, 4, time), torch.empty(batch, 2, 3 * time)
    ops.snake_conv_transpose1d(out, x, torch.ones(4), torch.ones(2, 3, 4, 2), torch.ones(2))


def quantizer(levels: int, frames: int, entries: int, dim: int, width: int) -> dict[str, torch.Tensor]:
    return {
        "codes": torch.full((levels, frames), -1, dtype=torch.int32),
        "embeddings": random((frames, width)),
        "codebooks": random((levels, entries, dim), seed=1),
        "in_weight": random((levels, dim, width), seed=2) / width**0.5,
        "in_bias": random((levels, dim), seed=3) / 10,
        "out_weight": random((levels, width, dim), seed=4) / dim**0.5,
        "out_bias": random((levels, width), seed=5) / 10,
    }


@pytest.mark.parametrize(
    ("levels", "frames", "entries", "dim", "width"),
    [(1, 1, 1, 1, 1), (8, 25, 1024, 64, 128), (3, 33, 17, 5, 30), (2, 100, 64, 8, 24), (2, 0, 4, 3, 5)],
)
def test_rvq_encode_equals_reference(levels, frames, entries, dim, width):
    arguments = quantizer(levels, frames, entries, dim, width)
    expected = torch.empty_like(arguments["codes"])
    reference.rvq_encode(**(arguments | {"codes": expected}))
    ops.rvq_encode(**arguments)
    # These random entries are far enough from each other for rounding not to matter.
    assert torch.equal(arguments["codes"], expected)


def test_rvq_encode_takes_the_first_of_equal_entries():
    arguments = quantizer(2, 40, 6, 4, 12)
    arguments["codebooks"] = arguments["codebooks"][:, :3].repeat_interleave(2, dim=1)
    ops.rvq_encode(**arguments)
    assert set(arguments["codes"].flatten().tolist()) == {0, 2, 4}


@pytest.mark.parametrize(("levels", "frames", "entries", "width"), [(1, 1, 1, 1), (8, 30, 50, 37), (2, 0, 3, 4)])
def test_rvq_decode_equals_reference(levels, frames, entries, width):
    codes = torch.randint(entries, (levels, frames), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    table, bias = random((levels, entries, width)), random((width,), seed=1)
    out, expected = torch.full((frames, width), torch.nan), torch.empty(frames, width)
    ops.rvq_decode(out, codes, table, bias)
    reference.rvq_decode(expected, codes, table, bias)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


UPSAMPLE = {
    "out": torch.zeros(1, 2, 12),
    "x": torch.zeros(1, 3, 4),
    "alpha": torch.ones(3),
    "weight": torch.zeros(2, 3, 3, 2),
    "bias": torch.zeros(2),
}
DECODE = {
    "out": torch.zeros(4, 3),
    "codes": torch.zeros(2, 4, dtype=torch.int32),
    "table": torch.zeros(2, 5, 3),
    "bias": torch.zeros(3),
}
ARGUMENTS = {
    "snake": {"out": torch.zeros(1, 3, 4), "x": torch.zeros(1, 3, 4), "alpha": torch.ones(3)},
    "conv1d": {
        "out": torch.zeros(1, 2, 4),
        "x": torch.zeros(1, 3, 4),
        "weight": torch.zeros(2, 3, 5),
        "bias": torch.zeros(2),
    },
    "residual_unit": unit(1, 3, 4),
    "snake_conv_transpose1d": UPSAMPLE,
    "rvq_encode": quantizer(2, 4, 5, 3, 6),
    "rvq_decode": DECODE,
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.higgs_native, name).default, tuple(ARGUMENTS[name].values()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("snake", {"alpha": torch.ones(4)}, r"alpha must have shape \[3\], got \[4\]"),
        ("snake", {"alpha": torch.ones(1, 3, 1)}, r"alpha must have shape \[3\], got \[1, 3, 1\]"),
        ("snake", {"x": torch.zeros(1, 3, 4, dtype=torch.float64)}, "x must be float32, got float64"),
        ("snake", {"x": torch.zeros(1, 4, 3).mT}, "x must be contiguous"),
        ("snake", {"out": torch.zeros(1, 3, 5)}, r"out must have shape \[1, 3, 4\], got \[1, 3, 5\]"),
        ("conv1d", {"weight": torch.zeros(2, 3, 4)}, "weight must have an odd number of taps, got 4"),
        ("conv1d", {"weight": torch.zeros(2, 4, 5)}, r"weight must have shape \[\*, 3, \*\], got \[2, 4, 5\]"),
        ("conv1d", {"bias": torch.zeros(3)}, r"bias must have shape \[2\], got \[3\]"),
        ("conv1d", {"first": 1}, "out takes columns 1 to 5, which must lie between 0 and 4"),
        ("conv1d", {"first": -1}, "out takes columns -1 to 3, which must lie between 0 and 4"),
        ("residual_unit", {"first": 1}, "out takes columns 1 to 5, which must lie between 0 and 4"),
        ("residual_unit", {"weight1": torch.zeros(3, 3, 4)}, "weight1 must have an odd number of taps, got 4"),
        ("residual_unit", {"weight1": torch.zeros(3, 2, 7)}, r"weight1 must have shape \[3, 3, \*\], got \[3, 2, 7\]"),
        ("residual_unit", {"weight2": torch.zeros(3, 3, 3)}, r"weight2 must have shape \[3, 3, 1\], got \[3, 3, 3\]"),
        ("residual_unit", {"bias2": torch.zeros(1)}, r"bias2 must have shape \[3\], got \[1\]"),
        ("residual_unit", {"dilation": 0}, "dilation must be at least 1, got 0"),
        ("residual_unit", {"out": ARGUMENTS["residual_unit"]["x"]}, "out must not be x"),
        ("snake_conv_transpose1d", {"weight": torch.zeros(2, 3, 4, 2)}, r"weight must have shape \[\*, \*, 3, 2\]"),
        ("snake_conv_transpose1d", {"out": torch.zeros(1, 2, 13)}, "out takes columns 0 to 13, which must"),
        ("snake_conv_transpose1d", {"out": torch.zeros(1, 3, 12)}, r"out must have shape \[1, 2, \*\]"),
        ("snake_conv_transpose1d", {"weight": torch.zeros(2, 1, 3, 2)}, "weight must have at least 2 phases, got 1"),
        ("rvq_encode", {"codes": torch.zeros(2, 4, dtype=torch.int64)}, "codes must be int32, got int64"),
        ("rvq_encode", {"codebooks": torch.zeros(2, 0, 3)}, "codebooks must have at least one entry"),
        ("rvq_encode", {"in_bias": torch.zeros(2, 4)}, r"in_bias must have shape \[2, 3\], got \[2, 4\]"),
        ("rvq_decode", {"codes": torch.full((2, 4), 5, dtype=torch.int32)}, r"codes\[0, 0\] must be between 0 and 4"),
        ("rvq_decode", {"codes": torch.full((2, 4), -1, dtype=torch.int32)}, r"codes\[0, 0\] must be .*, got -1"),
        ("rvq_decode", {"table": torch.zeros(3, 5, 3)}, r"table must have shape \[2, \*, \*\], got \[3, 5, 3\]"),
    ],
)
def test_wrong_arguments_are_named(name, change, message):
    with pytest.raises(RuntimeError, match=f"{name}: {message}"):
        getattr(ops, name)(**(ARGUMENTS[name] | change))
