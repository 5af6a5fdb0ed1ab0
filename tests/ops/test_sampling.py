"""Sampling: draws against their definition and the exact distribution, the delay pattern's rules, and the refusals."""

import pytest
import torch

from higgs_native import ops, reference
from higgs_native.convention import Convention
from higgs_native.ops._library import EMULATES_CUDA
from higgs_native.ops.sampling import NUM_STATE_FIELDS, StateField
from higgs_native.reference.sampling import TEXT_STREAM, draw_weights, philox, random_bits
from tests.helpers.devices import CHECKS_VALUES, CUDA_DEVICE, DEVICES, NEEDS_CUDA_KERNELS, value_case
from tests.ops.tensors import int32, random


class Slots:
    """The arguments of `sample_audio_frame`, with the same parameters for every slot until they are changed."""

    def __init__(
        self,
        num_slots: int = 1,
        num_codebooks: int = 8,
        vocabulary: int = 34,
        convention: Convention = Convention.BOSON,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        ras_win_len: int = 0,
        ras_win_max_num_repeat: int = 2,
        history_length: int = 8,
    ) -> None:
        self.bos_id, self.eos_id = vocabulary - 2, vocabulary - 1
        self.codes = torch.full((num_slots, num_codebooks), -7, dtype=torch.int32)
        self.active = torch.full((num_slots,), -7, dtype=torch.int32)
        self.positions = torch.arange(num_slots, dtype=torch.int32) * 10
        self.state = torch.zeros(num_slots, NUM_STATE_FIELDS, dtype=torch.int32)
        self.history = torch.full((num_slots, history_length, num_codebooks), -9, dtype=torch.int32)
        self.logits = random((num_slots, num_codebooks, vocabulary))
        self.slots = torch.arange(num_slots, dtype=torch.int32)
        self.temperature = torch.full((num_slots,), float(temperature))
        self.top_k = torch.full((num_slots,), top_k, dtype=torch.int32)
        self.top_p = torch.full((num_slots,), top_p)
        self.ras_win_len = torch.full((num_slots,), ras_win_len, dtype=torch.int32)
        self.ras_win_max_num_repeat = torch.full((num_slots,), ras_win_max_num_repeat, dtype=torch.int32)
        self.seed = torch.arange(num_slots)
        self.state[:, StateField.ACTIVE] = 1
        self.state[:, StateField.CONVENTION] = convention.state_value
        if convention == Convention.TRANSFORMERS:
            self.state[:, StateField.TRANSFORMERS_BOS_STEP] = 1
            self.state[:, StateField.TRANSFORMERS_EOS_BASE] = 1
        else:
            self.state[:, StateField.BOSON_REMAINING] = -1

    def arguments(self) -> tuple:
        return (
            self.codes,
            self.active,
            self.positions,
            self.state,
            self.history,
            self.logits,
            self.slots,
            self.temperature,
            self.top_k,
            self.top_p,
            self.ras_win_len,
            self.ras_win_max_num_repeat,
            self.seed,
            self.bos_id,
            self.eos_id,
        )

    def to(self, device: str) -> "Slots":
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))
        return self

    def all_open(self) -> "Slots":
        """Past the first frames: every codebook is drawn."""
        num_codebooks, convention = self.codes.shape[1], self.state[0, StateField.CONVENTION].item()
        if convention == Convention.TRANSFORMERS.state_value:
            self.state[:, StateField.TRANSFORMERS_BOS_BASE] = -num_codebooks
        else:
            has_bos_frame = convention == Convention.BOSON.state_value
            self.state[:, StateField.BOSON_OPENED] = num_codebooks - has_bos_frame
        return self

    def append(self, frame: torch.Tensor) -> None:
        """Put a frame [C] into every slot's history."""
        count = self.state[:, StateField.HISTORY_COUNT]
        self.history[torch.arange(len(self.state)), count.long() % self.history.shape[1]] = frame
        count += 1

    def sample(self, logits: torch.Tensor) -> torch.Tensor:
        self.logits = logits
        ops.sample_audio_frame(*self.arguments())
        return self.codes.clone()


