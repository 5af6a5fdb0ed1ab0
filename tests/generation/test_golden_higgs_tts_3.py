"""Generation with Higgs TTS 3 against the outputs of Boson's serving code (tests/golden/higgs3_lm)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from higgs_native import ops
from higgs_native.convention import Convention
from higgs_native.errors import ParameterError, PromptError
from higgs_native.generation.conventions import behavior_of
from higgs_native.generation.delay_pattern import SegmentReader, build_delay_pattern, num_delayed, segment_codes
from higgs_native.generation.model import HiggsAudioModel, generate_batch
from higgs_native.generation.requests import GenerationRequest
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.ops._library import EMULATES_CUDA
from tests.helpers.devices import DEVICES


FOLDER = Path(__file__).parents[1] / "golden" / "higgs3_lm"
GOLDEN = json.loads((FOLDER / "cases.json").read_text())
CASES = GOLDEN["cases"]
TENSORS = load_file(FOLDER / "cases.safetensors")
NUM_CODES = 30


@pytest.fixture(scope="module", params=DEVICES)
def model(request) -> HiggsAudioModel:
    return HiggsAudioModel.from_pretrained(FOLDER, request.param, dtype=torch.float32)


def references(name: str) -> list[torch.Tensor]:
    """The codes of a case's recordings, in the order of the prompt."""
    names = [f"{name}.reference_codes", *(f"{name}.context_codes.{i}" for i in range(9))]
    return [TENSORS[key] for key in names if key in TENSORS]


def collapsed(name: str) -> torch.Tensor:
    """The prompt [1, S] with one placeholder per recording."""
    ids, lengths = TENSORS[f"{name}.prompt_ids"].tolist(), [codes.shape[1] + 7 for codes in references(name)]
    collapsed = []
    while ids:
        token = ids.pop(0)
        collapsed.append(token)
        if token == -100:
            del ids[: lengths.pop(0) - 1]
    return torch.tensor([collapsed])


@pytest.mark.parametrize("name", CASES)
def test_generation_equals_the_original(model, name):
    case = CASES[name]
    output = model.generate(
        TENSORS[f"{name}.prompt_ids"][None],
        delayed_frames=TENSORS.get(f"{name}.fed_rows"),
        max_new_tokens=case["max_new_tokens"],
        temperature=0,
        output_logits=True,
    )
    assert output.prompt_tokens == case["prompt_tokens"]
    assert output.completion_tokens == case["rows"]
    assert output.finish_reason == ("stop" if case["finished"] else "length")
    (segment,) = output.audio_segments
    assert torch.equal(segment.T, TENSORS[f"{name}.rows"].long())
    torch.testing.assert_close(output.audio_logits.cpu(), TENSORS[f"{name}.logits"], rtol=0, atol=1e-4)
    codes = segment_codes(segment, model.config, Convention.HIGGS_TTS_3)
    assert torch.equal(codes, TENSORS[f"{name}.undelayed"].long())
    decodable = behavior_of(Convention.HIGGS_TTS_3).decodable(codes, NUM_CODES)
    assert torch.equal(decodable, TENSORS[f"{name}.codes"].long())


@pytest.mark.parametrize("name", [name for name in CASES if references(name)])
def test_references_as_codes_equal_their_delayed_rows(model, name):
    rows = torch.cat([build_delay_pattern(codes, model.config, Convention.HIGGS_TTS_3) for codes in references(name)])
    assert torch.equal(rows, TENSORS[f"{name}.fed_rows"].int())
    lengths = [num_delayed(codes.shape[1], model.config, Convention.HIGGS_TTS_3) for codes in references(name)]
    assert sum(lengths) == len(rows)
    output = model.generate(collapsed(name), references(name), max_new_tokens=100, temperature=0)
    expected = TENSORS[f"{name}.rows"][:100].T.long()
    assert torch.equal(output.audio_segments[0][:, : expected.shape[1]], expected)


