"""All decoder layers in one call against the operators of each layer, one by one."""

import pytest
import torch

from higgs_native import ops, reference
from tests.helpers.devices import value_case
from tests.ops.pages import random_page_table
from tests.ops.tensors import int32, random


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
    }


@pytest.mark.parametrize("format", [None, "fp8", "int8", "int4"])
@pytest.mark.parametrize("num_text", [0, 2, ROWS])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("skips", [[0], [0, 0, 0], [0, 1, 0], [1, 1]])
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
        ({"slots": int32(0, 1)}, r"slots must have shape \[5\], got \[2\]"),
        ({"attended": torch.empty(5, 3)}, r"attended must have shape \[5, 32\], got \[5, 3\]"),
        ({"key_caches": [torch.zeros(3), torch.zeros(3)]}, r"key_caches\[0\] must have 4 dimensions, got \[3\]"),
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
