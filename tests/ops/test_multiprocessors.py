"""CUDA operators choose kernels by a GPU's multiprocessors: all choices compute the same, to the bit."""

import pytest
import torch

from higgs_native import ops, reference
from higgs_native.ops._library import EMULATES_CUDA
from higgs_native.ops.formats import PANEL
from tests.ops.pages import in_pages, random_page_table
from tests.ops.tensors import int32, random


# On a GPU the number is read once, so there other numbers need other processes.
pytestmark = pytest.mark.skipif(not EMULATES_CUDA, reason="needs the emulation of CUDA in this process")

H100 = 132


@pytest.fixture
def with_multiprocessors(monkeypatch):
    """Runs a function on a GPU that has so many."""

    def run(count, function, *arguments):
        monkeypatch.setenv("HIGGS_NATIVE_MULTIPROCESSORS", str(count))
        return function(*arguments)

    return run


@pytest.fixture
def without_warpgroups(monkeypatch):
    """Chooses the kernels of GPUs that have no products of warpgroups, from its call on."""
    return lambda: monkeypatch.setenv("HIGGS_NATIVE_WARPGROUPS", "0")


def normed_linear(x, norm, weight, n):
    out = torch.full((len(x), n), torch.nan)
    ops.rms_norm_linear(out, x, norm, 1e-5, weight)
    return out


def plain_and_normed(x, residual, norm, weight):
    """The outputs of `linear` and of `rms_norm_linear`."""
    out, normed = torch.full((2, *residual.shape), torch.nan)
    ops.linear(out, x, weight, residual)
    ops.rms_norm_linear(normed, x, norm, 1e-5, weight)
    return torch.stack([out, normed])


