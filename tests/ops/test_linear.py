"""Linear operators with packed weights, against plain PyTorch."""

import pytest
import torch

from higgs_native import ops, reference
from higgs_native.ops._library import EMULATES_CUDA
from higgs_native.ops.formats import format_of
from tests.helpers.devices import CUDA_DEVICE, NEEDS_CUDA_KERNELS
from tests.ops.tensors import random, tolerance


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = [*DTYPES, torch.float8_e4m3fn, torch.int8, torch.uint8]
# Rows: one, one group of every instruction set, several groups with a rest, more than one block of rows; columns and
# depth around every panel, unit, quantization group and block.
SHAPES = [
    (1, 1, 1),
    (1, 33, 64),
    (2, 17, 33),
    (3, 32, 1030),
    (4, 5, 7),
    (12, 70, 256),
    (97, 35, 2050),
    (260, 4, 16),
    (9, 140, 70),
    (40, 140, 70),
]


def activations(rows: int, k: int) -> torch.Tensor:
    """Numbers of bfloat16, which weights of 16 bits meet unrounded on every device."""
    return random((rows, k)).bfloat16().float()


def packed(n: int, k: int, dtype: torch.dtype, seed: int = 1) -> ops.PackedWeight:
    """A random weight of that format, about as large as standard normal numbers."""
    if dtype in DTYPES:
        return ops.pack_linear(random((n, k), dtype, seed))
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.float8_e4m3fn:
        return ops.pack_quantized(e4m3(n, k, generator), torch.rand(n, generator=generator) / 60)
    largest = 127 if dtype == torch.int8 else 7
    integers = torch.randint(-largest - 1, largest + 1, (n, k), generator=generator, dtype=torch.int8)
    scales = torch.rand((n, -(-k // 128)), generator=generator) / largest
    return ops.pack_quantized(integers, scales[:, 0] if dtype == torch.int8 else scales.half())


def e4m3(n: int, k: int, generator: torch.Generator) -> torch.Tensor:
    """Numbers of e4m3 [n, k], each of the 254 as likely as the others."""
    magnitudes = torch.randint(0, 0x7F, (n, k), generator=generator, dtype=torch.uint8)
    signs = torch.randint(0, 2, (n, k), generator=generator, dtype=torch.uint8) << 7
    return (magnitudes | signs).view(torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("rows", "n", "k"), SHAPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_linear_equals_reference(rows, n, k, dtype, with_residual):
    x, weight = activations(rows, k), packed(n, k, dtype)
    residual = random((rows, n), seed=2) if with_residual else None
    out, expected = torch.full((rows, n), torch.nan), torch.empty(rows, n)
    ops.linear(out, x, weight, residual)
    reference.linear(expected, x, weight, residual)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5 * k**0.5)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("rows", "n", "k"), SHAPES)
def test_rms_norm_linear_equals_reference(rows, n, k, dtype):
    norm_dtype = dtype if dtype in DTYPES else torch.bfloat16
    x, norm, weight = random((rows, k)), random((k,), norm_dtype, 1), packed(n, k, dtype, 2)
    out, expected = torch.full((rows, n), torch.nan), torch.empty(rows, n)
    ops.rms_norm_linear(out, x, norm, 1e-5, weight)
    reference.rms_norm_linear(expected, x, norm, 1e-5, weight)
    torch.testing.assert_close(out, expected, **tolerance(dtype, k))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_and_unpack(dtype):
    """Matrices below each other, whole panels or not, come back; what fills the last panel and unit is zero."""
    for sizes in ([70], [64, 33], [3, 5, 40]):
        weights = [random((n, 7), dtype, n) for n in sizes]
        matrix = reference.unpack_linear(ops.pack_linear(*weights))
        n = sum(sizes)
        assert torch.equal(matrix[:n, :7], torch.cat(weights).float())
        assert not matrix[n:].any()
        assert not matrix[:, 7:].any()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 64), (70, 131), (32, 256)])
