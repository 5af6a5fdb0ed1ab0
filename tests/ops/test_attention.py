"""QKV, rotary embedding and cache write, and attention over the cache, against plain PyTorch."""

import pytest
import torch

from higgs_native import ops, reference
from higgs_native.ops._library import EMULATES_CUDA
from tests.helpers.devices import value_case
from tests.ops.pages import in_pages, random_page_table
from tests.ops.tensors import int32, random, tolerance


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Query heads, KV heads, head dimension: groups of 1 to 5, dimensions that fill no vector, those of both models.
HEADS = [(1, 1, 2), (4, 2, 20), (3, 3, 64), (5, 1, 64), (4, 2, 128)]
# The emulation is slow: it gets groups of that size in one KV head.
HEADS += [(3, 1, 128), (4, 1, 128)] if EMULATES_CUDA else [(24, 8, 128), (32, 8, 128)]
PAGE_SIZES = [16, 32, 64]
PARTS = ("query", "key")


def rope_table(length: int, head_dim: int) -> torch.Tensor:
    angles = torch.arange(length).unsqueeze(1) * 0.9 ** torch.arange(head_dim // 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def sequences(slots: int, kv_heads: int, length: int, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Keys and values [slots, KV heads, length, head_dim]."""
    return random((slots, kv_heads, length, head_dim), dtype, 5), random((slots, kv_heads, length, head_dim), dtype, 6)


def paged(keys: torch.Tensor, values: torch.Tensor, page_size: int = 16, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """The same in pages in random order: key cache, value cache, page table."""
    table, num_pages = random_page_table(keys.shape[0], keys.shape[2], page_size, seed)
    return *(in_pages(tensor, table, num_pages, page_size) for tensor in (keys, values)), table


@pytest.mark.parametrize("normalized", ["", "key", "query and key"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("query_heads", "kv_heads", "head_dim"), HEADS)
@pytest.mark.parametrize(("rows", "page_size"), [(1, 16), (5, 32), (20, 64), (70, 16)])
def test_qkv_rope_cache_equals_reference(rows, page_size, query_heads, kv_heads, head_dim, dtype, normalized):
    hidden, slots, length = 24, 3, 70
    table, num_pages = random_page_table(slots, length, page_size)
    shape = num_pages, kv_heads, page_size, head_dim
    weight = ops.pack_linear(random(((query_heads + 2 * kv_heads) * head_dim, hidden), dtype, 1))
    generator = torch.Generator().manual_seed(2)
    entries = torch.randperm(slots * length, generator=generator)[:rows].int()
    positions = torch.randint(0, 50, (rows,), generator=generator, dtype=torch.int32)
    x, norms = random((rows, hidden)), (random((hidden,), dtype, 3), random((hidden,), dtype, 4))
    head_norms = [random((head_dim,), dtype, 7 + i) if part in normalized else None for i, part in enumerate(PARTS)]
    results = []
    for implementation in (ops, reference):
        query = torch.full((rows, query_heads * head_dim), torch.nan)
        keys, values = random(shape, dtype, 5), random(shape, dtype, 6)
        implementation.qkv_rope_cache(
            query,
            keys,
            values,
            x,
            *norms,
            1e-5,
            weight,
            rope_table(50, head_dim),
            table,
            entries // length,
            positions,
            entries % length,
            rows // 2,
            *head_norms,
        )
        results.append((query, keys, values))
    errors = tolerance(dtype, hidden)
    torch.testing.assert_close(results[0][0], results[1][0], **errors)
    # The cache holds rounded numbers: one unit in the last place may differ.
    errors["rtol"] += {torch.float32: 0, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(results[0][1:], results[1][1:], **errors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("query_heads", "kv_heads", "head_dim"), HEADS)
@pytest.mark.parametrize(
    ("cache_positions", "page_size"),
    [
        ((0,), 16),
        ((3, 0, 7), 32),
        ((15, 16, 17), 16),
        ((511,), 64),
        ((512, 30), 16),
        ((1300, 1029, 2), 32),
        ((2047, 2048), 16),
        (tuple(range(90)), 64),
    ],
)
def test_attention_equals_reference(cache_positions, page_size, query_heads, kv_heads, head_dim, dtype):
    rows = len(cache_positions)
    keys, values, table = paged(*sequences(2, kv_heads, max(cache_positions) + 3, head_dim, dtype), page_size)
    query = random((rows, query_heads * head_dim)) * 2
    slots = torch.arange(rows, dtype=torch.int32) % 2
    out, expected = torch.full_like(query, torch.nan), torch.empty_like(query)
    ops.attention(out, query, keys, values, table, slots, int32(*cache_positions), head_dim**-0.5)
    reference.attention(expected, query, keys, values, table, slots, int32(*cache_positions), head_dim**-0.5)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_reference_reads_the_positions_of_a_sequence():
    """The definition itself, against torch's attention over the sequences before they went into pages."""
    keys, values = sequences(3, 2, 50, 8, torch.float32)
    query, out = random((3, 4 * 8)), torch.empty(3, 4 * 8)
    reference.attention(out, query, *paged(keys, values), int32(2, 0, 1), int32(49, 16, 0), 8**-0.5)
    for row, (slot, position) in enumerate([(2, 49), (0, 16), (1, 0)]):
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[row].view(4, 1, 8), *(t[slot, :, : position + 1].repeat_interleave(2, 0) for t in (keys, values))
        )
        torch.testing.assert_close(out[row], expected.flatten())


# The order of pages is the same for all formats: the slow emulation gets two of them.
@pytest.mark.parametrize("dtype", DTYPES[:2] if EMULATES_CUDA else DTYPES)
@pytest.mark.parametrize("head_dim", [20, 128])
@pytest.mark.parametrize("cache_positions", [(700, 5, 64), tuple(range(130, 170))])
def test_the_order_and_the_size_of_pages_change_no_bit(cache_positions, head_dim, dtype):
    keys, values = sequences(len(cache_positions), 2, max(cache_positions) + 1, head_dim, dtype)
    query, slots = random((len(cache_positions), 6 * head_dim)), torch.arange(len(cache_positions), dtype=torch.int32)
    results = []
    for page_size in PAGE_SIZES:
        for seed in (0, 1):
            results.append(torch.full_like(query, torch.nan))
            cache = paged(keys, values, page_size, seed)
            ops.attention(results[-1], query, *cache, slots, int32(*cache_positions), head_dim**-0.5)
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_sequences_share_pages(page_size):
    """Three sequences begin alike, in the same pages; each ends in a page of its own."""
    shared = 2 * page_size
    keys, values = (t.clone() for t in sequences(3, 2, shared + 9, 64, torch.bfloat16))
    for tensor in (keys, values):
        tensor[1:, :, :shared] = tensor[0, :, :shared]
    query, slots, cache_positions = random((3, 4 * 64)), int32(0, 1, 2), int32(shared + 8, shared, shared - 1)
    out, expected = torch.empty_like(query), torch.empty_like(query)
    own_keys, own_values, table = paged(keys, values, page_size)
    ops.attention(expected, query, own_keys, own_values, table, slots, cache_positions, 0.25)
    for pages in table[1:, :2]:
        own_keys[pages.long()] = own_values[pages.long()] = torch.nan
    table[1:, :2] = table[0, :2]
    ops.attention(out, query, own_keys, own_values, table, slots, cache_positions, 0.25)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_entries_of_unused_positions_are_not_read(page_size):
    """A table has room for longer sequences: its rest may hold anything."""
    length = 70
    keys, values, table = paged(*sequences(2, 1, length, 64, torch.bfloat16), page_size)
    query, slots, cache_positions = random((2, 64)), int32(1, 0), int32(length - 1, page_size - 1)
    out, expected = torch.empty_like(query), torch.empty_like(query)
    ops.attention(expected, query, keys, values, table, slots, cache_positions, 0.25)
    table[0, 1:] = -1
    wide = torch.nn.functional.pad(table, (0, 70), value=2**31 - 1)
    ops.attention(out, query, keys, values, wide, slots, cache_positions, 0.25)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_cache_holds_numbers_rounded_to_nearest(dtype):
    """Of ties the even one, subnormal numbers, what is too large, infinities and NaN: as torch rounds."""
    numbers = random((4000,)) * torch.logspace(-12, 12, 4000)
    halves = torch.arange(0, 0x7C00, 7, dtype=torch.int16).view(torch.float16).float()
    ties = (halves[:-1] + halves[1:]) / 2
    special = torch.tensor(
        [0.0, -0.0, 65504, 65519.99, 65520, 1e-8, 2.0**-25, -(2.0**-25), torch.inf, -torch.inf, torch.nan]
    )
    values = torch.cat([numbers, halves, -ties, special])
    values = torch.nn.functional.pad(values, (0, -len(values) % 2))
    head_dim = len(values)
    # The key and the query are zero; the value is a weight times 1.
    weight = torch.zeros(3 * head_dim, 1)
    weight[2 * head_dim :, 0] = values
    keys, cached = torch.zeros(1, 1, 16, head_dim, dtype=dtype), torch.zeros(1, 1, 16, head_dim, dtype=dtype)
    ops.qkv_rope_cache(
        torch.empty(1, head_dim),
        keys,
        cached,
        torch.ones(1, 1),
        torch.ones(1),
        torch.ones(1),
        0.0,
        ops.pack_linear(weight),
        torch.ones(1, head_dim),
        int32(0).view(1, 1),
        int32(0),
        int32(0),
        int32(0),
        0,
    )
    torch.testing.assert_close(cached[0, 0, 0], values.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert not cached[0, 0, 1:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_extreme_scores(dtype):
    """A towering score takes all the weight, in whichever piece it is, and nothing overflows."""
    keys, values = sequences(1, 1, 1200, 64, dtype)
    query = torch.ones(1, 64)
    for position in (0, 600, 1199):
        spiked = keys.clone()
        spiked[0, 0, position] = 1e4
        out = torch.empty(1, 64)
        ops.attention(out, query, *paged(spiked, values), int32(0), int32(1199), 1.0)
        torch.testing.assert_close(out[0], values[0, 0, position].float())


def test_a_row_does_not_depend_on_its_batch():
    """Few rows split a long sequence over the threads, many rows don't: the bits are the same."""
    cache = paged(*sequences(1, 2, 1400, 64, torch.bfloat16))
    query, cache_positions = random((64, 256)), int32(*([1399] * 64))
    many, one = torch.empty(64, 256), torch.empty(1, 256)
    ops.attention(many, query, *cache, int32(*([0] * 64)), cache_positions, 0.25)
    for row in (0, 63):
        ops.attention(one, query[row : row + 1].contiguous(), *cache, int32(0), int32(1399), 0.25)
        assert torch.equal(one[0], many[row])


@pytest.mark.parametrize(
    "cache_positions",
    [
        range(67),
        range(66, -1, -1),
        [*range(40), *range(30)],
        [5, 130, 63, 64, 127, 128, 0, 15, 16, 17] * 7,
        [2046, 2047, 2048, 2049, 2050, *range(60)],  # from 2048 on, a split has two tiles
    ],
    ids=["in order", "backward", "two prompts", "mixed", "long"],
)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_prompts_are_those_of_single_rows(dtype, head_dim, cache_positions):
    """Whatever rows surround a row, and in whichever order and sequence they are."""
    rows = len(cache_positions)
    cache = paged(*sequences(2, 1, max(cache_positions) + 1, head_dim, dtype))
    query, slots = random((rows, 3 * head_dim)) * 2, int32(*(row * 3 // rows % 2 for row in range(rows)))
    cache_positions = int32(*cache_positions)
    many, one = torch.full_like(query, torch.nan), torch.empty(1, 3 * head_dim)
    ops.attention(many, query, *cache, slots, cache_positions, 0.25)
    for row in range(rows):
        of_row = slice(row, row + 1)
        ops.attention(one, query[of_row], *cache, slots[of_row], cache_positions[of_row], 0.25)
        assert torch.equal(one[0], many[row])


@pytest.mark.skipif(EMULATES_CUDA, reason="takes a minute")
def test_rows_of_many_prompts():
    """More than a grid of CUDA's is high."""
    cache = paged(*sequences(1, 1, 3, 8, torch.bfloat16))
    rows = 70_000
    query, cache_positions, slots = random((rows, 8)), torch.arange(rows, dtype=torch.int32) % 3, int32(*[0] * rows)
    out, expected = torch.empty_like(query), torch.empty(9, 8)
    ops.attention(out, query, *cache, slots, cache_positions, 0.5)
    reference.attention(expected, query[-9:], *cache, slots[-9:], cache_positions[-9:], 0.5)
    torch.testing.assert_close(out[-9:], expected)


@pytest.mark.parametrize("head_dim", [20, 128])
def test_norms_of_ones_keep_unit_heads(head_dim):
    """Heads whose mean square is 1 pass a norm of ones unchanged; heads of other lengths are brought to it."""
    weight = random((3 * head_dim, 1), seed=8)
    weight *= (head_dim / weight.view(3, head_dim).square().sum(1)).sqrt().repeat_interleave(head_dim)[:, None]
    results = []
    for factor, norm in ((1.0, None), (1.0, torch.ones(head_dim)), (5.0, torch.ones(head_dim))):
        query, cache = torch.empty(1, head_dim), [torch.zeros(1, 1, 16, head_dim) for _ in range(2)]
        ops.qkv_rope_cache(
            query,
            *cache,
            torch.ones(1, 1),
            torch.ones(1),
            torch.ones(1),
            0.0,
            ops.pack_linear(factor * weight),
            rope_table(4, head_dim),
            int32(0).view(1, 1),
            int32(0),
            int32(3),
            int32(2),
            0,
            norm,
            norm,
        )
        results.append((query, cache[0], cache[1] / factor))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[2], results[0], rtol=1e-5, atol=1e-6)


def small_cache() -> tuple[torch.Tensor, ...]:
    """Two sequences of up to 32 positions: keys, values, page table."""
    return random((5, 2, 16, 4), seed=5), random((5, 2, 16, 4), seed=6), int32(4, 1, 0, 3).view(2, 2)


def qkv_arguments() -> dict:
    keys, values, table = small_cache()
    return {
        "query": torch.empty(3, 16),
        "key_cache": keys,
        "value_cache": values,
        "x": random((3, 10)),
        "text_norm": random((10,)),
        "audio_norm": random((10,)),
        "eps": 1e-5,
        "qkv_weight": ops.pack_linear(random((32, 10))),
        "rope_table": rope_table(9, 4),
        "page_table": table,
        "slots": int32(0, 1, 1),
        "positions": int32(0, 8, 2),
        "cache_positions": int32(0, 16, 2),
        "num_text_rows": 1,
        "query_norm": random((4,)),
        "key_norm": random((4,)),
    }


def attention_arguments() -> dict:
    keys, values, table = small_cache()
    return {
        "out": torch.empty(3, 16),
        "query": random((3, 16)),
        "key_cache": keys,
        "value_cache": values,
        "page_table": table,
        "slots": int32(0, 1, 1),
        "cache_positions": int32(0, 16, 2),
        "scale": 0.5,
    }


def test_no_rows():
    cache = paged(*sequences(1, 1, 4, 4, torch.float32))
    nothing = torch.empty(0, 4)
    ops.attention(nothing, nothing, *cache, int32(), int32(), 1.0)
    norm, weight = random((10,)), ops.pack_linear(random((12, 10)))
    x = torch.empty(0, 10)
    ops.qkv_rope_cache(
        nothing, *cache[:2], x, norm, norm, 1e-5, weight, rope_table(4, 4), cache[2], int32(), int32(), int32(), 0
    )


WRONG_CACHES = [
    ({"value_cache": torch.zeros(4, 2, 16, 4)}, r"value_cache must have shape \[5, 2, 16, 4\], got \[4, 2, 16, 4\]"),
    ({"key_cache": torch.zeros(5, 2, 8, 4)}, "key_cache must have 16, 32 or 64 positions per page, got 8"),
    ({"key_cache": torch.zeros(5, 2, 128, 4)}, "key_cache must have 16, 32 or 64 positions per page, got 128"),
    ({"page_table": torch.zeros(2, 2)}, "page_table must be int32, got float32"),
    ({"page_table": int32(0, 1)}, r"page_table must have shape \[\*, \*\], got \[2\]"),
]


def test_opcheck():
    flat = [x for value in qkv_arguments().values() for x in (value if isinstance(value, tuple) else (value,))]
    torch.library.opcheck(torch.ops.higgs_native.qkv_rope_cache.default, tuple(flat))
    torch.library.opcheck(torch.ops.higgs_native.attention.default, tuple(attention_arguments().values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        value_case({"slots": int32(0, 1, 2)}, r"slots\[2\] must be between 0 and 1, got 2"),
        value_case({"positions": int32(0, 9, 0)}, r"positions\[1\] must be between 0 and 8, got 9"),
        value_case({"cache_positions": int32(0, 0, 32)}, r"cache_positions\[2\] must be between 0 and 31, got 32"),
        value_case({"page_table": int32(4, 1, 0, 5).view(2, 2)}, r"page_table\[1, 1\] must be between 0 and 4, got 5"),
        *WRONG_CACHES,
        (
            {"qkv_weight": ops.PackedWeight(torch.zeros(2, 10, 32, 1))},
            r"qkv_weight must have shape \[1, 10, 32, 1\], got \[2, 10, 32, 1\]",
        ),
        ({"query": torch.empty(3, 12)}, "query must have a multiple of 8 columns"),
        ({"query": torch.empty(3, 0)}, "query must have a multiple of 8 columns"),
        (
            {
                **{"query": torch.empty(0, 2**31 - 2), "x": torch.empty(0, 10), "slots": int32()},
                **{name: torch.empty(0, 1, 16, 2**31 - 2) for name in ("key_cache", "value_cache")},
            },
            f"qkv_weight must have at most 2147483647 rows and columns, got {3 * (2**31 - 2)} and 10",
        ),
        ({"rope_table": torch.zeros(9, 5)}, r"rope_table must have shape \[\*, 4\], got \[9, 5\]"),
        ({"num_text_rows": 4}, "num_text_rows must be between 0 and 3, got 4"),
        ({"query_norm": torch.ones(8)}, r"query_norm must have shape \[4\], got \[8\]"),
        ({"key_norm": torch.ones(4).bfloat16()}, "key_norm must be float32, got bfloat16"),
    ],
)
def test_wrong_arguments_of_qkv_rope_cache_are_named(change, message):
    with pytest.raises(RuntimeError, match="qkv_rope_cache: " + message):
        ops.qkv_rope_cache(**(qkv_arguments() | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        value_case({"slots": int32(-1, 0, 0)}, r"slots\[0\] must be between 0 and 1, got -1"),
        value_case({"cache_positions": int32(0, 32, 0)}, r"cache_positions\[1\] must be between 0 and 31, got 32"),
        value_case(
            {"page_table": int32(4, 1, -1, 3).view(2, 2)}, r"page_table\[1, 0\] must be between 0 and 4, got -1"
        ),
        *WRONG_CACHES,
        ({"query": torch.zeros(3, 12)}, "query must have a multiple of 8 columns"),
        ({"out": torch.zeros(3, 8)}, r"out must have shape \[3, 16\], got \[3, 8\]"),
        ({"value_cache": torch.zeros(5, 2, 16, 4).bfloat16()}, "value_cache must be float32, got bfloat16"),
    ],
)
def test_wrong_arguments_of_attention_are_named(change, message):
    with pytest.raises(RuntimeError, match="attention: " + message):
        ops.attention(**(attention_arguments() | change))