@pytest.mark.parametrize("name", CASES)
def test_codes_are_read_frame_by_frame(name):
    config = HiggsAudioModel.from_pretrained(FOLDER).config
    reader = SegmentReader(config, Convention.HIGGS_TTS_3)
    read = [reader.read(row[:, None]) for row in TENSORS[f"{name}.rows"].long()]
    assert [codes.shape[1] for codes in read] == [0] * 7 + [1] * (len(read) - 7)
    assert torch.equal(torch.cat(read, dim=1), TENSORS[f"{name}.undelayed"].long())


def test_the_defaults_are_those_of_the_published_endpoint(model):
    default = behavior_of(Convention.HIGGS_TTS_3).default_sampling
    assert (default.temperature, default.top_p, default.top_k, default.max_new_tokens) == (0.8, 0.8, 30, 2048)
    assert default.ras_win_len is None
    chosen = model.generate(collapsed("tags"), seed=4, max_new_tokens=40)
    sampling = SamplingParams(0.8, 30, 0.8, None, seed=4, max_new_tokens=40, stop_strings=None)
    given = model.generate(collapsed("tags"), sampling=sampling)
    assert torch.equal(chosen.audio_segments[0], given.audio_segments[0])


@pytest.mark.skipif(EMULATES_CUDA, reason="the emulation is slow")
def test_a_batch_gives_what_each_prompt_gives_alone(model):
    greedy = SamplingParams(0, ras_win_len=None, max_new_tokens=100)
    for sampling in (greedy, SamplingParams(0.9, 20, 0.9, None, seed=5, max_new_tokens=60)):
        requests = [GenerationRequest(collapsed(name), references(name), sampling=sampling) for name in CASES]
        for request, batched in zip(requests, generate_batch(model, requests), strict=True):
            (alone,) = generate_batch(model, [request])
            assert alone.finish_reason == batched.finish_reason
            assert torch.equal(alone.audio_segments[0], batched.audio_segments[0])


@pytest.mark.parametrize("begun", [1, 5, 8, 20, 29])
def test_a_begun_segment_is_continued(model, begun):
    """Also after codebook 0 has drawn EOS, in row 26 of 33."""
    rows = TENSORS["zero_shot.rows"].long()
    output = model.generate(
        TENSORS["zero_shot.prompt_ids"][None], partial_audio=rows[:begun].T, max_new_tokens=100, temperature=0
    )
    assert torch.equal(output.audio_segments[0], rows.T)
    assert output.completion_tokens == len(rows) - begun


def test_what_does_not_fit_the_convention_is_named(model):
    ids, rows = TENSORS["zero_shot.prompt_ids"][None], TENSORS["zero_shot.rows"].T
    with pytest.raises(ParameterError, match="convention must be 'higgs_tts_3' for this model, got 'boson'"):
        model.generate(ids, convention="boson")
    with pytest.raises(PromptError, match="partial_audio must not have ended, got EOS of codebook 0 in frame 26"):
        model.generate(ids, partial_audio=rows)
    with pytest.raises(PromptError, match=r"delayed_frames must have shape \[16, 8\]"):
        model.generate(TENSORS["clone.transcript.prompt_ids"][None], delayed_frames=rows.T)
    with pytest.raises(PromptError, match="input_ids must be between 0 and 383, got -1"):
        model.generate(torch.tensor([[5, -1]]))
    with pytest.raises(PromptError, match="reference_codes must have 0 items, one per audio placeholder"):
        model.generate(ids, references("clone.transcript"))


@pytest.mark.parametrize("case", GOLDEN["process"], ids=lambda case: case["name"])
def test_distributions_equal_the_original(case):
    logits = TENSORS[f"process.{case['logits']}.logits"]
    scores, rows = torch.empty_like(logits), len(logits)
    ops.process_logits(
        scores,
        logits,
        torch.full((rows,), float(case["temperature"])),
        torch.full((rows,), case["top_k"] or 0, dtype=torch.int32),
        torch.full((rows,), 1.0 if case["top_p"] is None else case["top_p"]),
    )
    assert (scores > -torch.inf).sum(dim=1).tolist() == case["kept"]
    expected = TENSORS[f"process.{case['name']}.probabilities"]
    torch.testing.assert_close(scores.softmax(dim=1), expected, rtol=1e-5, atol=1e-6)
