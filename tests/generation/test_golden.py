"""Generation against the outputs of the original implementation (tests/golden/boson_lm)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from higgs_native.convention import Convention
from higgs_native.generation.model import HiggsAudioModel, generate_batch
from higgs_native.generation.requests import GenerationRequest
from higgs_native.generation.sampling_params import DEFAULT_STOP_STRINGS, SamplingParams
from tests.helpers.devices import DEVICES


FOLDER = Path(__file__).parents[1] / "golden" / "boson_lm"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"]


@pytest.fixture(scope="module", params=DEVICES)
def model(request) -> HiggsAudioModel:
    return HiggsAudioModel.from_pretrained(FOLDER, request.param)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "cases.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_generation_equals_the_original(model, tensors, name):
    case = CASES[name]
    prompt = tensors[f"{name}.input_ids"]
    references = [tensors[key] for key in sorted(tensors) if key.startswith(f"{name}.reference_codes.")]
    output = model.generate(
        prompt[None],
        references,
        convention=Convention.BOSON,
        max_new_tokens=case["max_new_tokens"],
        temperature=0,
        ras_win_len=None,
        output_logits=True,
    )
    assert output.text_ids == tensors[f"{name}.sequences"][len(prompt) :].tolist()
    assert len(output.audio_segments) == case["num_audio_segments"]
    for index, segment in enumerate(output.audio_segments):
        assert torch.equal(segment, tensors[f"{name}.audio_tokens.{index}"].long())
    for kind, logits in (("audio", output.audio_logits), ("text", output.text_logits)):
        assert len(logits) == case[f"num_{kind}_steps"]
        if len(logits):
            torch.testing.assert_close(logits.cpu(), tensors[f"{name}.{kind}_logits"], rtol=0, atol=1e-4)
    assert output.completion_tokens == case["num_audio_steps"] + case["num_text_steps"]
    stop_ids = [model.tokenizer.token_to_id(stop) for stop in DEFAULT_STOP_STRINGS]
    assert output.finish_reason == ("stop" if output.text_ids[-1] in stop_ids else "length")


def test_a_batch_gives_what_each_prompt_gives_alone(model, tensors):
    greedy = SamplingParams(0, ras_win_len=None, max_new_tokens=60)
    for sampling in (greedy, SamplingParams(0.9, 20, 0.9, 7, 2, seed=5, max_new_tokens=60)):
        requests = [
            GenerationRequest(
                tensors[f"{name}.input_ids"],
                [tensors[key] for key in sorted(tensors) if key.startswith(f"{name}.reference_codes.")],
                sampling=sampling,
            )
            for name in CASES
        ]
        for request, batched in zip(requests, generate_batch(model, requests), strict=True):
            (alone,) = generate_batch(model, [request])
            assert alone.text_ids == batched.text_ids
            assert alone.finish_reason == batched.finish_reason
            assert len(alone.audio_segments) == len(batched.audio_segments)
            for one, other in zip(alone.audio_segments, batched.audio_segments, strict=True):
                assert torch.equal(one, other)
