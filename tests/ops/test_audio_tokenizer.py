"""The audio tokenizer's operators against plain PyTorch."""

import pytest
import torch
from torch.nn import functional as F

from higgs_native import ops, reference
from tests.helpers.devices import CUDA_DEVICE, DEVICES, NEEDS_CUDA_KERNELS, value_case
from tests.ops.tensors import random


def run(name: str, device: str, arguments: dict) -> torch.Tensor:
    """Runs the operator on a device; returns what it writes, its first argument."""
    there = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
    getattr(ops, name)(**there)
    return next(iter(there.values())).cpu()


def positive(count: int, seed: int = 0) -> torch.Tensor:
    return 0.3 + random((count,), seed=seed).abs()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (1, 4, 64), (1, 2, 67), (3, 5, 200), (0, 3, 4), (1, 3, 0)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0, 1e4])
def test_snake_equals_its_definition(shape, scale, device):
    x, alpha = scale * random(shape), positive(shape[1], 1)
    # The argument of the sine is rounded to float32, as in both public implementations; the rest is exact.
    y, slope = (alpha[:, None] * x).double(), (alpha[:, None] + 1e-9).double()
    expected = x.double() + y.sin().square() / slope
    out = run("snake", device, {"out": torch.full(shape, torch.nan), "x": x, "alpha": alpha})
    torch.testing.assert_close(out.double(), expected, rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_snake_of_any_float(device):
    """Far beyond the range that occurs, beside ordinary values, and where it is not defined."""
    x = torch.tensor([[[0.0, -0.0, 1e5, -3e7, 3e8, 1e30, 0.5, torch.inf, torch.nan] * 8]])
    expected = torch.empty_like(x)
    reference.snake(expected, x, torch.ones(1))
    out = run("snake", device, {"out": torch.empty_like(x), "x": x, "alpha": torch.ones(1)})
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
def test_snake_in_place(device):
    x, alpha, expected = random((2, 3, 70)), positive(3), torch.empty(2, 3, 70)
    reference.snake(expected, x, alpha)
    x = x.to(device)
    ops.snake(x, x, alpha.to(device))
    torch.testing.assert_close(x.cpu(), expected, rtol=1e-6, atol=1e-6)


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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("batch", "channels", "time", "taps", "dilation"),
    [
        (1, 1, 1, 7, 1),
        (1, 2, 3, 7, 9),
        (2, 5, 17, 3, 2),
        (1, 32, 100, 7, 3),
        (2, 20, 33, 11, 2),
        (1, 66, 53, 7, 9),
        (1, 9, 1000, 1, 1),
        (3, 4, 8300, 7, 9),
        (1, 600, 130, 5, 1),
    ],
)
def test_residual_unit_equals_reference(batch, channels, time, taps, dilation, device):
    arguments = unit(batch, channels, time, taps, dilation)
    expected = torch.empty_like(arguments["x"])
    reference.residual_unit(**(arguments | {"out": expected}))
    torch.testing.assert_close(run("residual_unit", device, arguments), expected, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stride", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    ("batch", "channels", "out_channels", "time"),
    [(1, 1, 1, 1), (2, 6, 3, 5), (1, 64, 32, 47), (1, 3, 9, 700), (1, 700, 5, 100)],
)
def test_transposed_convolution_equals_torch(stride, batch, channels, out_channels, time, device):
    x, alpha, bias = random((batch, channels, time)), positive(channels, 1), random((out_channels,), seed=2)
    weight = random((channels, out_channels, 2 * stride), seed=3) / channels**0.5
    packed = ops.pack_conv_transpose1d(weight)
    arguments = {
        "out": torch.full((batch, out_channels, time * stride), torch.nan),
        "x": x,
        "alpha": alpha,
        "weight": packed,
        "bias": bias,
    }
    out = run("snake_conv_transpose1d", device, arguments)
    activated = torch.empty_like(x)
    reference.snake(activated, x, alpha)
    expected = F.conv_transpose1d(activated, weight, bias, stride, (stride + 1) // 2, stride % 2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    reference.snake_conv_transpose1d(out, x, alpha, packed, bias)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("batch", "channels", "out_channels", "time", "taps"),
    [
        (1, 1, 1, 1, 7),
        (2, 5, 3, 17, 3),
        (1, 256, 70, 9, 7),
        (1, 32, 1, 3000, 7),
        (1, 9, 40, 100, 1),
        (2, 1, 24, 40, 17),
    ],
)
def test_convolution_equals_torch(batch, channels, out_channels, time, taps, device):
    x, bias = random((batch, channels, time)), random((out_channels,), seed=1)
    weight = random((out_channels, channels, taps), seed=2) / (channels * taps) ** 0.5
    arguments = {
        "out": torch.full((batch, out_channels, time), torch.nan),
        "x": x,
        "weight": weight,
        "bias": bias,
    }
    out = run("conv1d", device, arguments)
    expected = F.conv1d(x, weight, bias, padding=taps // 2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    reference.conv1d(out, x, weight, bias)
    torch.testing.assert_close(out, expected)


def convolutions(batch: int, channels: int, time: int) -> dict[str, tuple[dict, int]]:
    """Arguments of each operator that can write a part of its result, and how long the result is."""
    x, out = random((batch, channels, time)), torch.full((batch, 9, time), torch.nan)
    conv = {"x": x, "weight": random((9, channels, 7), seed=2), "bias": random((9,), seed=3)}
    upsample = {"weight": random((9, 5, channels, 2), seed=2), "bias": random((9,), seed=3)}
    upsample = {"out": torch.full((batch, 9, 5 * time), torch.nan), "x": x, "alpha": positive(channels)} | upsample
    return {
        "conv1d": ({"out": out} | conv, time),
        "residual_unit": (unit(batch, channels, time, dilation=3), time),
        "snake_conv_transpose1d": (upsample, 5 * time),
    }


def run_reference(name: str, device: str, arguments: dict) -> torch.Tensor:
    getattr(reference, name)(**arguments)
    return arguments["out"]


@pytest.mark.parametrize("name", ["conv1d", "residual_unit", "snake_conv_transpose1d"])
@pytest.mark.parametrize(("batch", "channels", "time"), [(2, 6, 83), (1, 40, 300)])
@pytest.mark.parametrize("device", [*DEVICES, "reference"])
def test_a_part_of_the_columns_has_the_bits_of_the_whole(name, batch, channels, time, device):
    arguments, length = convolutions(batch, channels, time)[name]
    compute = run_reference if device == "reference" else run
    whole = compute(name, device, arguments)
    assert whole.isfinite().all()
    for first, last in ((0, 1), (0, length), (1, 4), (17, 18), (length - 3, length), (40, 83), (5, 5)):
        part = torch.full_like(whole[..., first:last], torch.nan)
        part = compute(name, device, arguments | {"out": part, "first": first})
        assert torch.equal(part, whole[..., first:last])


@pytest.mark.parametrize(("batch", "time"), [(0, 5), (2, 0)])
def test_nothing_is_convolved(batch, time):
    ops.conv1d(torch.empty(batch, 4, time), torch.empty(batch, 3, time), torch.ones(4, 3, 5), torch.ones(4))
    ops.residual_unit(**unit(batch, 4, time))
    x, out = torch.empty(batch, 4, time), torch.empty(batch, 2, 3 * time)
    ops.snake_conv_transpose1d(out, x, torch.ones(4), torch.ones(2, 3, 4, 2), torch.ones(2))


def acoustic_decoder(frames: int, is_last: bool = True) -> dict:
    """Two blocks of two residual units each, for the first frames of an audio."""
    channels, weights = 7, []

    def convolution(out_channels: int, taps: int) -> list[torch.Tensor]:
        weight = random((out_channels, channels, taps), seed=len(weights)) / (channels * taps) ** 0.5
        return [weight, random((out_channels,), seed=len(weights) + 1)]

    weights += convolution(12, 7)
    channels, lag = 12, 3
    for stride in (3, 2):
        weights += [positive(channels, len(weights)), random((5, stride, channels, 2), seed=1) / channels**0.5]
        weights.append(random((5,), seed=2))
        channels, lag = 5, lag * stride + (stride + 1) // 2
        for dilation in (1, 4):
            parameters = unit(1, channels, 1, dilation=dilation)
            weights += [value for name, value in parameters.items() if name[:-1] in ("alpha", "weight", "bias")]
            lag += 3 * dilation
    weights.append(positive(channels))
    weights += convolution(1, 7)
    lag += 3
    return {
        "audio": torch.full((6 * frames - (0 if is_last else min(lag, 6 * frames)),), torch.nan),
        "state": torch.full((7 * 6 + 12 + 5 * 30 + 5 + 5 * 30 + 5 * 6,), torch.nan),
        "latent": random((frames, 7)),
        "weights": weights,
        "dilations": [1, 4],
        "frames_before": 0,
        "is_last": is_last,
    }


def run_pieces(implementation, device: str, sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The audio of the frames, decoded in pieces of these sizes, and the state at the end."""
    arguments = acoustic_decoder(sum(sizes))
    weights = [weight.to(device) for weight in arguments["weights"]]
    latent, state, audio = arguments["latent"].to(device), arguments["state"].to(device), []
    before, samples = 0, 0
    for index, piece in enumerate(latent.split(sizes)):
        is_last = index == len(sizes) - 1
        end = len(acoustic_decoder(before + len(piece), is_last)["audio"])
        audio.append(torch.full((end - samples,), torch.nan, device=device))
        implementation.acoustic_decoder(audio[-1], state, piece, weights, [1, 4], before, is_last)
        before, samples = before + len(piece), end
    return torch.cat(audio).cpu(), state.cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "sizes", [[1], [0, 1], [40], [100], [1] * 25, [3, 0, 9, 2, 0], [30, 70, 4], [12, 32, 1, 33, 64]], ids=str
)
def test_acoustic_decoder_equals_reference_in_pieces(sizes, device):
    audio, state = run_pieces(ops, device, sizes)
    expected, expected_state = run_pieces(reference, "cpu", sizes)
    # Audio and inputs of layers reach 20: sums of terms that cancel have the rounding errors of their terms.
    torch.testing.assert_close(audio, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-4, equal_nan=True)
    whole, _ = run_pieces(ops, device, [sum(sizes)])
    assert torch.equal(audio, whole)


@pytest.mark.parametrize("device", DEVICES)
def test_acoustic_decoder_equals_its_layers(device):
    arguments = acoustic_decoder(50)
    weights = [weight.to(device) for weight in arguments["weights"]]
    x = arguments["latent"].T[None].contiguous().to(device)

    def layer(operator, channels: int, stride: int, parameters: list[torch.Tensor], *options: int) -> torch.Tensor:
        out = x.new_empty(1, channels, x.shape[2] * stride)
        operator(out, x, *parameters, *options)
        return out

    x = layer(ops.conv1d, 12, 1, weights[:2])
    for block, stride in ((weights[2:17], 3), (weights[17:32], 2)):
        x = layer(ops.snake_conv_transpose1d, 5, stride, block[:3])
        x = layer(ops.residual_unit, 5, 1, block[3:9], 1)
        x = layer(ops.residual_unit, 5, 1, block[9:], 4)
    x = layer(ops.snake, 5, 1, weights[32:33])
    x = layer(ops.conv1d, 1, 1, weights[33:])
    assert torch.equal(run_pieces(ops, device, [50])[0], x[0, 0].cpu())


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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("levels", "frames", "entries", "dim", "width"),
    [(1, 1, 1, 1, 1), (8, 25, 1024, 64, 128), (3, 33, 17, 5, 30), (2, 100, 64, 8, 24), (2, 0, 4, 3, 5)],
)
def test_rvq_encode_equals_reference(levels, frames, entries, dim, width, device):
    arguments = quantizer(levels, frames, entries, dim, width)
    expected = torch.empty_like(arguments["codes"])
    reference.rvq_encode(**(arguments | {"codes": expected}))
    # These random entries are far enough from each other for rounding not to matter.
    assert torch.equal(run("rvq_encode", device, arguments), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_rvq_encode_takes_the_first_of_equal_entries(device):
    arguments = quantizer(2, 40, 6, 4, 12)
    arguments["codebooks"] = arguments["codebooks"][:, :3].repeat_interleave(2, dim=1)
    assert set(run("rvq_encode", device, arguments).flatten().tolist()) == {0, 2, 4}


@pytest.mark.parametrize("device", DEVICES)
def test_rvq_encode_of_nan_gives_codes_of_the_codebook(device):
    arguments = quantizer(2, 9, 6, 4, 12)
    arguments["embeddings"][3] = torch.nan
    codes = run("rvq_encode", device, arguments)
    assert codes.min() >= 0
    assert codes.max() < 6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("levels", "frames", "entries", "width"), [(1, 1, 1, 1), (8, 30, 50, 37), (2, 0, 3, 4)])
def test_rvq_decode_equals_reference(levels, frames, entries, width, device):
    codes = torch.randint(entries, (levels, frames), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    table, bias = random((levels, entries, width)), random((width,), seed=1)
    out, expected = torch.full((frames, width), torch.nan), torch.empty(frames, width)
    out = run("rvq_decode", device, {"out": out, "codes": codes, "table": table, "bias": bias})
    reference.rvq_decode(expected, codes, table, bias)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@NEEDS_CUDA_KERNELS
def test_frames_of_codes_outside_the_table_are_nan_on_cuda():
    codes = torch.tensor([[0, 4, 5, 1], [1, -1, 2, 4]], dtype=torch.int32)
    arguments = {"out": torch.empty(4, 3), "codes": codes, "table": random((2, 5, 3)), "bias": torch.zeros(3)}
    out = run("rvq_decode", CUDA_DEVICE, arguments)
    assert out.isnan().tolist() == [[False] * 3, [True] * 3, [True] * 3, [False] * 3]


@NEEDS_CUDA_KERNELS
def test_values_above_float16_are_nan_on_cuda():
    """Convolutions of more than 8 rows split values into two of float16, and NaN says that one could not be split."""
    x, weight, bias = torch.ones(1, 16, 9), torch.ones(9, 16, 1), torch.zeros(9)
    x[0, 3, 4] = 70_000
    arguments = {"out": torch.empty(1, 9, 9), "x": x, "weight": weight, "bias": bias}
    out = run("conv1d", CUDA_DEVICE, arguments)
    assert out.isnan().all(1).tolist() == [[column == 4 for column in range(9)]]
    few_rows = arguments | {"out": torch.empty(1, 8, 9), "weight": weight[:8].clone(), "bias": bias[:8]}
    assert run("conv1d", CUDA_DEVICE, few_rows)[0, :, 4].tolist() == [70_015.0] * 8


@NEEDS_CUDA_KERNELS
def test_what_exceeds_shared_memory_is_refused_on_cuda():
    with pytest.raises(
        RuntimeError, match=r"residual_unit: taps and dilation must fit 98304 bytes .* on CUDA, got 7 and 5000"
    ):
        run("residual_unit", CUDA_DEVICE, unit(1, 3, 4, dilation=5000))
    with pytest.raises(RuntimeError, match="rvq_encode: embeddings and entries must together have at most 6144"):
        run("rvq_encode", CUDA_DEVICE, quantizer(1, 1, 1, 100, 6100))


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
    "acoustic_decoder": acoustic_decoder(4),
    "rvq_encode": quantizer(2, 4, 5, 3, 6),
    "rvq_decode": DECODE,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_opcheck(name, device):
    arguments = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), [*ARGUMENTS[name].values()])
    torch.library.opcheck(getattr(torch.ops.higgs_native, name).default, tuple(arguments))


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
        ("conv1d", {"first": 1}, "first must be 0 to 0 for 4 of 4 columns, got 1"),
        ("conv1d", {"first": -1}, "first must be 0 to 0 for 4 of 4 columns, got -1"),
        ("residual_unit", {"first": 1}, "first must be 0 to 0 for 4 of 4 columns, got 1"),
        ("residual_unit", {"weight1": torch.zeros(3, 3, 4)}, "weight1 must have an odd number of taps, got 4"),
        ("residual_unit", {"weight1": torch.zeros(3, 2, 7)}, r"weight1 must have shape \[3, 3, \*\], got \[3, 2, 7\]"),
        ("residual_unit", {"weight2": torch.zeros(3, 3, 3)}, r"weight2 must have shape \[3, 3, 1\], got \[3, 3, 3\]"),
        ("residual_unit", {"bias2": torch.zeros(1)}, r"bias2 must have shape \[3\], got \[1\]"),
        ("residual_unit", {"dilation": 0}, "dilation must be 1 to 10922 for 7 taps, got 0"),
        ("residual_unit", {"out": ARGUMENTS["residual_unit"]["x"]}, "out must be a tensor other than x"),
        ("snake_conv_transpose1d", {"weight": torch.zeros(2, 3, 4, 2)}, r"weight must have shape \[\*, \*, 3, 2\]"),
        ("snake_conv_transpose1d", {"out": torch.zeros(1, 2, 13)}, "out must have at most 12 columns, got 13"),
        ("snake_conv_transpose1d", {"out": torch.zeros(1, 3, 12)}, r"out must have shape \[1, 2, \*\]"),
        ("snake_conv_transpose1d", {"weight": torch.zeros(2, 1, 3, 2)}, "weight must have at least 2 phases, got 1"),
        ("acoustic_decoder", {"audio": torch.zeros(23)}, r"audio must have shape \[24\], got \[23\]"),
        ("acoustic_decoder", {"state": torch.zeros(9)}, r"state must have shape \[389\], got \[9\]"),
        (
            "acoustic_decoder",
            {"latent": torch.zeros(4, 6)},
            r"weights must have shape \[\*, 6, \*\], got \[12, 7, 7\]",
        ),
        (
            "acoustic_decoder",
            {"weights": ARGUMENTS["acoustic_decoder"]["weights"][:-1]},
            "weights must hold 5 tensors and 15 of each block, got 34",
        ),
        ("acoustic_decoder", {"dilations": [1, 10923]}, "dilations must be 1 to 10922 for 7 taps, got 10923"),
        ("acoustic_decoder", {"frames_before": -1}, "frames_before must be between 0 and 2147483647, got -1"),
        ("acoustic_decoder", {"frames_before": 1}, r"audio must have shape \[\d+\], got \[24\]"),
        ("rvq_encode", {"codes": torch.zeros(2, 4, dtype=torch.int64)}, "codes must be int32, got int64"),
        ("rvq_encode", {"codebooks": torch.zeros(2, 0, 3)}, "codebooks must have at least one entry"),
        (
            "rvq_encode",
            {
                **{"codebooks": torch.zeros(2, 5, 0), "in_weight": torch.zeros(2, 0, 6), "in_bias": torch.zeros(2, 0)},
                "out_weight": torch.zeros(2, 6, 0),
            },
            r"codebooks must have at least one entry of at least one value, got \[2, 5, 0\]",
        ),
        ("rvq_encode", {"in_bias": torch.zeros(2, 4)}, r"in_bias must have shape \[2, 3\], got \[2, 4\]"),
        value_case(
            "rvq_decode", {"codes": torch.full((2, 4), 5, dtype=torch.int32)}, r"codes\[0, 0\] must be between 0 and 4"
        ),
        value_case(
            "rvq_decode", {"codes": torch.full((2, 4), -1, dtype=torch.int32)}, r"codes\[0, 0\] must be .*, got -1"
        ),
        ("rvq_decode", {"table": torch.zeros(3, 5, 3)}, r"table must have shape \[2, \*, \*\], got \[3, 5, 3\]"),
    ],
)
def test_wrong_arguments_are_named(name, change, message):
    with pytest.raises(RuntimeError, match=f"{name}: {message}"):
        getattr(ops, name)(**(ARGUMENTS[name] | change))


@pytest.mark.parametrize("first", [2**63 - 1, 2**63 - 4, -(2**63)])
@pytest.mark.parametrize(("name", "time"), [("conv1d", 4), ("residual_unit", 4), ("snake_conv_transpose1d", 12)])
def test_first_column_may_not_overflow(name, time, first):
    with pytest.raises(RuntimeError, match=f"{name}: first must be 0 to 0 for {time} of {time} columns, got {first}"):
        getattr(ops, name)(**(ARGUMENTS[name] | {"first": first}))


@pytest.mark.parametrize("dilation", [2**63 - 1, 2**62, 2**40, 2**31, 32769, -(2**63)])
def test_reach_may_not_overflow(dilation):
    """Nor ask for more memory than a thread's tile should have: 65,536 columns across the taps."""
    with pytest.raises(RuntimeError, match=f"dilation must be 1 to 32768 for 3 taps, got {dilation}"):
        ops.residual_unit(**unit(1, 3, 4, taps=3) | {"dilation": dilation})


def test_sizes_may_not_overflow():
    """An empty tensor may have any size, whose product with another one would not fit 64 bits."""
    weight, out = torch.empty(0, 2**40, 3, 2), torch.empty(1, 0, 12)
    with pytest.raises(RuntimeError, match="weight must have sizes of at most 2147483647"):
        ops.snake_conv_transpose1d(**(UPSAMPLE | {"weight": weight, "bias": torch.empty(0), "out": out}))
    with pytest.raises(RuntimeError, match="x must have sizes of at most 2147483647"):
        ops.snake(torch.empty(0, 3, 2**40), torch.empty(0, 3, 2**40), torch.ones(3))


def test_no_level_needs_no_memory():
    """Codebooks of no level may have any size, whose packed bytes would not fit 64 bits."""
    size = 2**31 - 1
    ops.rvq_encode(
        codes=torch.empty(0, 3, dtype=torch.int32),
        embeddings=torch.empty(3, 6),
        codebooks=torch.empty(0, size, size),
        in_weight=torch.empty(0, size, 6),
        in_bias=torch.empty(0, size),
        out_weight=torch.empty(0, 6, size),
        out_bias=torch.empty(0, 6),
    )
