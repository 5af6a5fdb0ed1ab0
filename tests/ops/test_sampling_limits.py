"""Logits at the limits: the largest and smallest numbers, ties, and what can't be drawn from."""

import pytest
import torch

from higgs_native import ops
from higgs_native.ops.sampling import StateField
from tests.helpers.devices import CHECKS_VALUES, CUDA_DEVICE, NEEDS_CUDA_KERNELS
from tests.ops.slots import Slots
from tests.ops.tensors import int32, random


def sample_one(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0
) -> int:
    token = int32(-1)
    ops.sample_text(
        token,
        logits[None],
        int32(0),
        int32(0),
        torch.tensor([float(temperature)]),
        int32(top_k),
        torch.tensor([top_p]),
        torch.tensor([seed]),
    )
    return token.item()


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 0.5, 1e30])
def test_all_but_one_minus_infinity(temperature):
    logits = torch.full((100,), -torch.inf)
    logits[61] = -1e4
    for top_k, top_p in ((0, 1.0), (7, 1.0), (0, 0.5), (100, 1e-6)):
        assert sample_one(logits, temperature, top_k, top_p) == 61


def test_ties():
    logits = torch.tensor([0.0, 2.0, -0.0, 2.0, 2.0, 1.0])
    assert sample_one(logits, temperature=0) == 1
    assert sample_one(torch.tensor([-0.0, 0.0, -1.0]), temperature=0) == 0
    # Top-k 1 keeps all that tie with the first, and top-p all that tie with the last it takes.
    for options in ({"top_k": 1}, {"top_p": 0.2}):
        assert {sample_one(logits, seed=seed, **options) for seed in range(60)} == {1, 3, 4}


@pytest.mark.parametrize("scale", [1e-38, 1.0, 3e38])
def test_any_finite_scale(scale):
    logits = torch.tensor([-1.0, 1.0, 0.5, -0.5]) * scale
    assert sample_one(logits, temperature=0) == 1
    assert sample_one(logits, top_k=1) == 1
    assert 0 <= sample_one(logits) < 4


def test_top_k_of_fewer_finite_logits():
    logits = torch.full((10,), -torch.inf)
    logits[[2, 7]] = 0.0
    assert {sample_one(logits, top_k=5, seed=seed) for seed in range(40)} == {2, 7}


BAD_LOGITS = [
    (torch.nan, "hold a NaN"),
    (-torch.nan, "hold a NaN"),
    (torch.inf, r"hold \+inf, or exceed float32 when divided by the temperature"),
]


@CHECKS_VALUES
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("value", "message"), BAD_LOGITS)
def test_bad_logits_are_refused_and_nothing_is_written(value, message, temperature):
    slots = Slots(3, 8, 34, temperature=temperature).all_open()
    slots.logits[2, 5, 20] = value
    slots.slots = int32(1, 0, 2)
    written = (slots.codes, slots.active, slots.positions, slots.state, slots.history)
    before = [tensor.clone() for tensor in written]
    with pytest.raises(RuntimeError, match=f"sample_audio_frame: logits of slot 2, codebook 5 {message}"):
        ops.sample_audio_frame(*slots.arguments())
    for tensor, untouched in zip(written, before, strict=True):
        assert torch.equal(tensor, untouched)

    logits = random((4, 9))
    logits[3, 8] = value
    arguments = (logits, int32(0, 0, 0, 0), int32(0, 1, 2, 3))
    parameters = (torch.tensor([temperature]), int32(0), torch.ones(1), torch.tensor([0]))
    with pytest.raises(RuntimeError, match=rf"sample_text: logits of row 3 \(slot 0\) {message}"):
        ops.sample_text(int32(0, 0, 0, 0), *arguments, *parameters)
    with pytest.raises(RuntimeError, match=f"process_logits: logits of row 3 {message}"):
        ops.process_logits(torch.empty(4, 9), logits, torch.ones(4), int32(0, 0, 0, 0), torch.ones(4))


@CHECKS_VALUES
def test_a_row_of_minus_infinity_is_refused():
    slots = Slots(2, 3, 12).all_open()
    slots.logits[1, 2] = -torch.inf
    with pytest.raises(RuntimeError, match="logits of slot 1, codebook 2 are all -inf"):
        ops.sample_audio_frame(*slots.arguments())


@CHECKS_VALUES
def test_scores_that_overflow_are_refused():
    with pytest.raises(RuntimeError, match="exceed float32 when divided by the temperature"):
        sample_one(torch.tensor([1e10, 2e10]), temperature=1e-30)


@NEEDS_CUDA_KERNELS
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, None])
def test_bad_logits_give_no_code_on_cuda(value, temperature):
    """Where the CPU raises, the code is -1; the other codes are what they would be, and the slot goes on."""
    slots = Slots(3, 8, 34, temperature=temperature, ras_win_len=4).all_open()
    expected = Slots(3, 8, 34, temperature=temperature, ras_win_len=4).all_open().to(CUDA_DEVICE)
    expected.sample(expected.logits)
    if value is None:
        slots.logits[2, 5] = -torch.inf
    else:
        slots.logits[2, 5, 20] = value
    slots.to(CUDA_DEVICE)
    slots.sample(slots.logits)
    assert slots.codes[2, 5] == -1
    slots.codes[2, 5] = expected.codes[2, 5]
    assert torch.equal(slots.codes, expected.codes)
    assert (slots.state[:, StateField.FRAME] == 1).all()

    row = slots.logits[2, 5].expand(2, -1).contiguous().to(CUDA_DEVICE)
    row[1] = 0.0
    parameters = [tensor.to(CUDA_DEVICE) for tensor in (torch.tensor([temperature]), int32(0), torch.ones(1))]
    tokens, zeros = int32(-7, -7).to(CUDA_DEVICE), int32(0, 0).to(CUDA_DEVICE)
    ops.sample_text(tokens, row, zeros, zeros, *parameters, torch.tensor([0]).to(CUDA_DEVICE))
    assert tokens[0] == -1
    assert tokens[1] >= 0
    out = torch.empty_like(row)
    ops.process_logits(out, row, *(parameter.expand(2).contiguous().clamp(min=1) for parameter in parameters))
    assert out[0].isnan().all()
    assert not out[1].isnan().any()


@NEEDS_CUDA_KERNELS
@pytest.mark.parametrize(
    "change",
    [
        {"slots": int32(0, 2)},
        {"slots": int32(0, -1)},
        {"temperature": torch.tensor([1.0, -1.0])},
        {"temperature": torch.tensor([1.0, torch.nan])},
        {"top_p": torch.tensor([1.0, 0.0])},
        {"ras_win_len": int32(0, 9)},
        {"state": int32(1, 0, 0, 0, 2, -1, 0, 0, 1, 0, 0, -1, 2, -1, 0, 0).view(2, 8)},
        {"state": int32(1, 0, 0, 0, 2, -1, 0, 0, 1, 7, 0, 0, 2, -1, 0, 0).view(2, 8)},
    ],
)
def test_a_bad_slot_gives_no_codes_on_cuda_and_stays(change):
    slots = Slots(2, 3, 12).all_open()
    for name, value in change.items():
        setattr(slots, name, value.clone())
    slots.to(CUDA_DEVICE)
    before = slots.state[1].clone(), slots.history[1].clone()
    codes = slots.sample(slots.logits)
    assert (codes[0] >= 0).all()
    assert codes[1].tolist() == [-1, -1, -1]
    assert slots.state[0, StateField.FRAME] == 1
    assert torch.equal(slots.state[1], before[0])
    assert torch.equal(slots.history[1], before[1])