def peaked(codes: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Logits [..., V] whose highest is at `codes` [...]."""
    return torch.nn.functional.one_hot(codes.long(), vocabulary) * 20.0


# ---- the random numbers and the weights ----


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # The known answers that the authors publish with Random123.
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert philox(counter, key) == expected


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822])
@pytest.mark.parametrize("step", [0, 1, 2**31 - 1])
def test_equal_logits_show_the_random_bits(seed, step):
    """Of 2**16 equal tokens, a draw takes the one that the upper 16 of its 64 random bits name."""
    tokens = int32(0)
    logits = torch.full((1, 2**16), 3.0)
    ops.sample_text(
        tokens, logits, int32(0), int32(step), torch.ones(1), int32(0), torch.ones(1), torch.tensor([seed])
    )
    assert tokens.item() == random_bits(seed, step, TEXT_STREAM, 0) >> 48


def test_weights_follow_the_exponential():
    scores = torch.cat([torch.zeros(1), -torch.rand(20000, generator=torch.Generator().manual_seed(0)) * 20])
    exact = scores.double().exp() * 2**40
    assert draw_weights(scores)[0] == 2**40
    # 2**-24 of an exponent of 20 / ln 2, the polynomial, and the fraction that the integer drops.
    assert ((draw_weights(scores).double() - exact).abs() <= exact * 2e-6 + 1).all()


# ---- what is drawn ----

PARAMETERS = [
    (temperature, top_k, top_p) for temperature in (0.6, 1.0, 1.7) for top_k in (0, 5) for top_p in (1.0, 0.8)
]
NUM_DRAWS = 4_000 if EMULATES_CUDA else 100_000


def distribution(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """The probabilities [V], float64, of the draw from distinct logits [V]."""
    probabilities = (logits.double() / temperature).softmax(0)
    order = probabilities.argsort(descending=True)
    if top_k:
        probabilities[order[top_k:]] = 0
    share = probabilities[order] / probabilities.sum()
    probabilities[order[share.cumsum(0) - share >= top_p]] = 0
    return probabilities / probabilities.sum()


def assert_frequencies(drawn: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Every code's share among the draws lies within 4 standard errors of its probability."""
    counts = drawn.flatten().bincount(minlength=len(probabilities)).double()
    error = (probabilities * (1 - probabilities) / drawn.numel()).sqrt()
    assert len(counts) == len(probabilities)
    assert ((counts / drawn.numel() - probabilities).abs() <= 4 * error).all()


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), PARAMETERS)
def test_frequencies_of_text(temperature, top_k, top_p):
    logits = random((24,), seed=2) * 2
    tokens = torch.empty(NUM_DRAWS, dtype=torch.int32)
    half = NUM_DRAWS // 2  # one half of the draws by seeds, the other by steps
    slots = torch.cat([torch.arange(half), torch.zeros(half)]).int()
    steps = torch.cat([torch.zeros(half), torch.arange(1, half + 1)]).int()
    ops.sample_text(
        tokens,
        logits.expand(NUM_DRAWS, 24).contiguous(),
        slots,
        steps,
        torch.full((half,), temperature),
        torch.full((half,), top_k, dtype=torch.int32),
        torch.full((half,), top_p),
        torch.arange(half),
    )
    assert_frequencies(tokens, distribution(logits, temperature, top_k, top_p))


