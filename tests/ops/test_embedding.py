"""Embedding of text and audio rows against plain PyTorch."""

import pytest
import torch

from higgs_native import ops, reference
from tests.helpers.devices import CUDA_DEVICE, DEVICES, NEEDS_CUDA_KERNELS, value_case
from tests.ops.tensors import int32, random


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_text", "num_audio"), [(0, 0), (3, 0), (0, 5), (4, 7)])
@pytest.mark.parametrize("codebooks", [1, 8])
@pytest.mark.parametrize("hidden", [37, 600])
def test_embed_equals_reference(num_text, num_audio, codebooks, hidden, dtype, device):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, (num_text,), generator=generator, dtype=torch.int32).to(device)
    codes = torch.randint(0, 6, (num_audio, codebooks), generator=generator, dtype=torch.int32).to(device)
    text_table = random((11, hidden), dtype).to(device)
    audio_table = random((6 * codebooks, hidden), dtype, 2).to(device)
    out = torch.full((num_text + num_audio, hidden), torch.nan, device=device)
    expected = torch.empty_like(out)
    ops.embed(out, ids, codes, text_table, audio_table)
    reference.embed(expected, ids, codes, text_table, audio_table)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@NEEDS_CUDA_KERNELS
def test_rows_of_ids_outside_the_table_are_nan_on_cuda():
    ids, codes = int32(10, 11, -1, 0), int32(0, 5, 0, 6, -1, 5).view(3, 2)
    tensors = [ids, codes, random((11, 40)), random((12, 40))]
    out = torch.zeros(7, 40, device=CUDA_DEVICE)
    ops.embed(out, *(tensor.to(CUDA_DEVICE) for tensor in tensors))
    assert out.isnan().all(1).tolist() == [False, True, True, False, False, True, True]
    assert out.isnan().any(1).tolist() == [False, True, True, False, False, True, True]


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
        value_case({"token_ids": int32(0, 5)}, r"token_ids\[1\] must be between 0 and 4, got 5"),
        value_case({"token_ids": int32(-1, 0)}, r"token_ids\[0\] must be between 0 and 4, got -1"),
        value_case({"codes": int32(0, 3).view(1, 2)}, r"codes\[0, 1\] must be between 0 and 2, got 3"),
        ({"codes": torch.zeros(1, 2, dtype=torch.int64)}, "codes must be int32, got int64"),
        (
            {"audio_table": torch.zeros(7, 4)},
            "audio_table must have a multiple of 2 rows, the codebooks of codes, got 7",
        ),
        ({"audio_table": torch.zeros(6, 5)}, r"audio_table must have shape \[\*, 4\], got \[6, 5\]"),
        ({"audio_table": torch.zeros(6, 4).bfloat16()}, "audio_table must be float32, got bfloat16"),
        ({"out": torch.zeros(2, 4)}, r"out must have shape \[3, 4\], got \[2, 4\]"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(RuntimeError, match="embed: " + message):
        ops.embed(**(arguments() | change))
