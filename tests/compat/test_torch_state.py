"""The state of torch changes nothing in the faces of boson_multimodal and of transformers either."""

import asyncio
import importlib

import pytest
import torch

from higgs_native.compat.boson.serve_engine import HiggsAudioServeEngine
from higgs_native.prompt.messages import ChatMLSample, Message
from higgs_native.testing.random_checkpoint import write_demo_checkpoint
from tests.helpers.torch_states import STATES


@pytest.fixture(params=STATES)
def state(request):
    return STATES[request.param]


def test_boson(state, tmp_path):
    write_demo_checkpoint(tmp_path)
    sample = ChatMLSample([Message("user", "Hello there.")])

    async def deltas(engine):
        stream = engine.generate_delta_stream(sample, 20, seed=1, force_audio_gen=True)
        return [delta.audio_tokens async for delta in stream if delta.audio_tokens is not None]

    def outputs():
        engine = HiggsAudioServeEngine(tmp_path, tmp_path / "audio_tokenizer", device="cpu")
        response = engine.generate(sample, 20, seed=1, force_audio_gen=True)
        streamed = torch.stack(asyncio.run(deltas(engine)), dim=1)
        return torch.from_numpy(response.generated_audio_tokens), torch.from_numpy(response.audio), streamed

    expected = outputs()
    with state():
        found = outputs()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


def test_transformers(state):
    reference = importlib.import_module("tests.helpers.transformers_reference")  # skips where transformers is missing
    accelerate = importlib.import_module("higgs_native.compat.transformers").accelerate

    model = reference.tiny_model(1)
    inputs = reference.model_inputs(model.config, [reference.random_prompt(model.config, 0, 20, (7,))])

    def outputs():
        accelerate(model)
        torch.manual_seed(0)
        return model.generate(
            **inputs, max_new_tokens=20, do_sample=True, return_dict_in_generate=True, output_logits=True
        )

    expected = outputs()
    with state():
        found = outputs()
    assert torch.equal(found.audio_sequences, expected.audio_sequences)
    for one, other in zip(found.logits, expected.logits, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
