"""All decoder layers in one call against the operators of each layer, one by one."""

import pytest
import torch

from higgs_native import ops, reference
from higgs_native.ops._library import EMULATES_CUDA
from tests.helpers.devices import value_case
from tests.ops.pages import random_page_table
from tests.ops.tensors import int32, random


# Layers: 1 marks those that only text rows pass. The emulation is slow: it gets those of all kinds at once.
SKIPS = [[0, 1, 0]] if EMULATES_CUDA else [[0], [0, 0, 0], [0, 1, 0], [1, 1]]
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, ROWS = 40, 4, 2, 8, 50, 5


def layer(seed: int, format: str | None, normalized: bool = False) -> tuple:
    def matrix(n: int, k: int, i: int) -> torch.Tensor:
        return random((n, k), seed=seed + i) * k**-0.5

    qkv = ops.pack_linear(matrix((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN, 0), format=format)
    o = ops.pack_linear(matrix(HIDDEN, HEADS * HEAD_DIM, 1), format=format)
    paths = [
        (
            1 + 0.1 * random((HIDDEN,), seed=seed + i),
            ops.pack_gate_up(matrix(INTERMEDIATE, HIDDEN, i + 1), matrix(INTERMEDIATE, HIDDEN, i + 2), format),
            ops.pack_linear(matrix(HIDDEN, INTERMEDIATE, i + 3), format=format),
        )
        for i in (10, 20)
    ]
    norms = [1 + 0.1 * random((HIDDEN,), seed=seed + i) for i in (30, 31)]
    head_norms = [1 + 0.1 * random((HEAD_DIM,), seed=seed + i) for i in (40, 41)] if normalized else [None, None]
    return (*norms, qkv, o, *paths[0], *paths[1], *head_norms)


def arguments(skips: list[int], num_text: int, format: str | None = None, normalized: bool = False) -> dict:
    page_table, num_pages = random_page_table(2, 40, 16)
    shape = (num_pages, KV_HEADS, 16, HEAD_DIM)
    return {
        "x": random((ROWS, HIDDEN)),
        "query": torch.empty(ROWS, HEADS * HEAD_DIM),
        "attended": torch.empty(ROWS, HEADS * HEAD_DIM),
        "key_caches": [random(shape, seed=100 + i) for i in range(len(skips))],
        "value_caches": [random(shape, seed=200 + i) for i in range(len(skips))],
        "weights": [
            weight for i in range(len(skips)) for weight in ops.layer_weights(*layer(1000 * i, format, normalized))
        ],
        "skips_audio": skips,
        "eps": 1e-5,
        "rope_table": random((40, HEAD_DIM), seed=3),
        "page_table": page_table,
        "slots": int32(0, 1, 0, 1, 1),
        "positions": int32(17, 0, 39, 15, 16),
        "text_positions": int32(16, 0, 30, 14, 15)[:num_text],
        "num_text_rows": num_text,
        "adapters": None,
        "factors": [],
        "first_kept": 0,
        "num_kept": ROWS,
        "following": ops.pack_linear(random((40, HIDDEN), seed=6)).data,
    }


def low_rank(n: int, k: int, rank: int, seed: int, dtype: torch.dtype) -> ops.LowRank:
    a, b = random((rank, k), seed=seed) * k**-0.5, random((n, rank), seed=seed + 1) * rank**-0.5
    return ops.pack_linear(a.to(dtype)), ops.pack_linear(b.to(dtype))


def layer_factors(rank: int, seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Factors of all linear operators of a layer."""

    def gate_up(seed: int) -> ops.LowRank:
        a, b = random((rank, HIDDEN), seed=seed) * HIDDEN**-0.5, random((2, INTERMEDIATE, rank), seed=seed + 1)
        return ops.pack_linear(a.to(dtype)), ops.pack_gate_up(*(b * rank**-0.5).to(dtype))

    return ops.layer_factors(
        low_rank((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN, rank, seed, dtype),
        low_rank(HIDDEN, HEADS * HEAD_DIM, rank, seed + 2, dtype),
        gate_up(seed + 4),
        low_rank(HIDDEN, INTERMEDIATE, rank, seed + 6, dtype),
        gate_up(seed + 8),
        low_rank(HIDDEN, INTERMEDIATE, rank, seed + 10, dtype),
    )


def with_adapters(values: dict, *rows: int, dtype: torch.dtype = torch.float32) -> dict:
    """The arguments with two adapters: one of all linear operators, and one of rank 33 that changes two of them."""
    layers = len(values["skips_audio"])
    every = [part for i in range(layers) for part in layer_factors(3, 300 + 20 * i, dtype)]
    some = [
        part if index in (0, 1, 10, 11) else part.new_empty(0)
        for i in range(layers)
        for index, part in enumerate(layer_factors(33, 700 + 20 * i, dtype))
    ]
    return values | {"adapters": int32(*rows), "factors": every + some}


@pytest.mark.parametrize("format", [None, "fp8", "int8", "int4"])
@pytest.mark.parametrize("num_text", [0, 2, ROWS])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("skips", SKIPS)
def test_layers_equal_their_operators(skips, normalized, num_text, format):
    one_call, by_operator = (arguments(skips, num_text, format, normalized) for _ in range(2))
    ops.decoder_layers(**one_call)
    a = by_operator
    for index, skip in enumerate(skips):
        n = num_text if skip else ROWS
        if n == 0:
            continue
        text_norm, audio_norm, qkv, o, *ffn, query_norm, key_norm = layer(1000 * index, format, normalized)
        caches = a["key_caches"][index], a["value_caches"][index]
        places = a["text_positions"] if skip else a["positions"]
        x, query, attended, slots = (a[name][:n] for name in ("x", "query", "attended", "slots"))
        ops.qkv_rope_cache(
            query, *caches, x, text_norm, audio_norm, 1e-5, qkv, a["rope_table"], a["page_table"], slots,
            a["positions"][:n], places, num_text, query_norm, key_norm,
        )  # fmt: skip
        ops.attention(attended, query, *caches, a["page_table"], slots, places, HEAD_DIM**-0.5)
        ops.linear(x, attended, o, x)
        ops.dual_ffn(x, x, *ffn, 1e-5, num_text)
    for name in ("x", "key_caches", "value_caches"):
        for ours, theirs in zip(one_call[name], by_operator[name], strict=True):
            assert torch.equal(ours, theirs)


def with_one_feed_forward(tensors: list[torch.Tensor], count: int, text: slice, audio: slice, copy: bool) -> list:
    """A list of `count` tensors per layer, with those of text rows for audio rows too: the same ones, or copies."""
    tensors = list(tensors)
    for first in range(0, len(tensors), count):
        of_layer = tensors[first : first + count]
        of_layer[audio] = [tensor.clone() if copy else tensor for tensor in of_layer[text]]
        tensors[first : first + count] = of_layer
    return tensors


@pytest.mark.parametrize("format", [None, "fp8", "int8", "int4"])
@pytest.mark.parametrize("num_text", [2, ROWS])
@pytest.mark.parametrize("skips", [[0, 0], [0, 1]])
@pytest.mark.parametrize("adapters", ["none", "shared", "different"])
def test_a_feed_forward_of_both_kinds_of_rows_takes_them_together(adapters, skips, num_text, format):
    """In one pass where the tensors are the same, in two where they are equal: the bits don't differ."""
    results = []
    for copy in (False, True):
        values = arguments(skips, num_text, format)
        count = len(values["weights"]) // len(skips)
        values["weights"] = with_one_feed_forward(values["weights"], count, slice(6, 11), slice(11, 16), copy)
        if adapters != "none":
            values = with_adapters(values, 1, -1, 0, 1, 0)
        if adapters == "shared":
            values["factors"] = with_one_feed_forward(values["factors"], 12, slice(4, 8), slice(8, 12), copy)
        ops.decoder_layers(**values)
        results.append(values["x"])
    assert torch.equal(*results)


@pytest.mark.parametrize("format", [None, "int8"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("skips", [[0], [0, 1, 0]])
def test_decoder_layers_equal_reference(skips, normalized, format):
    ours, expected = (arguments(skips, 2, format, normalized) for _ in range(2))
    ops.decoder_layers(**ours)
    reference.decoder_layers(**expected)
    # Activations that are rounded to 8 bits may differ by one step.
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if format is None else {"rtol": 0.1, "atol": 0.1}
    for name in ("x", "key_caches", "value_caches"):
        torch.testing.assert_close(ours[name], expected[name], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", [None, "fp8", "int8", "int4"])
@pytest.mark.parametrize("normalized", [True] if EMULATES_CUDA else [False, True])
def test_layers_with_adapters_equal_reference(normalized, format, dtype):
    skips = [0, 1, 0]
    ours, expected = (
        with_adapters(arguments(skips, 2, format, normalized), 1, -1, 0, 1, 0, dtype=dtype) for _ in range(2)
    )
    plain = arguments(skips, 2, format, normalized)
    ops.decoder_layers(**ours)
    ops.decoder_layers(**plain)
    reference.decoder_layers(**expected)
    # Numbers that are rounded to 16 bits, or to 8 bits with a scale, may differ by one step.
    is_exact = format is None and dtype == torch.float32
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if is_exact else {"rtol": 0.1, "atol": 0.1}
    for name in ("x", "key_caches", "value_caches"):
        torch.testing.assert_close(ours[name], expected[name], **tolerance)
    has_adapter = ours["adapters"] >= 0
    assert (ours["x"][has_adapter] - plain["x"][has_adapter]).abs().amax(dim=1).min() > 0.3


@pytest.mark.parametrize("format", [None, "int8"])
def test_a_row_with_an_adapter_depends_on_its_own_alone(format):
    """On neither the other rows nor the other adapters; without one, a row is what it is where nobody has one."""
    rows = 1, -1, 0, 1, 0
    together, without = with_adapters(arguments([0, 0], 2, format), *rows), arguments([0, 0], 2, format)
    ops.decoder_layers(**together)
    ops.decoder_layers(**without)
    assert torch.equal(together["x"][1], without["x"][1])  # it attends to its own position alone
    for slot in range(2):
        single = with_adapters(arguments([0, 0], 2, format), *rows)
        kept = (single["slots"] == slot).nonzero()[:, 0]
        count = len(single["factors"]) // 2
        single |= {name: single[name][kept].clone() for name in ("x", "query", "attended", "slots", "positions")}
        num_text = int((kept < 2).sum())
        single |= {
            "text_positions": single["text_positions"][kept[:num_text]],
            "num_text_rows": num_text,
            "num_kept": len(kept),
            # In the other order.
            "adapters": torch.where(single["adapters"] < 0, -1, 1 - single["adapters"])[kept],
            "factors": single["factors"][count:] + single["factors"][:count],
        }
        ops.decoder_layers(**single)
        assert torch.equal(single["x"], together["x"][kept])


def kept(values: dict, first: int, count: int) -> dict:
    """The arguments with a range of kept rows, and copies of what the operator writes."""
    copies = {name: [cache.clone() for cache in values[name]] for name in ("key_caches", "value_caches")}
    return values | copies | {"x": values["x"].clone(), "first_kept": first, "num_kept": count}


def assert_kept_rows_equal(values: dict, ranges: list[tuple[int, int]]) -> None:
    """Compare ranges of kept rows, and the caches of all rows, with those of a call that keeps all rows."""
    whole = kept(values, 0, len(values["x"]))
    ops.decoder_layers(**whole)
    for first, count in ranges:
        part = kept(values, first, count)
        ops.decoder_layers(**part)
        rows = slice(first, first + count)
        assert torch.equal(part["x"][rows], whole["x"][rows])
        for name in ("key_caches", "value_caches"):
            assert all(map(torch.equal, part[name], whole[name]))


@pytest.mark.parametrize("format", [None, "int8"])
@pytest.mark.parametrize("num_text", [0, 2, ROWS])
@pytest.mark.parametrize("skips", [[0, 0], [0, 1], [1, 0]])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("shares", [False, True])
def test_kept_rows_have_the_bits_of_all_rows(shares, adapters, skips, num_text, format):
    values = arguments(skips, num_text, format)
    if shares:
        values["weights"] = with_one_feed_forward(values["weights"], 18, slice(6, 11), slice(11, 16), copy=False)
    if adapters:
        values = with_adapters(values, 1, -1, 0, 1, 0)
    ranges = [(0, 0), (0, 2), (1, 1), (1, 3), (2, 1), (3, 2), (ROWS, 0)]
    assert_kept_rows_equal(values, ranges)


def test_only_states_of_kept_rows_are_computed():
    """The last layer leaves those of other rows as they are."""
    values = arguments([0], 2)
    part = kept(values, 1, 2)
    ops.decoder_layers(**part)
    assert (part["x"] == values["x"]).all(dim=1).tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("first", [0, 3])
def test_all_rows_from_the_first_kept_one_are_kept_by_default(first):
    values = arguments([0, 1], 2)
    whole, part = kept(values, 0, ROWS), kept(values, first, 0) | {"num_kept": None}
    ops.decoder_layers(**whole)
    ops.decoder_layers(**part)
    assert torch.equal(part["x"][first:], whole["x"][first:])


@pytest.mark.parametrize("format", [None, "fp8", "int8", "int4"])
def test_kept_rows_of_a_prompt_have_the_bits_of_all_rows(format):
    """Other loops compute many rows than few."""
    rows, num_text = (40, 20) if EMULATES_CUDA else (200, 100)
    page_table, num_pages = random_page_table(2, num_text, 16)
    shape = num_pages, KV_HEADS, 16, HEAD_DIM
    positions = int32(*range(num_text))
    values = arguments([0, 0], 0, format) | {
        "x": random((rows, HIDDEN)),
        "query": torch.empty(rows, HEADS * HEAD_DIM),
        "attended": torch.empty(rows, HEADS * HEAD_DIM),
        "key_caches": [random(shape, seed=100 + i) for i in range(2)],
        "value_caches": [random(shape, seed=200 + i) for i in range(2)],
        "rope_table": random((num_text, HEAD_DIM), seed=3),
        "page_table": page_table,
        "slots": int32(*[0] * num_text, *[1] * (rows - num_text)),
        "positions": torch.cat([positions, positions]),
        "text_positions": positions,
        "num_text_rows": num_text,
    }
    assert_kept_rows_equal(values, [(0, 1), (num_text - 1, 1), (num_text - 3, 10), (num_text, 1), (rows - 1, 1)])


def test_opcheck():
    values = tuple(arguments([0, 1], 2).values())
    # The schema test compares what changed; the two overwritten buffers start out uninitialised.
    values[1].zero_()
    values[2].zero_()
    torch.library.opcheck(torch.ops.higgs_native.decoder_layers.default, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skips_audio": [0]}, "key_caches must have 1 tensors for 1 layers of skips_audio, got 2"),
        ({"num_text_rows": 6}, "num_text_rows must be between 0 and 5, got 6"),
        ({"first_kept": 6, "num_kept": 0}, "first_kept must be between 0 and 5, got 6"),
        ({"first_kept": -1}, "first_kept must be between 0 and 5, got -1"),
        ({"first_kept": 2, "num_kept": 4}, "num_kept must be between 0 and 3, got 4"),
        ({"num_kept": -1}, "num_kept must be between 0 and 5, got -1"),
        ({"following": torch.zeros(3)}, r"following must have shape \[\*, \*, 32, 1\], got \[3\]"),
        ({"following": torch.zeros(2, 5, 32, 2)}, r"following must have shape \[\*, \*, 32, 1\], got \[2, 5, 32, 2\]"),
        ({"slots": int32(0, 1)}, r"slots must have shape \[5\], got \[2\]"),
        ({"attended": torch.empty(5, 3)}, r"attended must have shape \[5, 32\], got \[5, 3\]"),
        ({"key_caches": [torch.zeros(3), torch.zeros(3)]}, r"key_caches\[0\] must have 4 dimensions, got \[3\]"),
        ({"adapters": int32(0)}, r"adapters must have shape \[5\], got \[1\]"),
        ({"factors": layer_factors(3, 0)}, "factors must have 24 tensors for each of at most 32 adapters, got 12"),
        (
            {"factors": [torch.empty(0), *(2 * layer_factors(3, 0))[1:]]},
            r"factors\[0\] must not be empty beside factors\[1\], got \[0\]",
        ),
        (
            {"factors": layer_factors(3, 0) + layer_factors(3, 0, torch.bfloat16)},
            r"factors\[12\] must be float32 as those before it, got bfloat16",
        ),
        (
            {"adapters": int32(0, 0, 0, 0, 0), "factors": 2 * (layer_factors(3, 0)[2:] + layer_factors(3, 0)[:2])},
            "factors must have shape",
        ),
        value_case(
            {"adapters": int32(0, 1, 0, 0, 0), "factors": 2 * layer_factors(3, 0)},
            r"adapters\[1\] must be between -1 and 0, got 1",
        ),
        ({"page_table": int32(0)}, r"page_table must have shape \[\*, \*\], got \[1\]"),
        value_case({"positions": int32(3, 0, 40, 4, 5)}, r"positions\[2\] must be between 0 and 39, got 40"),
        value_case(
            {"page_table": int32(*range(8, 14)).view(2, 3)}, r"page_table\[0, 1\] must be between 0 and 8, got 9"
        ),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(RuntimeError, match=message):
        ops.decoder_layers(**(arguments([0, 0], 2) | change))
