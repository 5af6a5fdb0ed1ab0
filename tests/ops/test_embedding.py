"""Embedding of text and audio rows against plain PyTorch."""

import pytest
import torch

from higgs_native import ops, reference
from tests.ops.tensors import int32, random


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_text", "num_audio"), [(0, 0), (3, 0), (0, 5), (4, 7)])
@pytest.mark.parametrize("codebooks", [1, 8])
def test_embed_equals_reference(num_text, num_audio, codebooks, dtype):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, (num_text,), generator=generator, dtype=torch.int32)
    codes = torch.randint(0, 6, (num_audio, codebooks), generator=generator, dtype=torch.int32)
    text_table, audio_table = random((11, 37), dtype), random((6 * codebooks, 37), dtype, 2)
    out, expected = torch.full((num_text + num_audio, 37), torch.nan), torch.empty(num_text + num_audio, 37)
    ops.embed(out, ids, codes, text_table, audio_table)
    reference.embed(expected, ids, codes, text_table, audio_table)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def arguments() -> dict[str, torch.Tensor]:
    return {
        "out": torch.zeros(3, 4),
        "token_ids": int32(0, 4),
        "codes": int32(1, 2).view(1, 2),
        "text_table": torch.zeros(5, 4),
        "audio_table": torch.zeros(6, 4),
    }


def test_opcheck():
    torch.library.opcheck(torch.ops.higgs_native.embed.default, tuple(arguments().values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": int32(0, 5)}, r"token_ids\[1\] must be between 0 and 4, got 5"),
        ({"token_ids": int32(-1, 0)}, r"token_ids\[0\] must be between 0 and 4, got -1"),
        ({"codes": int32(0, 3).view(1, 2)}, r"codes\[0, 1\] must be between 0 and 2, got 3"),
        ({"codes": torch.zeros(1, 2, dtype=torch.int64)}, "codes must be int32, got int64"),
        ({"audio_table": torch.zeros(7, 4)}, "audio_table has 7 rows, no multiple of the 2 codebooks"),
        ({"audio_table": torch.zeros(6, 5)}, r"audio_table must have shape \[\*, 4\], got \[6, 5\]"),
        ({"audio_table": torch.zeros(6, 4).bfloat16()}, "audio_table must be float32, got bfloat16"),
        ({"out": torch.zeros(2, 4)}, r"out must have shape \[3, 4\], got \[2, 4\]"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(RuntimeError, match="embed: " + message):
        ops.embed(**(arguments() | change))
