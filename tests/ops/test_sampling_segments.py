"""Whole segments: the delay pattern's rules in each convention, and repetition-aware sampling."""

import pytest
import torch

from higgs_native import ops, reference
from higgs_native.convention import Convention
from higgs_native.ops.sampling import StateField
from tests.helpers.devices import DEVICES
from tests.ops.slots import Slots, peaked
from tests.ops.tensors import int32, random


def greedy_segment(
    convention: Convention, frames: list[list[int]], vocabulary: int = 12, **state: int
) -> list[list[int]]:
    """The frames emitted until the slot is inactive, where the logits favour `frames`."""
    slots = Slots(1, len(frames[0]), vocabulary, convention, temperature=0)
    for name, value in state.items():
        slots.state[0, StateField[name]] = value
    emitted = []
    for frame in frames:
        emitted.append(slots.sample(peaked(torch.tensor([frame]), vocabulary))[0].tolist())
        if not slots.state[0, StateField.ACTIVE]:
            break
    return emitted


B, E = 10, 11


def test_boson_opens_and_closes_a_codebook_a_frame():
    frames = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 2, 3], [E, 4, 5], [6, 7, 8], [9, 1, 2], [3, 3, 3]]
    assert greedy_segment(Convention.BOSON, frames) == [
        [1, B, B],
        [4, 5, B],
        [7, 8, 9],
        [1, 2, 3],
        [E, 4, 5],
        [E, 7, 8],
        [E, E, 2],
    ]


def test_boson_closes_what_lies_below_the_lowest_eos():
    frames = [[1, 2, 3, 4]] * 3 + [[5, 6, E, E], [7, 8, 9, 1], [2, 3, 4, 5]]
    assert greedy_segment(Convention.BOSON, frames) == [
        [1, B, B, B],
        [1, 2, B, B],
        [1, 2, 3, B],
        [E, E, E, E],
        [E, E, E, 1],
    ]


def test_boson_ends_at_once_where_the_last_codebook_is_the_lowest_at_eos():
    frames = [[1, 2, 3]] * 3 + [[4, 5, E], [6, 7, 8]]
    assert greedy_segment(Convention.BOSON, frames)[-1] == [E, E, E]
    assert len(greedy_segment(Convention.BOSON, frames)) == 4


def test_boson_ignores_eos_of_a_codebook_that_is_not_open():
    assert greedy_segment(Convention.BOSON, [[1, E, E], [2, 3, E], [4, 5, 6]]) == [[1, B, B], [2, 3, B], [4, 5, 6]]