def test_pack_linear_equals_reference(n, k, dtype, device):
    """Every bit, also of what pads the last panel, unit and group."""
    if dtype in DTYPES:
        weight = random((n, k), dtype, 1)
        ours, expected = ops.pack_linear(weight), reference.pack_linear(weight.cpu())
    else:
        values = reference.quantize_linear(random((n, k), seed=1).cpu(), format_of(dtype).name)
        ours = ops.pack_quantized(*(part.to(device) for part in values))
        expected = reference.pack_quantized(*values)
    assert torch.equal(ours.data.cpu().view(torch.uint8), expected.data.view(torch.uint8))
    assert expected.scales is None or torch.equal(ours.scales.cpu(), expected.scales)


@pytest.mark.parametrize("rows", [1, 9, 100])
def test_every_e4m3_comes_through_exactly(rows):
    """Zeros and subnormal numbers too, wherever they stand in a word."""
    values = torch.cat([torch.arange(0x7F), torch.arange(0x80, 0xFF)]).to(torch.uint8).view(torch.float8_e4m3fn)
    for place in range(4):
        weight = torch.zeros(len(values), 4, dtype=torch.uint8)
        weight[:, place] = values.view(torch.uint8)
        weight = weight.view(torch.float8_e4m3fn)
        out = torch.empty(rows, len(values))
        ops.linear(out, torch.ones(rows, 4), ops.pack_quantized(weight, torch.full((len(values),), 0.5)))
        assert torch.equal(out, (values.float() / 2).expand(rows, -1))


@pytest.mark.parametrize("rows", [1, 9, 100])
def test_every_float16_comes_through_exactly(rows):
    """Zeros and subnormal numbers too, in either half of a word, and infinities and NaN."""
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    for place in range(2):
        weight = torch.zeros(len(values), 2, dtype=torch.float16)
        weight[:, place] = values
        out, x = torch.empty(rows, len(values)), torch.zeros(rows, 2)
        x[:, place] = 1
        ops.linear(out, x, ops.pack_linear(weight))
        torch.testing.assert_close(out, values.float().expand(rows, -1), rtol=0, atol=0, equal_nan=True)


def test_residual_may_be_the_output():
    x, weight, out = random((3, 20)), random((6, 20), seed=1), random((3, 6), seed=2)
    expected = out + x @ weight.T
    ops.linear(out, x, ops.pack_linear(weight), out)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", FORMATS)
def test_rows_may_begin_anywhere(dtype):
    """At addresses that no vector can be read from: of x, and of the norm's weight."""
    x, norm, weight = random((3 * 256 + 1,)), random((257,), torch.bfloat16, 1), packed(40, 256, dtype, 2)
    out, expected = torch.empty(3, 40), torch.empty(3, 40)
    ops.rms_norm_linear(out, x[1:].view(3, 256), norm[1:], 1e-5, weight)
    ops.rms_norm_linear(expected, x[1:].view(3, 256).clone(), norm[1:].clone(), 1e-5, weight)
    assert torch.equal(out, expected)


@NEEDS_CUDA_KERNELS
def test_a_packed_weight_must_be_aligned():
    weight = packed(32, 256, torch.bfloat16)
    elsewhere = torch.empty(weight.data.numel() + 2, dtype=torch.bfloat16, device=CUDA_DEVICE)[2:].view_as(weight.data)
    x, out = torch.zeros(1, 256, device=CUDA_DEVICE), torch.zeros(1, 32, device=CUDA_DEVICE)
    with pytest.raises(RuntimeError, match="linear: weight and its scales must be aligned to 16 bytes, got"):
        ops.linear(out, x, ops.PackedWeight(elsewhere))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("k", [64, 1500])
def test_a_row_does_not_depend_on_its_batch(dtype, k):
    """The same row gives the same bits alone, among 2 .. 33 others, and in blocks of many, whatever its magnitude."""
    # Blocks of rows and a part of another: of 512 on a CPU; on CUDA of 128 with weights of 16 bits, else of 64.
    batch = 560 if not EMULATES_CUDA else 300 if dtype in (torch.bfloat16, torch.float16) else 130
    n = 600  # 18 panels and a part of another: two blocks of panels, and of rows, where tiles multiply
    x, weight = random((batch, k)) * torch.logspace(-40, 3, batch)[:, None], packed(n, k, dtype)
    whole = torch.empty(batch, n)
    ops.linear(whole, x, weight)
    for first in (0, 13, batch - 33):
        for rows in (1, 2, 3, 4, 5, 7, 16, 17, 33):
            out = torch.empty(rows, n)
            ops.linear(out, x[first : first + rows].contiguous(), weight)
            assert torch.equal(out, whole[first : first + rows])


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_row_behind_a_norm_does_not_depend_on_its_batch(dtype):
    """Where CUDA's kernels change: half a tile, a tile, and more."""
    x, weight, norm = activations(17, 1300), packed(40, 1300, dtype), 1 + 0.1 * random((1300,), seed=2)
    whole = torch.empty(17, 40)
    ops.rms_norm_linear(whole, x, norm, 1e-5, weight)
    for rows in (1, 3, 4, 5, 8, 9):
        out = torch.empty(rows, 40)
        ops.rms_norm_linear(out, x[17 - rows :].contiguous(), norm, 1e-5, weight)
        assert torch.equal(out, whole[17 - rows :])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("normalized", [False, True])