@pytest.mark.parametrize("format", ["bfloat16", "int4"])
@pytest.mark.parametrize("rows", [1, 40])
def test_linear_operators_of_one_and_of_two_panels_a_block(with_multiprocessors, rows, format):
    """Those of the published model's gate and up projections, 512 panels, take two a block on an H100."""
    n, k = 2 * H100 * PANEL, 72
    x, weight = random((rows, k)).bfloat16().float(), ops.pack_linear(random((n, k), seed=1), format=format)

    def linear():
        out = torch.full((rows, n), torch.nan)
        ops.linear(out, x, weight)
        return out

    two_panels, one_panel = (with_multiprocessors(count, linear) for count in (H100, H100 + 1))
    assert torch.equal(two_panels, one_panel)
    expected = torch.empty(rows, n)
    reference.linear(expected, x, weight)
    torch.testing.assert_close(two_panels, expected, rtol=1e-5, atol=0.05 if format.startswith("int") else 1e-4)


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_blocks_that_take_panels_in_turn(with_multiprocessors, rows, format):
    """Rows that are rounded to integers are rounded once on each multiprocessor; its block takes all its panels."""
    n, k = 7 * PANEL + 5, 9 * 128
    x, norm = random((rows, k)), random((k,), torch.bfloat16, seed=1)
    weight = ops.pack_linear(random((n, k), seed=2) / k**0.5, format=format)

    # Eight blocks of a panel; five of one or two; three of one or two pairs; one of all four pairs.
    alone, *in_turn = (with_multiprocessors(count, normed_linear, x, norm, weight, n) for count in (H100, 5, 3, 1))
    for result in in_turn:
        assert torch.equal(result, alone)
    expected = torch.empty(rows, n)
    reference.rms_norm_linear(expected, x, norm, 1e-5, weight)
    torch.testing.assert_close(alone, expected, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("format", ["bfloat16", "fp8"])
def test_blocks_of_many_rows_and_of_few(with_multiprocessors, format):
    """40 rows take two panels a block with 2 multiprocessors, one with 132; 20 rows take fewer tiles."""
    n, k = 3 * PANEL, 72
    x, weight = random((40, k)).bfloat16().float(), ops.pack_linear(random((n, k), seed=1), format=format)

    def linear(rows):
        out = torch.full((rows, n), torch.nan)
        ops.linear(out, x[:rows].contiguous(), weight)
        return out

    two_panels, one_panel = (with_multiprocessors(count, linear, 40) for count in (2, H100))
    assert torch.equal(two_panels, one_panel)
    assert torch.equal(with_multiprocessors(H100, linear, 20), one_panel[:20])


@pytest.mark.parametrize("format", ["bfloat16", "float16"])
@pytest.mark.parametrize("k", [72, 1500])
def test_prompts_in_wide_blocks_and_in_others(with_multiprocessors, without_warpgroups, k, format):
    """Blocks of 128 rows and 4 panels, which are not full at the ends, give the bits of the others.

    72 columns are fewer K-steps than there are warps; 1,500 are more.
    """
    without_warpgroups()
    rows, n = 150, 9 * PANEL + 5
    x, norm, residual = random((rows, k)), random((k,), torch.bfloat16, seed=1), random((rows, n), seed=3)
    weight = ops.pack_linear(random((n, k), seed=2) / k**0.5, format=format)

    def linear(rows=rows):
        return plain_and_normed(x[:rows].contiguous(), residual[:rows].contiguous(), norm, weight)

    # Six wide blocks; blocks of two panels; blocks of one.
    wide, pairs, others = (with_multiprocessors(count, linear) for count in (6, 11, H100))
    assert torch.equal(wide, pairs)
    assert torch.equal(wide, others)
    assert torch.equal(wide[:, :1], with_multiprocessors(H100, linear, 1))
    expected = torch.empty(rows, n)
    reference.linear(expected, x, weight, residual)
    torch.testing.assert_close(wide[0], expected, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("format", ["bfloat16", "float16", "fp8"])
@pytest.mark.parametrize(
    ("rows", "k"),
    [(9, 72), (50, 1500), (70, 72), (130, 1500), (200, 300)],
    ids=["a block of 64 rows", "all its tiles but one", "a block of 128", "a block of 192, but for fp8", "two of 128"],
)
def test_products_of_warpgroups_and_of_warps(with_multiprocessors, without_warpgroups, rows, k, format):
    """More than 8 rows take products of warpgroups where a GPU has them: the same bits, also of a row alone."""
    n = 5 * PANEL + 5
    x, norm, residual = random((rows, k)), random((k,), torch.bfloat16, seed=1), random((rows, n), seed=3)
    weight = ops.pack_linear(random((n, k), seed=2) / k**0.5, format=format)

    def linear(rows=rows):
        return plain_and_normed(x[:rows].contiguous(), residual[:rows].contiguous(), norm, weight)

    of_warpgroups, alone = with_multiprocessors(2, linear), with_multiprocessors(2, linear, 1)
    without_warpgroups()
    assert torch.equal(of_warpgroups, with_multiprocessors(2, linear))
    assert torch.equal(of_warpgroups[:, :1], alone)
    expected = torch.empty(rows, n)
    reference.linear(expected, x, weight, residual)
    torch.testing.assert_close(of_warpgroups[0], expected, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("format", ["bfloat16", "float16", "fp8"])
@pytest.mark.parametrize(
    ("text", "audio", "intermediate"),
    [(65, 0, 72), (70, 200, 100), (9, 130, 64), (3, 17, 72)],
    ids=["a K-step begun", "blocks of two sizes", "few text rows", "few audio rows"],
)
def test_gate_and_up_leave_packed_rows_for_down(
    with_multiprocessors, without_warpgroups, text, audio, intermediate, format
):
    rows, hidden = text + audio, 72
    x, norm = random((rows, hidden)), random((hidden,), torch.bfloat16, seed=1)
    gate, up = random((2, intermediate, hidden), seed=2) / hidden**0.5
    gate_up = ops.pack_gate_up(gate, up, format=format)
    down = ops.pack_linear(random((hidden, intermediate), seed=3) / intermediate**0.5, format=format)

    def dual_ffn(first=0, end=rows, num_text_rows=text):
        out = torch.full((end - first, hidden), torch.nan)
        ops.dual_ffn(out, x[first:end].clone(), norm, gate_up, down, norm, gate_up, down, 1e-5, num_text_rows)
        return out

    packed, alone = with_multiprocessors(1, dual_ffn), with_multiprocessors(1, dual_ffn, rows - 1, rows, 0)
    assert torch.equal(packed[-1:], alone)
    without_warpgroups()
    assert torch.equal(packed, with_multiprocessors(1, dual_ffn))
    expected = torch.empty(rows, hidden)
    reference.dual_ffn(expected, x, norm, gate_up, down, norm, gate_up, down, 1e-5, text)
    torch.testing.assert_close(packed, expected, rtol=1e-2, atol=4e-2)


@pytest.mark.parametrize(
    ("multiprocessors", "rows", "k", "format"),
    [
        (2, 66, 128 * 32, "bfloat16"),
        (8, 66, 256 * 32 + 8, "bfloat16"),
        (8, 20, 128 * 32, "float16"),
        (8, 11, 256 * 32, "bfloat16"),
        (8, 20, 128 * 64, "fp8"),
    ],
    ids=["by two", "by four", "few rows by four", "few rows by eight", "fp8"],
)
def test_blocks_that_share_out_the_depth(with_multiprocessors, without_warpgroups, multiprocessors, rows, k, format):
    """Few weight rows of 128 K-steps and more take several blocks; the sums are added in the order of one block's."""
    intermediate, head_dim = PANEL // 2 + 3, 64
    x, norm = random((rows, k)), random((k,), torch.bfloat16, seed=1)
    gate, up = random((2, intermediate, k), seed=2) / k**0.5
    gate_up, down = (
        ops.pack_gate_up(gate, up, format),
        ops.pack_linear(random((k, intermediate), seed=3), format="int8"),
    )
    qkv = ops.pack_linear(random((3 * head_dim, k), seed=4) / k**0.5, format=format)
    table, num_pages = random_page_table(1, rows, 16)
    angles = torch.arange(rows * head_dim).view(rows, head_dim).cos()
    places = torch.arange(rows, dtype=torch.int32)

    def with_epilogues():
        """Sums with a residual, gate and up for a GEMM of another format, and a rotated head with its cache."""
        plain, both = torch.full((rows, intermediate), torch.nan), torch.full_like(x, torch.nan)
        ops.linear(plain, x, ops.pack_linear(gate, format=format), torch.ones(rows, intermediate))
        ops.dual_ffn(both, x, norm, gate_up, down, norm, gate_up, down, 1e-5, rows)
        query, keys, values = torch.full((rows, head_dim), torch.nan), *torch.zeros(2, num_pages, 1, 16, head_dim)
        ops.qkv_rope_cache(
            query, keys, values, x, norm, norm, 1e-5, qkv, angles, table, places * 0, places, places, rows
        )
        return plain, both, query, keys, values

    shared_out = with_multiprocessors(multiprocessors, with_epilogues)
    assert all(tensor.isfinite().all() for tensor in shared_out)
    without_warpgroups()
    for result, expected in zip(shared_out, with_multiprocessors(multiprocessors, with_epilogues), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("format", ["bfloat16", "fp8", "int8", "int4"])
def test_rows_packed_by_one_block_and_by_several(with_multiprocessors, format):
    """More than 8 rows are packed first: on an H100 3 blocks per tile of rows share 17 steps of int4, one the norm."""
    rows, n, k = 20, 40, 17 * 128
    x, norm = random((rows, k)), random((k,), torch.bfloat16, seed=1)
    weight = ops.pack_linear(random((n, k), seed=2) / k**0.5, format=format)

    several, one = (with_multiprocessors(count, normed_linear, x, norm, weight, n) for count in (H100, 1))
    assert torch.equal(several, one)
    # The order of the sums of squares is that of rows that are not packed.
    alone = torch.full((1, n), torch.nan)
    with_multiprocessors(H100, ops.rms_norm_linear, alone, x[9:10].contiguous(), norm, 1e-5, weight)
    assert torch.equal(several[9:10], alone)
    expected = torch.empty(rows, n)
    reference.rms_norm_linear(expected, x, norm, 1e-5, weight)
    torch.testing.assert_close(several, expected, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("places", [(600,), (3, 700, 0), (2200,)])
@pytest.mark.parametrize("count", [H100, 9])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_attention_in_splits_and_in_one_block(with_multiprocessors, head_dim, count, places):
    """2,201 positions are 18 splits of two tiles. With 9 multiprocessors a block takes several splits."""
    length = 704 if max(places) < 704 else 2208
    table, num_pages = random_page_table(3, length, 16)
    keys, values = (
        in_pages(random((3, 2, length, head_dim), torch.bfloat16, seed), table, num_pages, 16) for seed in (5, 6)
    )
    query = random((len(places), 6 * head_dim))

    def attention():
        out = torch.full_like(query, torch.nan)
        slots = torch.arange(len(places), dtype=torch.int32)
        ops.attention(out, query, keys, values, table, slots, int32(*places), head_dim**-0.5)
        return out

    in_splits = with_multiprocessors(count, attention)
    assert torch.equal(in_splits, with_multiprocessors(1, attention))
    expected = torch.empty_like(query)
    slots = torch.arange(len(places), dtype=torch.int32)
    reference.attention(expected, query, keys, values, table, slots, int32(*places), head_dim**-0.5)
    torch.testing.assert_close(in_splits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("head_dim", "group"), [(64, 3), (128, 1), (128, 8)])
@pytest.mark.parametrize("first", [0, 2040])
def test_rows_of_a_prompt_by_a_warp_each_and_by_a_block_each(with_multiprocessors, first, head_dim, group, dtype):
    """A prompt from position `first` on, and a row of another sequence; from 2,048 on a split has several tiles."""
    rows, length = 18, 2112 if first else 32
    table, num_pages = random_page_table(2, length, 16)
    keys, values = (in_pages(random((2, 2, length, head_dim), dtype, seed), table, num_pages, 16) for seed in (5, 6))
    query = random((rows, 2 * group * head_dim))
    slots = torch.tensor([1] * (rows - 1) + [0], dtype=torch.int32)
    places = int32(*range(first, first + rows - 1), 7)

    def attention():
        out = torch.full_like(query, torch.nan)
        ops.attention(out, query, keys, values, table, slots, places, head_dim**-0.5)
        return out

    warps, blocks = (with_multiprocessors(count, attention) for count in (2, H100))
    assert torch.equal(warps, blocks)
    expected = torch.empty_like(query)
    reference.attention(expected, query, keys, values, table, slots, places, head_dim**-0.5)
    torch.testing.assert_close(warps, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [40, 20], ids=["large tiles", "flat tiles"])
def test_convolutions_of_small_and_of_other_tiles(with_multiprocessors, rows):
    x, weight, bias = random((1, 40, 300)), random((rows, 40, 7), seed=1) / 17, random((rows,), seed=2)

    def convolution():
        out = torch.full((1, rows, 300), torch.nan)
        ops.conv1d(out, x, weight, bias)
        return out

    assert torch.equal(with_multiprocessors(H100, convolution), with_multiprocessors(1, convolution))


@pytest.mark.parametrize("count", ["0", "-2", "1025", "many", "3 "])
def test_a_wrong_number_is_named(with_multiprocessors, count):
    x, weight = random((1, 8)), ops.pack_linear(random((32, 8)))
    message = f"HIGGS_NATIVE_MULTIPROCESSORS must be from 1 to 1024, got {count}"
    with pytest.raises(RuntimeError, match=message):
        with_multiprocessors(count, ops.linear, torch.empty(1, 32), x, weight)