def test_boson_closes_while_it_opens():
    frames = [[E, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert greedy_segment(Convention.BOSON, frames) == [[E, B, B, B], [E, 6, B, B], [E, E, 3, B], [E, E, E, 8]]


def test_transformers_opens_and_closes_a_codebook_a_frame():
    frames = [[1, 2, 3]] * 4 + [[E, 4, 5], [6, 7, 8], [9, 1, 2], [3, 3, 3], [4, 4, 4]]
    assert greedy_segment(Convention.TRANSFORMERS, frames) == [
        [B, B, B],
        [1, B, B],
        [1, 2, B],
        [1, 2, 3],
        [E, 4, 5],
        [E, 7, 8],
        [E, E, 2],
        [E, E, E],
    ]


def test_transformers_starts_the_countdown_at_any_eos_and_leaves_the_others_free():
    frames = [[1, 2, 3]] * 4 + [[4, 5, E], [6, 7, 8], [9, 1, 2], [3, 3, 3]]
    assert greedy_segment(Convention.TRANSFORMERS, frames)[4:] == [[4, 5, E], [E, 7, 8], [E, E, 2], [E, E, E]]


def test_transformers_ends_where_all_codes_are_eos_by_themselves():
    frames = [[1, 2, 3]] * 4 + [[E, E, E], [6, 7, 8]]
    assert greedy_segment(Convention.TRANSFORMERS, frames)[4:] == [[E, E, E]]


def test_where_both_masks_meet_greedy_takes_index_0_and_a_draw_eos():
    state = {"TRANSFORMERS_BOS_STEP": 0, "TRANSFORMERS_EOS_BASE": 0}
    assert greedy_segment(Convention.TRANSFORMERS, [[5, 5, 5]], **state) == [[0, B, B]]
    slots = Slots(1, 3, 12, Convention.TRANSFORMERS)
    slots.state[0, StateField.TRANSFORMERS_BOS_STEP] = 0
    slots.state[0, StateField.TRANSFORMERS_EOS_BASE] = 0
    assert slots.sample(random((1, 3, 12)))[0].tolist() == [E, B, B]


def test_higgs_tts_3_opens_a_codebook_a_frame_and_ends_by_codebook_0_alone():
    """An EOS while delays open, and those of other codebooks, end nothing; after the end all draw what they like."""
    frames = [[1, 2, 3, 4], [E, E, 3, 4], [B, 2, E, 4], [E, 6, 7, E], [2, E, E, E], [E, B, 3, 4]]
    assert greedy_segment(Convention.HIGGS_TTS_3, [*frames, [5, 5, 5, 5], [6, 6, 6, 6], [7, 7, 7, 7]]) == [
        [1, B, B, B],
        [E, E, B, B],
        [B, 2, E, B],
        [E, 6, 7, E],
        [2, E, E, E],
        [E, B, 3, 4],
        [5, 5, 5, 5],
        [6, 6, 6, 6],
    ]


@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_higgs_tts_3_with_few_codebooks_ends_at_eos(num_codebooks):
    frames = [[1] * num_codebooks] * num_codebooks + [[E] * num_codebooks, [2] * num_codebooks]
    assert len(greedy_segment(Convention.HIGGS_TTS_3, frames)) == num_codebooks + 1


def test_an_inactive_slot_emits_eos_reads_nothing_and_stays():
    slots = Slots(2, 3, 12)
    slots.state[0, StateField.ACTIVE] = 0
    slots.logits[0] = torch.nan
    before = slots.state[0].clone(), slots.history[0].clone()
    codes = slots.sample(slots.logits)
    assert codes[0].tolist() == [E, E, E]
    assert torch.equal(slots.state[0], before[0])
    assert torch.equal(slots.history[0], before[1])
    assert codes[1, 0] < B
    assert slots.state[1, StateField.FRAME] == 1


def test_logits_of_forced_codes_are_not_read():
    slots = Slots(1, 3, 12)
    logits = random((1, 3, 12))
    logits[:, 1:] = torch.nan
    assert slots.sample(logits)[0, 1:].tolist() == [B, B]


def segment_logits(frames: int, num_slots: int, num_codebooks: int, vocabulary: int, seed: int) -> torch.Tensor:
    """Random logits that keep EOS away, then favour it from a random frame on, here in one codebook, there in all."""
    generator = torch.Generator().manual_seed(seed)
    # Half of the time a few codes are far above the others, so that codes repeat.
    scale = torch.tensor([1.0, 6.0])[torch.randint(2, (num_slots, 1, 1), generator=generator)]
    logits = torch.randn(frames, num_slots, num_codebooks, vocabulary, generator=generator) * scale
    logits[..., -2:] -= 30 * (
        torch.rand(num_slots, 1, 1, generator=generator) < 0.7
    )  # else BOS and EOS come up freely
    for slot in range(num_slots):
        first = int(torch.randint(frames, (), generator=generator))
        codebooks = torch.rand(num_codebooks, generator=generator) < (1.0 if slot % 5 == 0 else 0.3)
        logits[first, slot, codebooks, -1] = 60
    return logits


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("convention", list(Convention))
@pytest.mark.parametrize(
    ("num_codebooks", "vocabulary", "history_length", "frames"), [(1, 5, 1, 6), (3, 12, 4, 16), (8, 34, 9, 30)]
)
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "window", "repeats"),
    [
        (1.0, 0, 1.0, 0, 2),
        (0.0, 0, 1.0, 1, 1),
        (0.7, 4, 0.9, 3, 1),
        (1.3, 0, 0.6, 9, 2),
        (1.0, 50, 1.0, 7, 0),
        (0.0, 0, 1.0, 7, 0),
    ],
)
def test_segments_equal_reference(
    convention, num_codebooks, vocabulary, history_length, frames, temperature, top_k, top_p, window, repeats, device
):
    num_slots = 10
    window = min(window, history_length)
    generator = torch.Generator().manual_seed(frames)

    def make() -> Slots:
        slots = Slots(
            num_slots,
            num_codebooks,
            vocabulary,
            convention,
            temperature,
            top_k,
            top_p,
            ras_win_len=window,
            ras_win_max_num_repeat=repeats,
            history_length=history_length,
        )
        slots.seed = torch.arange(num_slots) * 2**45 - 3
        return slots

    ours, theirs = make(), make()
    # Prompts of 0 .. num_slots - 1 frames, and starts in the middle of a segment.
    for slot in range(num_slots):
        state = ours.state[slot]
        past = torch.randint(vocabulary, (slot, num_codebooks), generator=generator, dtype=torch.int32)
        for count, frame in enumerate(past):
            ours.history[slot, count % history_length] = frame
        state[StateField.HISTORY_COUNT] = slot
        if slot % 3 == 2:
            start = int(torch.randint(num_codebooks + 1, (), generator=generator))
            if convention == Convention.TRANSFORMERS:
                state[StateField.TRANSFORMERS_BOS_BASE] = -start
                state[StateField.TRANSFORMERS_BOS_STEP] = int(start < num_codebooks)
                state[StateField.TRANSFORMERS_EOS_BASE] = 1 - start // 2
                state[StateField.TRANSFORMERS_ENDING] = int(start % 2)
            else:
                state[StateField.BOSON_OPENED] = start
                state[StateField.BOSON_REMAINING] = start - 1
    theirs.state.copy_(ours.state)
    theirs.history.copy_(ours.history)
    ours.to(device)

    endings = 0
    for step, logits in enumerate(segment_logits(frames, num_slots, num_codebooks, vocabulary, seed=frames)):
        theirs.logits, ours.logits = logits, logits.to(device)
        theirs.slots = torch.randperm(num_slots, generator=generator).int()
        ours.slots = theirs.slots.to(device)
        ops.sample_audio_frame(*ours.arguments())
        reference.sample_audio_frame(*theirs.arguments())
        assert torch.equal(ours.codes.cpu(), theirs.codes), step
        assert torch.equal(ours.active.cpu(), theirs.active), step
        assert torch.equal(ours.positions.cpu(), theirs.positions), step
        assert torch.equal(ours.state.cpu(), theirs.state), step
        assert torch.equal(ours.history.cpu(), theirs.history), step
        endings = num_slots - int(ours.state[:, StateField.ACTIVE].sum())
    assert endings > 0


