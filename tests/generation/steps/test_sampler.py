"""The sampler's slots: how sequences start, go on and follow one another, and transformers' delay pattern."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.convention import Convention
from higgs_native.errors import PromptError
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.steps.sampler import SamplerState
from higgs_native.ops.sampling import StateField
from tests.ops.tensors import int32, random


BOSON = HiggsAudioConfig.from_pretrained(Path(__file__).parents[2] / "golden" / "boson_lm")
TRANSFORMERS = replace(BOSON, audio_delay_token_id=270)
C, V = BOSON.num_codebooks, BOSON.codebook_size
B, E = BOSON.audio_stream_bos_id, BOSON.audio_stream_eos_id
TEXT, AUDIO, AUDIO_BOS, DELAY = 40, BOSON.audio_out_token_id, BOSON.audio_out_bos_token_id, 270

GREEDY = SamplingParams(temperature=0.0, top_k=None, top_p=None, ras_win_len=None, seed=0)


def reset(
    sampler: SamplerState,
    slot: int,
    convention: str,
    frames: torch.Tensor | None = None,
    prompt_ids: list[int] | None = None,
    num_resumed: int = 0,
    **options,
) -> None:
    """Reset a slot to greedy sampling, but for `options`."""
    sampling = replace(GREEDY, **options)
    frames = [] if frames is None else frames.tolist()
    sampler.reset_slot(slot, Convention(convention), sampling, frames, prompt_ids or [], num_resumed)


def boson_sampler(history_length: int = 7, **options) -> SamplerState:
    sampler = SamplerState(2, BOSON, history_length)
    reset(sampler, 1, "boson", **options)
    return sampler


def segment(sampler: SamplerState, logits: torch.Tensor, slot: int = 1) -> torch.Tensor:
    """The frames [N, C] that a slot samples for logits [steps, C, V] until it is inactive."""
    frames = []
    for step in logits:
        if not sampler.is_active(slot):
            break
        frames.append(sampler.sample_audio_frame(step[None], int32(slot))[0])
    return torch.stack(frames)


def logits_with_eos(steps: int, at: int, codebook: int = 0, seed: int = 0) -> torch.Tensor:
    """Random logits [steps, C, V] whose first EOS comes in `codebook` at step `at`."""
    logits = random((steps, C, V), seed=seed)
    logits[..., [B, E]] = -20.0
    logits[at, codebook, E] = 20.0
    return logits


def test_a_boson_slot_waits_for_its_segments():
    sampler = boson_sampler()
    assert not sampler.is_active(1)
    for number in range(2):
        first = sampler.begin_segment(1)
        assert first.tolist() == [B] * C
        assert sampler.is_active(1)
        frames = segment(sampler, logits_with_eos(30, at=10, seed=number))
        assert not sampler.is_active(1)
        assert len(frames) == 10 + C
        stairs = torch.arange(1, C)[:, None] > torch.arange(C)  # codebook 0, then 0 and 1, up to all but the last
        assert torch.equal(frames[: C - 1] != B, stairs)
        assert torch.equal(frames[10] == E, stairs[0])
        assert torch.equal(frames[11:] == E, stairs)
    assert sampler.state[1, StateField.FRAME] == 2 * (11 + C)
    assert not sampler.state[0].any()


def test_the_first_frame_of_a_segment_counts_as_past_audio():
    options = {"ras_win_len": 1, "ras_win_max_num_repeat": 1}
    bos_wins = torch.zeros(20, C, V)
    bos_wins[..., B] = 0.1
    drawn = []
    for seed in range(20):
        sampler = boson_sampler(**options | {"seed": seed})
        sampler.begin_segment(1)
        drawn.append(sampler.sample_audio_frame(bos_wins[:1], int32(1))[0, 0].item())
    assert set(drawn) != {B}  # BOS repeats the first frame's, and is drawn again


def whole_segment(convention: str, logits: torch.Tensor, options: dict) -> torch.Tensor:
    """All frames [N, C] of a segment, from the all-BOS frame on; step n of the logits gives frame n."""
    sampler = SamplerState(2, TRANSFORMERS, 7)
    reset(sampler, 1, convention, **options, prompt_ids=[TEXT] * C + [AUDIO_BOS])
    if convention == "transformers":
        return segment(sampler, logits)
    return torch.cat([sampler.begin_segment(1)[None], segment(sampler, logits[1:])])


@pytest.mark.parametrize("convention", ["boson", "transformers"])
@pytest.mark.parametrize(("at", "codebook"), [(14, 0), (14, 2), (13, 7), (3, 1), (1, 0)])
def test_resumed_audio_goes_on_as_if_uninterrupted(convention, at, codebook):
    logits = logits_with_eos(40, at, codebook, seed=3)
    options = {"temperature": 0.8, "top_k": 10, "top_p": 0.9, "ras_win_len": 7, "seed": 5}
    frames = whole_segment(convention, logits, options)
    assert C < len(frames) < 40
    reference_audio = torch.randint(V - 2, (9, C), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    for begun in range(1, len(frames)):
        sampler = SamplerState(2, TRANSFORMERS, 7)
        past = torch.cat([reference_audio, frames[:begun]]) if begun > 7 else frames[:begun]
        reset(sampler, 1, convention, **options, frames=past, prompt_ids=[TEXT] * C + [AUDIO_BOS], num_resumed=begun)
        assert torch.equal(segment(sampler, logits[begun:]), frames[begun:]), begun


def test_boson_resumes_although_other_codebooks_drew_eos_by_chance():
    """Codebooks 0 to 2 opened the end, 4 and then 3 drew EOS besides: the end climbs from 2."""
    begun = torch.full((C + 4, C), 5)
    for column in range(C):
        begun[column, column:] = B
    begun[-3, [0, 1, 2, 4]] = E
    begun[-2, [0, 1, 2, 3]] = E
    begun[-1, [0, 1, 2, 3]] = E
    sampler = boson_sampler(frames=begun, num_resumed=len(begun))
    logits = random((20, C, V))
    logits[..., [B, E]] = -20.0
    frames = segment(sampler, logits)
    assert torch.equal((frames == E).sum(1), torch.arange(5, C))


@pytest.mark.parametrize("convention", ["boson", "transformers"])
def test_resumed_audio_begins_at_its_first_frame_of_bos(convention):
    """Codebook 0 may draw BOS while the others are still delayed: a second frame of BOS begins no segment."""
    sampler = SamplerState(2, TRANSFORMERS, 7)
    reset(sampler, 1, convention, frames=torch.full((2, C), B), prompt_ids=[TEXT] * C + [AUDIO_BOS], num_resumed=2)
    frames = segment(sampler, logits_with_eos(C, at=C - 1))
    assert (frames == B).sum(1).tolist() == [max(0, C - 2 - step) for step in range(C)]


def test_a_boson_segment_whose_last_codebook_stayed_open_has_ended():
    begun = torch.full((C + 8, C), 5)
    begun[0] = B
    for closed in range(1, C):
        begun[C + closed, :closed] = E
    begun[C, 0] = E
    with pytest.raises(PromptError, match="partial_audio must not have ended, got EOS in its last codebook"):
        boson_sampler(frames=begun, num_resumed=len(begun))


@pytest.mark.parametrize("convention", ["boson", "transformers"])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 11])
def test_the_ring_holds_the_last_frames_of_the_prompt(convention, count):
    length = 4
    past = torch.randint(V, (count, C), generator=torch.Generator().manual_seed(0))
    sampler = SamplerState(3, TRANSFORMERS, length)
    reset(sampler, 2, convention, frames=past if count else None, prompt_ids=[AUDIO_BOS])
    assert sampler.state[2, StateField.HISTORY_COUNT] == count
    for frame in range(max(0, count - length), count):
        assert torch.equal(sampler.history[2, frame % length].long(), past[frame])


def test_a_new_sequence_finds_nothing_of_the_last_one():
    logits = logits_with_eos(40, at=9, seed=1)
    options = {"temperature": 1.1, "top_k": 12, "top_p": 0.8, "ras_win_len": 5, "ras_win_max_num_repeat": 1, "seed": 9}
    fresh, used = boson_sampler(**options), boson_sampler(temperature=0.3, ras_win_len=7, seed=1)
    used.begin_segment(1)
    segment(used, logits_with_eos(40, at=13))
    reset(used, 1, "boson", **options)
    for sampler in (fresh, used):
        sampler.begin_segment(1)
    assert torch.equal(segment(fresh, logits), segment(used, logits))


def test_text_takes_the_slot_s_parameters():
    sampler = boson_sampler(temperature=1.0, top_k=3, seed=2)
    logits = random((1, 271), seed=8).expand(200, 271).contiguous()
    slots = torch.ones(200, dtype=torch.int32)
    tokens = sampler.sample_text(logits, slots, torch.arange(200, dtype=torch.int32))
    assert set(tokens.tolist()) == set(logits[0].topk(3).indices.tolist())


PROMPTS = {
    "after text": [TEXT] * 20 + [AUDIO_BOS],
    "inside the opening": [TEXT] * 20 + [AUDIO_BOS] + [AUDIO] * 3,
    "one frame before the window forgets": [AUDIO_BOS] + [AUDIO] * (C - 1),
    "past the window": [AUDIO_BOS] + [AUDIO] * C,
    "no audio": [TEXT] * 20,
    "shorter than the window": [TEXT, TEXT, AUDIO_BOS],
    "one id": [AUDIO_BOS],
    "two begins": [TEXT] * 9 + [AUDIO_BOS, TEXT, AUDIO_BOS],
    "inside the ending": [AUDIO_BOS, *[AUDIO] * 9, *[DELAY] * 3],
    "a delay token in the window": [AUDIO] * 9 + [DELAY] * 3 + [TEXT, TEXT, AUDIO_BOS],
    "ending while opening": [AUDIO_BOS, AUDIO, DELAY, DELAY],
}


def transformers_frames(prompt: list[int], logits: torch.Tensor) -> torch.Tensor:
    """The greedy frames [N, C] of transformers' own delay pattern for logits [steps, C, V]."""
    pytest.importorskip("tests.helpers.transformers_reference", exc_type=ImportError)
    from transformers.models.higgs_audio_v2.generation_higgs_audio_v2 import HiggsAudioV2DelayPatternLogitsProcessor

    processor = HiggsAudioV2DelayPatternLogitsProcessor(
        delay_pattern=list(range(1, C + 1)),
        audio_bos_token_id=AUDIO_BOS,
        audio_eos_token_id=DELAY,
        audio_stream_bos_id=B,
        audio_stream_eos_id=E,
        num_codebooks=C,
        codebook_size=V,
    )
    ids, frames = list(prompt), []
    for step in logits:
        codes = processor(torch.tensor([ids]), step.reshape(1, -1)).argmax(-1)
        frames.append(codes)
        if (codes == E).all():
            break
        ids.append(DELAY if (codes == E).any() or ids[-1] == DELAY else AUDIO)
    return torch.stack(frames)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize(("at", "codebook"), [(59, 0), (45, 0), (20, 5), (9, 7), (4, 1), (1, 0)])
def test_delay_pattern_equals_transformers(prompt, at, codebook):
    logits = logits_with_eos(60, at, codebook, seed=at)
    sampler = SamplerState(2, TRANSFORMERS, 1)
    reset(sampler, 1, "transformers", prompt_ids=prompt[-C:])
    frames, expected = segment(sampler, logits), transformers_frames(prompt, logits)
    assert torch.equal(frames.long(), expected)
    assert sampler.is_active(1) == bool((expected[-1] != E).any())


def test_delay_pattern_equals_transformers_where_eos_comes_freely():
    logits = random((60, C, V), seed=11) * 2
    sampler = SamplerState(1, TRANSFORMERS, 1)
    reset(sampler, 0, "transformers", prompt_ids=[TEXT] * 7 + [AUDIO_BOS])
    expected = transformers_frames([TEXT] * 7 + [AUDIO_BOS], logits)
    assert torch.equal(segment(sampler, logits, slot=0).long(), expected)
