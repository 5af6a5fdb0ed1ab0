"""A small model, and requests of all kinds for it: each with its own length, convention and sampling."""

import random

import torch

from higgs_native.convention import Convention
from higgs_native.generation.model import HiggsAudioModel
from higgs_native.generation.requests import GenerationRequest
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.ops._library import EMULATES_CUDA
from higgs_native.ops.formats import QUANTIZED_FORMATS
from higgs_native.prompt.chat import build_prompt
from higgs_native.prompt.messages import AudioContent, Message


MAX_LENGTH = 256
NUM_SLOTS = 8


def load(folder, format: str = "float32") -> HiggsAudioModel:
    quantized = format in QUANTIZED_FORMATS
    return HiggsAudioModel.from_pretrained(
        folder,
        dtype="auto" if quantized else format,
        quantization=format if quantized else None,
        max_cache_length=MAX_LENGTH,
    )


def random_request(model: HiggsAudioModel, index: int) -> GenerationRequest:
    """Return a request whose length, convention and sampling depend on `index`; some begin alike, some write text."""
    rng = random.Random(index)
    convention = rng.choice([Convention.BOSON, Convention.TRANSFORMERS])
    voice = rng.randrange(3)
    generator = torch.Generator().manual_seed(voice)
    codes = [torch.randint(0, 10, (model.config.num_codebooks, 20 + 15 * voice), generator=generator)]
    ends_in_audio = convention == Convention.TRANSFORMERS or rng.random() < 0.8
    text = "".join(rng.choice("abcdefgh ") for _ in range(rng.randrange(1, 60)))
    prompt = f"<|begin_of_text|>Voice {voice}.<|AUDIO_OUT|> {text}" + "<|audio_out_bos|>" * ends_in_audio
    ids = torch.tensor([model.tokenizer.encode(prompt, add_special_tokens=False).ids])
    if model.config.convention is Convention.HIGGS_TTS_3:
        convention = Convention.HIGGS_TTS_3
        prompt = [Message("system", [f"Voice {voice}.", AudioContent(codes=codes[0])]), Message("user", text)]
        ids = build_prompt(prompt, model.tokenizer, convention).input_ids
    return GenerationRequest(
        ids,
        codes,
        convention,
        SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.0]),
            top_k=rng.choice([None, 5, 50]),
            top_p=rng.choice([None, 0.9]),
            ras_win_len=rng.choice([None, 7, 20]),
            seed=index,
            max_new_tokens=rng.randrange(4, 12) if EMULATES_CUDA else rng.randrange(1, 90),
        ),
        adapter=rng.choice([None, *model.adapters]),
    )


def assert_equal(ours, alone):
    assert (ours.text_ids, ours.finish_reason, ours.completion_tokens) == (
        alone.text_ids,
        alone.finish_reason,
        alone.completion_tokens,
    )
    assert len(ours.audio_segments) == len(alone.audio_segments)
    assert all(torch.equal(a, b) for a, b in zip(ours.audio_segments, alone.audio_segments, strict=True))
