"""The delay pattern: against plain PyTorch, against small cases written out, and its refusals."""

import pytest
import torch

from higgs_native import ops, reference
from tests.helpers.devices import NEEDS_CUDA


BOS, EOS = 1024, 1025


def random_codes(num_codebooks, num_frames, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1024, (num_codebooks, num_frames), generator=generator, dtype=torch.int32)
    return codes.to(device)


def unwritten(codes, num_columns):
    return torch.full((codes.shape[0], num_columns), -1, dtype=torch.int32, device=codes.device)


@pytest.mark.parametrize("num_codebooks", [1, 2, 3, 8, 12])
@pytest.mark.parametrize("num_frames", [0, 1, 2, 7, 8, 300])
def test_build_and_revert_equal_reference(num_codebooks, num_frames, device):
    codes = random_codes(num_codebooks, num_frames, device)
    delayed = unwritten(codes, num_frames + num_codebooks + 1)
    expected = unwritten(codes, num_frames + num_codebooks + 1)
    ops.delay_pattern_build(delayed, codes, BOS, EOS)
    reference.delay_pattern_build(expected, codes, BOS, EOS)
    assert torch.equal(delayed, expected)

    reverted, expected = unwritten(codes, num_frames + 2), unwritten(codes, num_frames + 2)
    ops.delay_pattern_revert(reverted, delayed)
    reference.delay_pattern_revert(expected, delayed)
    assert torch.equal(reverted, expected)
    assert torch.equal(reverted[:, 1:-1], codes)
    assert (reverted[:, 0] == BOS).all()
    assert (reverted[:, -1] == EOS).all()


def test_build_of_three_codebooks():
    codes = torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=torch.int32)
    out = unwritten(codes, 6)
    ops.delay_pattern_build(out, codes, 8, 9)
    assert out.tolist() == [[8, 1, 2, 9, 9, 9], [8, 8, 3, 4, 9, 9], [8, 8, 8, 5, 6, 9]]


def test_build_of_no_frames_is_two_triangles():
    out = torch.empty(3, 4, dtype=torch.int32)
    ops.delay_pattern_build(out, torch.empty(3, 0, dtype=torch.int32), 8, 9)
    assert out.tolist() == [[8, 9, 9, 9], [8, 8, 9, 9], [8, 8, 8, 9]]


def test_revert_of_as_many_columns_as_codebooks_is_the_diagonal():
    delayed = torch.arange(16, dtype=torch.int32).reshape(4, 4)
    out = torch.empty(4, 1, dtype=torch.int32)
    ops.delay_pattern_revert(out, delayed)
    assert out.flatten().tolist() == [0, 5, 10, 15]


@pytest.mark.parametrize("num_frames", [0, 5])
def test_opcheck(num_frames, device):
    codes = random_codes(8, num_frames, device)
    delayed, reverted = unwritten(codes, num_frames + 9), unwritten(codes, num_frames + 2)
    torch.library.opcheck(torch.ops.higgs_native.delay_pattern_build.default, (delayed, codes, BOS, EOS))
    torch.library.opcheck(torch.ops.higgs_native.delay_pattern_revert.default, (reverted, delayed))


def ints(*shape):
    return torch.zeros(shape, dtype=torch.int32)


@pytest.mark.parametrize(
    ("out", "codes", "bos_id", "eos_id", "message"),
    [
        (ints(8, 13), ints(8, 5), BOS, EOS, r"out must have shape \[8, 14\], got \[8, 13\]"),
        (ints(7, 14), ints(8, 5), BOS, EOS, r"out must have shape \[8, 14\], got \[7, 14\]"),
        (ints(8, 14), ints(40), BOS, EOS, r"codes must have shape \[\*, \*\], got \[40\]"),
        (ints(8, 14), ints(8, 5).long(), BOS, EOS, "codes must be int32, got int64"),
        (ints(8, 14).float(), ints(8, 5), BOS, EOS, "out must be int32, got float32"),
        (ints(8, 14), ints(5, 8).t(), BOS, EOS, "codes must be contiguous"),
        (ints(14, 8).t(), ints(8, 5), BOS, EOS, "out must be contiguous"),
        (ints(8, 14), ints(8, 5), -1, EOS, "bos_id must be 0 to 2147483647, got -1"),
        (ints(8, 14), ints(8, 5), BOS, 2**31, "eos_id must be 0 to 2147483647, got 2147483648"),
    ],
)
def test_build_refuses(out, codes, bos_id, eos_id, message):
    with pytest.raises(RuntimeError, match=f"delay_pattern_build: {message}"):
        ops.delay_pattern_build(out, codes, bos_id, eos_id)


@pytest.mark.parametrize(
    ("out", "delayed", "message"),
    [
        (ints(8, 0), ints(8, 7), "delayed must have at least 8 columns, one per codebook, got 7"),
        (ints(8, 2), ints(8, 8), r"out must have shape \[8, 1\], got \[8, 2\]"),
        (ints(8, 1), ints(8, 8).long(), "delayed must be int32, got int64"),
        (ints(8, 1), ints(64), r"delayed must have shape \[\*, \*\], got \[64\]"),
        (ints(8, 2), ints(9, 8).t(), "delayed must be contiguous"),
    ],
)
def test_revert_refuses(out, delayed, message):
    with pytest.raises(RuntimeError, match=f"delay_pattern_revert: {message}"):
        ops.delay_pattern_revert(out, delayed)


@NEEDS_CUDA
def test_devices_must_agree():
    with pytest.raises(RuntimeError, match="codes must be on cuda:0, got cpu"):
        ops.delay_pattern_build(ints(8, 14).cuda(), ints(8, 5), BOS, EOS)