def emit_frames(arguments, logits, device):
    """The codes of the frames that logits [frames, R, C, V] make, and the state and history behind the last."""
    import torch

    from higgs_native import ops

    codes, active, positions, state, history, _, *others, bos_id, eos_id = [
        value.to(device, copy=True) if isinstance(value, torch.Tensor) else value for value in arguments
    ]
    emitted = []
    for frame in logits.to(device):
        ops.sample_audio_frame(codes, active, positions, state, history, frame, *others, bos_id, eos_id)
        emitted.append(codes.to("cpu", copy=True))
    return torch.stack(emitted), state.cpu(), history.cpu()


@pytest.mark.parametrize(("num_slots", "vocabulary", "frames"), [(16, 130, 24), (2, 1026, 10)])
def test_both_backends_emit_the_same_frames(num_slots, vocabulary, frames, on_other_backend):
    generator = torch.Generator().manual_seed(vocabulary)

    def choice(*values: float) -> torch.Tensor:
        return torch.tensor(values)[torch.randint(len(values), (num_slots,), generator=generator)]

    slots = Slots(num_slots, 8, vocabulary)
    slots.state[num_slots // 2 :] = Slots(1, convention=Convention.TRANSFORMERS).state
    slots.temperature = choice(0.0, 0.3, 0.7, 1.0, 1.0, 1.3)
    slots.top_k, slots.top_p = choice(0, 1, 5, 50).int(), choice(0.1, 0.8, 0.95, 1.0)
    slots.ras_win_len, slots.ras_win_max_num_repeat = choice(0, 7, 8).int(), choice(1, 2).int()
    slots.seed = torch.randint(2**62, (num_slots,), generator=generator)
    logits = 3 * torch.randn(frames, num_slots, 8, vocabulary, generator=generator)
    logits[..., slots.eos_id] -= 30  # the segments go on
    ours = emit_frames(slots.arguments(), logits, device="cpu")
    theirs = on_other_backend(emit_frames, slots.arguments(), logits)
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    assert len(ours[0].unique()) > 50


# ---- repetition-aware sampling ----


def test_boson_counts_bos_and_eos_and_codes_before_they_are_forced():
    """Two BOS in the window: a drawn BOS is redrawn from the raw logits, here surely a 3."""
    slots = Slots(1, 2, 12, Convention.BOSON, top_k=1, temperature=0.5, ras_win_len=4).all_open()
    slots.append(int32(B, B))
    slots.append(int32(B, B))
    logits = torch.full((1, 2, 12), -torch.inf)
    logits[:, :, B] = 1.0
    # Top-k 1 leaves BOS alone, which repeats; the raw logits have BOS and 3, and over seeds both come up.
    logits[:, :, 3] = 0.9
    drawn = set()
    for seed in range(40):
        trial = Slots(1, 2, 12, Convention.BOSON, top_k=1, temperature=0.5, ras_win_len=4).all_open()
        trial.state.copy_(slots.state)
        trial.history.copy_(slots.history)
        trial.seed[0] = seed
        drawn.update(trial.sample(logits)[0].tolist())
    assert drawn == {3, B}


def test_transformers_does_not_count_bos_and_eos():
    slots = Slots(1, 2, 12, Convention.TRANSFORMERS, temperature=0, ras_win_len=4).all_open()
    for _ in range(4):
        slots.append(int32(B, E))
    logits = peaked(torch.tensor([[B, E]]), 12) / 20  # the raw softmax would give another code most of the time
    assert slots.sample(logits)[0].tolist() == [B, E]


@pytest.mark.parametrize("convention", list(Convention))
@pytest.mark.parametrize(("past", "is_redrawn"), [([5, 5], True), ([5, 1], False), ([5, 5, 1, 1, 1, 1], False)])
def test_greedy_codes_are_redrawn_where_they_repeat_in_the_window(convention, past, is_redrawn):
    num_slots = 50
    slots = Slots(num_slots, 1, 12, convention, temperature=0, ras_win_len=4).all_open()
    for code in past:
        slots.append(int32(code))
    logits = torch.zeros(num_slots, 1, 12)
    logits[..., 5] = 0.1
    codes = slots.sample(logits)
    assert (codes != 5).any() == is_redrawn


@pytest.mark.parametrize("convention", list(Convention))
def test_without_past_frames_nothing_repeats(convention):
    slots = Slots(50, 1, 12, convention, temperature=0, ras_win_len=4, ras_win_max_num_repeat=0).all_open()
    logits = torch.zeros(50, 1, 12)
    logits[..., 5] = 0.1
    assert (slots.sample(logits) == 5).all()