def test_rows_too_long_for_shared_memory_have_the_same_bits(normalized, dtype):
    """8 rows of 11,008 columns are too many for a block's shared memory on CUDA, one row is not."""
    x, weight, norm = activations(8, 11_008), packed(4, 11_008, dtype), 1 + 0.1 * random((11_008,), seed=2)

    def computed(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(x), 4)
        if normalized:
            ops.rms_norm_linear(out, x, norm, 1e-5, weight)
        else:
            ops.linear(out, x, weight)
        return out

    assert torch.equal(computed(x), torch.cat([computed(row[None]) for row in x]))


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 17])
@pytest.mark.parametrize("largest", [127, 7])
def test_the_largest_integers_do_not_overflow(rows, largest):
    """Kernels that add some products in 16 bits must not add too many."""
    scales = torch.ones(64) if largest == 127 else torch.ones((64, 3), dtype=torch.float16)
    k, ends = 384, torch.tensor([-largest - 1, largest], dtype=torch.int8)
    weights = ends[torch.randint(2, (64, k), generator=torch.Generator().manual_seed(0))]
    weights[:2] = ends[:, None]
    x = random((rows, k)).sign()
    x[0] = 1
    out = torch.empty(rows, 64)
    ops.linear(out, x, ops.pack_quantized(weights, scales))
    torch.testing.assert_close(out, x @ weights.float().T, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_linear_operators_with_integers_pass_nan_on(dtype, wrong):
    x, weight, out = random((2, 300)), packed(4, 300, dtype), torch.empty(2, 4)
    x[0, 200] = wrong
    ops.linear(out, x, weight)
    assert out[0].isnan().all()
    assert not out[1].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_columns(dtype):
    """A sum of nothing is zero."""
    residual, out = random((3, 6)), torch.full((3, 6), torch.nan)
    weight = ops.PackedWeight(torch.empty(1, 0, 32, 4 // dtype.itemsize, dtype=dtype))
    ops.linear(out, torch.empty(3, 0), weight, residual)
    assert torch.equal(out, residual)


def test_gate_and_up_must_fit_each_other():
    with pytest.raises(RuntimeError, match=r"pack_gate_up: up must have shape \[5, 4\], got \[6, 4\]"):
        ops.pack_gate_up(torch.zeros(5, 4), torch.zeros(6, 4))


def test_no_rows():
    out = torch.empty(0, 4)
    ops.linear(out, torch.empty(0, 8), packed(4, 8, torch.float32))
    ops.rms_norm_linear(out, torch.empty(0, 8), random((8,)), 1e-5, packed(4, 8, torch.float32))


def test_opcheck():
    x, out, residual = random((3, 20)), random((3, 6), seed=2), random((3, 6))
    # torch has not the arithmetic on e4m3 that the check of schemas asks for; a schema is the same for all formats.
    for dtype in set(FORMATS) - {torch.float8_e4m3fn}:
        data, scales = packed(6, 20, dtype)
        torch.library.opcheck(torch.ops.higgs_native.linear.default, (out, x, data, scales, None))
        torch.library.opcheck(torch.ops.higgs_native.linear.default, (out, x, data, scales, residual))
        arguments = (out, x, random((20,)), 1e-5, data, scales)
        torch.library.opcheck(torch.ops.higgs_native.rms_norm_linear.default, arguments)
    data = torch.empty(1, 20, 32, 1)
    torch.library.opcheck(torch.ops.higgs_native.pack_linear.default, (data, random((6, 20)), 0, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 21)}, r"weight must have shape \[1, 21, 32, 1\], got \[1, 20, 32, 1\]"),
        ({"x": torch.zeros(20)}, r"x must have shape \[\*, \*\], got \[20\]"),
        ({"x": torch.zeros(3, 20, dtype=torch.float64)}, "x must be float32, got float64"),
        (
            {"weight": ops.PackedWeight(torch.zeros(1, 20, 32, 1, dtype=torch.float64))},
            r"weight must be float32, bfloat16, float16, float8_e4m3fn, int8 or uint8 \(4 bits\), got float64",
        ),
        ({"weight": ops.PackedWeight(torch.zeros(6, 20))}, r"weight must have shape \[1, 20, 32, 1\], got \[6, 20\]"),
        (
            {"weight": ops.PackedWeight(torch.zeros(1, 20, 32, 1), torch.zeros(1, 32))},
            "scales must be None for weight of dtype float32, got a tensor",
        ),
        (
            {"weight": ops.PackedWeight(torch.zeros(1, 32, 32, 4, dtype=torch.int8))},
            "scales must be a tensor for weight of dtype int8, got None",
        ),
        (
            {"weight": ops.PackedWeight(torch.zeros(1, 5, 32, 4).to(torch.float8_e4m3fn))},
            "scales must be a tensor for weight of dtype float8_e4m3fn, got None",
        ),
        (
            {"weight": ops.PackedWeight(torch.zeros(1, 5, 32, 4).to(torch.float8_e4m3fn), torch.zeros(1, 1, 32))},
            r"scales must have shape \[1, 32\], got \[1, 1, 32\]",
        ),
        (
            {"weight": ops.PackedWeight(torch.zeros(1, 16, 32, 4, dtype=torch.uint8), torch.zeros(1, 1, 32))},
            "scales must be float16, got float32",
        ),
        ({"out": torch.zeros(3, 33)}, r"weight must have shape \[2, 20, 32, 1\], got \[1, 20, 32, 1\]"),
        ({"out": torch.zeros(2, 6)}, r"out must have shape \[3, \*\], got \[2, 6\]"),
        ({"residual": torch.zeros(1, 6)}, r"residual must have shape \[3, 6\], got \[1, 6\]"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"out": torch.zeros(3, 6), "x": torch.zeros(3, 20), "weight": packed(6, 20, torch.float32)}
    with pytest.raises(RuntimeError, match="linear: " + message):
        ops.linear(**(arguments | {"residual": None} | change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 5, 32, 1), torch.zeros(6, 4), 0, 32), r"packed must have shape \[1, 4, 32, 1\]"),
        ((torch.zeros(1, 4, 32, 1), torch.zeros(6, 4).bfloat16(), 0, 32), "weight must be float32, got bfloat16"),
        ((torch.zeros(1, 4, 32, 1), torch.zeros(4, 6).T, 0, 32), "weight must be contiguous"),
        ((torch.zeros(1, 4, 32, 1), torch.zeros(6, 4), 16, 32), "first_row must be 0 to 0, got 16"),
        (
            (torch.zeros(64, 8, 32, 1), torch.zeros(64, 8), 2**63 - 1, 1),
            f"first_row must be 0 to 31, got {2**63 - 1}",
        ),
        ((torch.zeros(1, 8, 32, 1), torch.zeros(64, 8), 1, 2**63 - 1), f"panel_rows must be 1 to 32, got {2**63 - 1}"),
        ((torch.zeros(0, 8, 32, 1), torch.zeros(0, 8), 1, 2**63 - 1), f"panel_rows must be 1 to 32, got {2**63 - 1}"),
        ((torch.zeros(1, 4, 32, 1), torch.zeros(6, 4), -1, 1), "first_row must be 0 to 31, got -1"),
        ((torch.zeros(1, 4, 32, 1), torch.zeros(6, 4), 0, 0), "panel_rows must be 1 to 32, got 0"),
        ((torch.zeros(1, 4, 32, 1), torch.empty(2**62, 0), 0, 32), "weight must have sizes of at most 2147483647"),
    ],
)
def test_wrong_packing_is_named(arguments, message):
    with pytest.raises(RuntimeError, match="pack_linear: .*" + message):
        torch.ops.higgs_native.pack_linear(*arguments)