@pytest.mark.parametrize("convention", list(Convention))
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), PARAMETERS)
def test_frequencies_of_audio_with_repetitions(convention, temperature, top_k, top_p):
    """What repeats is drawn again from the raw logits: P(c) = p(c) [c does not repeat] + P(repetition) q(c)."""
    num_codebooks, vocabulary = 8, 24
    logits = random((vocabulary,), seed=3) * 2
    logits[-2:] = -torch.inf  # no BOS, no EOS
    best = logits.argsort(descending=True)
    slots = Slots(
        NUM_DRAWS // num_codebooks, num_codebooks, vocabulary, convention, temperature, top_k, top_p, ras_win_len=4
    ).all_open()
    for code in (best[3], best[0], best[0], best[2], best[1], best[2]):  # the last four count: 2 of best[2]
        slots.append(torch.full((num_codebooks,), int(code), dtype=torch.int32))
    codes = slots.sample(logits.expand_as(slots.logits).contiguous())

    raw = logits.double().softmax(0)
    first = distribution(logits, temperature, top_k, top_p)
    repeated = first[best[2]].clone()
    first[best[2]] = 0
    assert_frequencies(codes, first + repeated * raw)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocabulary", [1, 2, 5, 34, 1026, 4100])
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [*PARAMETERS, (0.0, 3, 0.5), (3.0, 40, 0.3)])
def test_text_equals_reference(vocabulary, temperature, top_k, top_p, device):
    rows, num_slots = 7, 3
    logits = random((rows, vocabulary), seed=vocabulary) * 3
    arguments = (
        logits,
        int32(0, 2, 1, 1, 2, 0, 0),
        int32(0, 0, 1, 2, 3, 100, 5),
        torch.full((num_slots,), temperature),
        torch.full((num_slots,), top_k, dtype=torch.int32),
        torch.full((num_slots,), top_p),
        torch.tensor([5, -8, 2**40]),
    )
    tokens, expected = int32(*[-1] * rows).to(device), int32(*[-2] * rows)
    ops.sample_text(tokens, *(tensor.to(device) for tensor in arguments))
    reference.sample_text(expected, *arguments)
    assert torch.equal(tokens.cpu(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_text_of_a_real_vocabulary_equals_reference(device):
    logits = random((2, 128256), seed=4) * 3
    for temperature, top_k, top_p in ((1.0, 0, 1.0), (0.7, 50, 0.95), (1.2, 0, 0.9), (0.0, 0, 1.0)):
        arguments = (
            logits,
            int32(0, 0),
            int32(0, 1),
            torch.tensor([temperature]),
            int32(top_k),
            torch.tensor([top_p]),
            torch.tensor([1]),
        )
        tokens, expected = int32(0, 0).to(device), int32(0, 0)
        ops.sample_text(tokens, *(tensor.to(device) for tensor in arguments))
        reference.sample_text(expected, *arguments)
        assert torch.equal(tokens.cpu(), expected)


@pytest.mark.parametrize("convention", list(Convention))
def test_the_same_seed_gives_the_same_codes_in_any_batch_and_slot(convention):
    num_slots, num_codebooks, vocabulary, frames = 40, 8, 50, 14
    logits = random((frames, num_codebooks, vocabulary), seed=5)
    alone = Slots(1, num_codebooks, vocabulary, convention, 0.9, 20, 0.9, ras_win_len=7)
    alone.seed[0] = 1234
    expected = torch.cat([alone.sample(frame[None]) for frame in logits])

    batch = Slots(num_slots, num_codebooks, vocabulary, convention, 0.9, 20, 0.9, ras_win_len=7)
    mine = 17
    batch.seed[mine] = 1234
    generator = torch.Generator().manual_seed(0)
    for frame in range(frames):
        others = torch.randperm(num_slots, generator=generator)
        rows = torch.cat([others[others != mine][: frame * 2], torch.tensor([mine])])
        rows = rows[torch.randperm(len(rows), generator=generator)]
        batch.slots = rows.int()
        batch.codes = torch.empty(len(rows), num_codebooks, dtype=torch.int32)
        batch.active, batch.positions = torch.zeros(2, len(rows), dtype=torch.int32)
        frame_logits = random((len(rows), num_codebooks, vocabulary), seed=frame)
        frame_logits[rows == mine] = logits[frame]
        assert torch.equal(batch.sample(frame_logits)[rows == mine][0], expected[frame])
    assert not torch.equal(batch.state[mine], batch.state[mine + 1])


def test_different_seeds_steps_and_codebooks_give_different_codes():
    slots = Slots(2, 8, 1026).all_open()
    flat = torch.zeros(2, 8, 1026)
    drawn = torch.cat([slots.sample(flat).flatten() for _ in range(4)])
    assert len(drawn.unique()) > 50  # 64 of 1026, a few by chance twice


# ---- the delay pattern ----


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


@pytest.mark.parametrize(("num_slots", "vocabulary", "frames"), [(16, 130, 64), (2, 1026, 10)])
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


# ---- extreme logits ----


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


# ---- processed scores ----


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocabulary", [1, 7, 34, 1026])
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [*PARAMETERS, (3.0, 40, 0.3), (1.0, 1, 1.0)])
def test_process_logits_equals_reference_and_transformers(vocabulary, temperature, top_k, top_p, device):
    rows = 12
    logits = random((rows, vocabulary), seed=6) * 3
    parameters = (
        torch.full((rows,), temperature),
        torch.full((rows,), top_k, dtype=torch.int32),
        torch.full((rows,), top_p),
    )
    in_place, expected = logits.to(device, copy=True), torch.full_like(logits, torch.nan)
    out, there = torch.full_like(in_place, torch.nan), [parameter.to(device) for parameter in parameters]
    ops.process_logits(out, in_place, *there)
    reference.process_logits(expected, logits, *parameters)
    assert torch.equal(out.cpu(), expected)

    ops.process_logits(in_place, in_place, *there)
    assert torch.equal(in_place, out)
    out = out.cpu()

    warpers = pytest.importorskip("transformers.generation.logits_process")
    theirs = warpers.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        theirs = warpers.TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = warpers.TopPLogitsWarper(top_p)(None, theirs)
    # A float32 cumulative sum may put a token on the other side of top-p where the exact sum nearly meets it.
    differs = out != theirs
    for row in differs.any(1).nonzero().flatten().tolist():
        probabilities = theirs[row].masked_fill(differs[row], 0).double().softmax(0).sort(descending=True).values
        assert (probabilities.cumsum(0) - top_p).abs().min() < 1e-6
    assert torch.equal(out.isfinite() & theirs.isfinite(), (out == theirs) & out.isfinite())


# ---- registration and arguments ----


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    for convention in Convention:
        slots = Slots(2, 3, 12, convention, 0.8, 5, 0.9, ras_win_len=3).to(device)
        torch.library.opcheck(torch.ops.higgs_native.sample_audio_frame.default, slots.arguments())
    one = (torch.tensor([0.8]), int32(5), torch.tensor([0.9]))
    text = (int32(0), random((1, 9)), int32(0), int32(0), *one, torch.tensor([0]))
    torch.library.opcheck(torch.ops.higgs_native.sample_text.default, tuple(tensor.to(device) for tensor in text))
    process = (torch.empty(1, 9), random((1, 9)), *one)
    torch.library.opcheck(
        torch.ops.higgs_native.process_logits.default, tuple(tensor.to(device) for tensor in process)
    )


def test_no_rows():
    slots = Slots(2, 3, 12)
    for name in ("codes", "active", "positions", "logits", "slots"):
        setattr(slots, name, getattr(slots, name)[:0])
    ops.sample_audio_frame(*slots.arguments())
    empty = torch.empty(0)
    ops.sample_text(
        int32(), torch.empty(0, 5), int32(), int32(), torch.ones(1), int32(0), torch.ones(1), torch.ones(1).long()
    )
    ops.process_logits(torch.empty(0, 5), torch.empty(0, 5), empty, int32(), empty)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": random((2, 3))}, r"logits must have shape \[\*, \*, \*\], got \[2, 3\]"),
        ({"logits": random((2, 3, 12)).double()}, "logits must be float32, got float64"),
        ({"logits": random((2, 12, 3)).transpose(1, 2)}, "logits must be contiguous"),
        ({"logits": torch.empty(2, 0, 12)}, "logits must have at least one codebook"),
        ({"logits": torch.empty(2, 3, 0)}, "logits must have 1 to 4194304 columns, got 0"),
        ({"codes": torch.zeros(2, 4, dtype=torch.int32)}, r"codes must have shape \[2, 3\], got \[2, 4\]"),
        ({"codes": torch.zeros(2, 3, dtype=torch.int64)}, "codes must be int32, got int64"),
        ({"active": torch.zeros(2)}, "active must be int32, got float32"),
        ({"positions": torch.zeros(1, dtype=torch.int32)}, r"positions must have shape \[2\], got \[1\]"),
        ({"slots": torch.zeros(3, dtype=torch.int32)}, r"slots must have shape \[2\], got \[3\]"),
        value_case({"slots": int32(0, 2)}, r"slots\[1\] must be 0 to 1, got 2"),
        value_case({"slots": int32(-1, 0)}, r"slots\[0\] must be 0 to 1, got -1"),
        value_case({"slots": int32(1, 1)}, "slots must name each slot once, got 1 twice"),
        ({"state": torch.zeros(2, 7, dtype=torch.int32)}, r"state must have shape \[\*, 8\], got \[2, 7\]"),
        value_case(
            {"state": torch.full((2, 8), 3, dtype=torch.int32)},
            "convention of slot 0 in state must be 0, 1 or 2, got 3",
        ),
        value_case(
            {"state": int32(1, 0, 0, -1, 0, 0, 0, 0).repeat(2, 1)},
            "history count of slot 0 in state must be 0 or more, got -1",
        ),
        *(
            value_case(
                {"state": int32(*(value if i == field else 0 for i in range(8))).repeat(2, 1)},
                rf"state\[0, {field}\] must be -536870912 to 536870912, got {value}",
            )
            for field in range(8)
            for value in (2**31 - 1, -(2**31), 2**29 + 1)
        ),
        value_case(
            {"state": int32(1, 1, 0, 0, 0, 2, 0, 0).repeat(2, 1)},
            "step of BOS of slot 0 in state must be 0 or 1, got 2",
        ),
        value_case({"positions": int32(0, 2**31 - 1)}, r"positions\[1\] must be below 2147483647, got 2147483647"),
        ({"history": torch.zeros(2, 0, 3, dtype=torch.int32)}, "history must hold at least one frame"),
        ({"history": torch.zeros(2, 4, 4, dtype=torch.int32)}, r"history must have shape \[2, \*, 3\]"),
        ({"temperature": torch.ones(3)}, r"temperature must have shape \[2\], got \[3\]"),
        value_case(
            {"temperature": torch.tensor([1.0, -0.5])}, "temperature of slot 1 must be finite and 0 or more, got -0.5"
        ),
        value_case(
            {"temperature": torch.tensor([torch.nan, 1.0])}, "temperature of slot 0 must be finite and 0 or more"
        ),
        value_case(
            {"temperature": torch.tensor([torch.inf, 1.0])}, "temperature of slot 0 must be finite and 0 or more"
        ),
        ({"top_k": torch.ones(2)}, "top_k must be int32, got float32"),
        value_case({"top_p": torch.tensor([1.0, 0.0])}, "top_p of slot 1 must be greater than 0, got 0"),
        value_case({"top_p": torch.tensor([torch.nan, 1.0])}, "top_p of slot 0 must be greater than 0"),
        value_case(
            {"ras_win_len": int32(0, 9)},
            "ras_win_len of slot 1 must be at most 8, the frames that history holds, got 9",
        ),
        ({"ras_win_len": int32(0)}, r"ras_win_len must have shape \[2\], got \[1\]"),
        ({"ras_win_max_num_repeat": torch.ones(2)}, "ras_win_max_num_repeat must be int32, got float32"),
        ({"seed": int32(1, 2)}, "seed must be int64, got int32"),
        ({"bos_id": 12}, "bos_id must be 0 to 11, got 12"),
        ({"eos_id": -1}, "eos_id must be 0 to 11, got -1"),
        ({"eos_id": B}, "eos_id must differ from bos_id, got 10 for both"),
    ],
)
def test_sample_audio_frame_refuses(change, message):
    slots = Slots(2, 3, 12)
    for name, value in change.items():
        setattr(slots, name, value)
    with pytest.raises(RuntimeError, match=f"sample_audio_frame: {message}"):
        ops.sample_audio_frame(*slots.arguments())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": int32(0)}, r"tokens must have shape \[2\], got \[1\]"),
        ({"logits": random((18,))}, r"logits must have shape \[\*, \*\], got \[18\]"),
        ({"logits": torch.empty(2, 0)}, "logits must have 1 to 4194304 columns, got 0"),
        value_case({"slots": int32(0, 1)}, r"slots\[1\] must be 0 to 0, got 1"),
        ({"steps": torch.zeros(2)}, "steps must be int32, got float32"),
        value_case(
            {"temperature": torch.tensor([-1.0])}, "temperature of slot 0 must be finite and 0 or more, got -1"
        ),
        ({"top_k": int32(1, 2)}, r"top_k must have shape \[1\], got \[2\]"),
        value_case({"top_p": torch.tensor([-0.1])}, "top_p of slot 0 must be greater than 0, got -0.1"),
        ({"seed": int32(0)}, "seed must be int64, got int32"),
    ],
)
def test_sample_text_refuses(change, message):
    arguments = {
        "tokens": int32(0, 0),
        "logits": random((2, 9)),
        "slots": int32(0, 0),
        "steps": int32(0, 1),
        "temperature": torch.ones(1),
        "top_k": int32(0),
        "top_p": torch.ones(1),
        "seed": torch.tensor([0]),
    }
    with pytest.raises(RuntimeError, match=f"sample_text: {message}"):
        ops.sample_text(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": torch.empty(2, 8)}, r"out must have shape \[2, 9\], got \[2, 8\]"),
        ({"logits": random((2, 9)).bfloat16()}, "logits must be float32, got bfloat16"),
        value_case({"temperature": torch.tensor([1.0, 0.0])}, "temperature of row 1 must be greater than 0, got 0"),
        ({"top_k": torch.zeros(2, dtype=torch.int64)}, "top_k must be int32, got int64"),
        value_case({"top_p": torch.tensor([0.0, 1.0])}, "top_p of row 0 must be greater than 0, got 0"),
    ],
)
def test_process_logits_refuses(change, message):
    arguments = {
        "out": torch.empty(2, 9),
        "logits": random((2, 9)),
        "temperature": torch.ones(2),
        "top_k": int32(0, 0),
        "top_p": torch.ones(2),
    }
    with pytest.raises(RuntimeError, match=f"process_logits: {message}"):
        ops.process_logits(**(arguments | change))
