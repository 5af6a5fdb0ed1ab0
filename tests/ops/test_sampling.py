"""Sampling: draws against their definition and the exact distribution, and the refusals of arguments."""

import pytest
import torch

from higgs_native import ops, reference
from higgs_native.convention import Convention
from higgs_native.ops._library import EMULATES_CUDA
from higgs_native.reference.sampling import TEXT_STREAM, draw_weights, philox, random_bits
from tests.helpers.devices import DEVICES, value_case
from tests.ops.slots import Slots
from tests.ops.tensors import int32, random


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
# The emulation is slow. It gets the first and the last of them, and few draws; the draws that equal the reference's to
# the bit get all.
FREQUENCIES_OF = PARAMETERS[::11] if EMULATES_CUDA else PARAMETERS
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


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), FREQUENCIES_OF)
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
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), FREQUENCIES_OF)
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
@pytest.mark.parametrize("spacing", [0.02, 1.0, 100.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 1e-6])
@pytest.mark.parametrize(
    ("vocabulary", "top_k"),
    [(1, 1), (40, 39), (300, 1), (300, 100), (300, 128), (300, 129), (6144, 50), (6145, 50), (6200, 200)],
)
def test_equal_logits_at_the_threshold_are_kept(vocabulary, top_k, top_p, spacing, device):
    """CUDA lists up to 128 tokens that top-k keeps, with those that equal the last of them; others take passes."""
    rows = 6
    logits = (random((rows, vocabulary), seed=vocabulary) * 3 / spacing).round() * spacing
    temperatures, top_ks, top_ps = torch.full((rows,), 0.9), int32(*[top_k] * rows), torch.full((rows,), top_p)
    processed, expected = torch.empty_like(logits, device=device), torch.empty_like(logits)
    ops.process_logits(processed, *(tensor.to(device) for tensor in (logits, temperatures, top_ks, top_ps)))
    reference.process_logits(expected, logits, temperatures, top_ks, top_ps)
    assert torch.equal(processed.cpu(), expected)
    own = int32(*range(rows))
    arguments = (logits, own, own, temperatures, top_ks, top_ps, torch.arange(rows))
    tokens, drawn = torch.full_like(own, -1).to(device), torch.full_like(own, -2)
    ops.sample_text(tokens, *(tensor.to(device) for tensor in arguments))
    reference.sample_text(drawn, *arguments)
    assert torch.equal(tokens.cpu(), drawn)


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
        ({"eos_id": 10}, "eos_id must differ from bos_id, got 10 for both"),
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
