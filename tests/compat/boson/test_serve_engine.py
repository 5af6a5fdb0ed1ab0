"""The face of `boson_multimodal`, against its outputs (tests/golden/boson_lm)."""

import asyncio
import base64
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, normalizers

from higgs_native import replies
from higgs_native.compat import boson
from higgs_native.compat.boson import (
    AudioContent,
    ChatMLSample,
    HiggsAudioServeEngine,
    HiggsAudioStreamerDelta,
    Message,
    TextContent,
    load_higgs_audio_tokenizer,
    revert_delay_pattern,
)
from higgs_native.compat.boson.text_tokenizer import TextTokenizer
from higgs_native.errors import AudioError, CheckpointError, ParameterError, PromptError
from higgs_native.generation.model import generate_batch
from higgs_native.generation.requests import GenerationOutput
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.pipeline import EMBEDDED_VOICE
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer
from tests.compat.boson.golden import CASES, FOLDER, GREEDY, RATE, collect, noise, sample
from tests.helpers.waiting import join


@pytest.mark.parametrize("name", CASES)
def test_the_golden_cases_through_the_engine(engine, tensors, name):
    case = CASES[name]
    response = engine.generate(
        sample(tensors, name), case["max_new_tokens"], force_audio_gen=case["force_audio_gen"], **GREEDY
    )
    segments = [tensors[f"{name}.audio_tokens.{index}"].long() for index in range(case["num_audio_segments"])]
    expected = tensors[f"{name}.sequences"][len(tensors[f"{name}.input_ids"]) :]
    assert response.generated_text_tokens.tolist() == expected.tolist()
    assert response.generated_text == engine.tokenizer.decode(expected.tolist(), skip_special_tokens=False)
    if segments:
        assert np.array_equal(response.generated_audio_tokens, segments[0].numpy())
        codes = [revert_delay_pattern(segment)[:, 1:-1].clip(0, 29) for segment in segments]
        audio = np.concatenate([engine.audio_tokenizer.decode(part[None])[0, 0] for part in codes if part.shape[1]])
        assert np.array_equal(response.audio, audio)
    else:
        assert (response.audio, response.generated_audio_tokens) == (None, None)
    assert response.sampling_rate == RATE
    assert response.finish_reason in ("stop", "length")
    # The original's count: the ids of the reply, a placeholder per segment among them, and the frames.
    completion = len(expected) + sum(segment.shape[1] for segment in segments)
    assert response.usage["completion_tokens"] == completion
    assert response.usage["total_tokens"] == response.usage["prompt_tokens"] + completion


@pytest.mark.parametrize("name", ["clone_system.free", "plain.force", "two_speakers.force", "unicode.free"])
def test_the_deltas_are_the_reply(engine, tensors, name):
    arguments = (sample(tensors, name), 80)
    options = {"force_audio_gen": CASES[name]["force_audio_gen"], **GREEDY}
    response = engine.generate(*arguments, **options)
    *deltas, last = asyncio.run(collect(engine.generate_delta_stream(*arguments, **options)))
    assert last == HiggsAudioStreamerDelta(finish_reason=response.finish_reason)
    assert all(delta.finish_reason is None for delta in deltas)
    tokens = [delta.text_tokens for delta in deltas if delta.text_tokens is not None]
    assert torch.cat(tokens).tolist() == response.generated_text_tokens.tolist()
    frames = [delta.audio_tokens for delta in deltas if delta.audio_tokens is not None]
    if response.generated_audio_tokens is None:
        assert not frames
    else:
        assert np.array_equal(torch.stack(frames, dim=1), response.generated_audio_tokens)
    # A placeholder stands where the frames begin.
    for before, delta in zip([None, *deltas], deltas, strict=False):
        if delta.audio_tokens is not None and bool((delta.audio_tokens == 30).all()):
            assert before.text == "<|AUDIO_OUT|>"


def test_eight_threads_get_what_each_gets_alone(engine, tensors):
    calls = [
        {"name": name, "seed": seed, "temperature": temperature}
        for seed, temperature in ((1, 0.0), (2, 1.0))
        for name in ("clone_assistant.force", "clone_system.free", "plain.force", "two_speakers.force")
    ]

    def run(call):
        force = CASES[call["name"]]["force_audio_gen"]
        options = {"force_audio_gen": force, "seed": call["seed"], "temperature": call["temperature"]}
        response = engine.generate(sample(tensors, call["name"]), 60, **options)
        return response.generated_audio_tokens, response.generated_text_tokens, response.audio

    alone = [run(call) for call in calls]
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            for results, expected in zip(pool.map(run, calls), alone, strict=True):
                for one, other in zip(results, expected, strict=True):
                    assert np.array_equal(one, other)


def test_streams_and_calls_side_by_side(engine, tensors):
    options = {"max_new_tokens": 40, "force_audio_gen": True, "temperature": 1.0}

    async def run(seed):
        stream = engine.generate_delta_stream(sample(tensors, "plain.force"), seed=seed, **options)
        return torch.stack([d.audio_tokens for d in await collect(stream) if d.audio_tokens is not None], dim=1)

    async def together():
        return await asyncio.gather(*(run(seed) for seed in range(4)))

    for seed, frames in enumerate(asyncio.run(together())):
        alone = engine.generate(sample(tensors, "plain.force"), seed=seed, **options)
        assert np.array_equal(frames[:, : alone.generated_audio_tokens.shape[1]], alone.generated_audio_tokens)


def test_an_error_in_the_thread_reaches_the_consumer(engine, tensors, monkeypatch):

    def failing(model, requests):
        (request,) = requests

        def on_third(frame, frames=[]):  # noqa: B006 (counts)
            frames.append(frame)
            if len(frames) == 3:
                raise MemoryError("no more")
            request.on_frame(frame)

        return generate_batch(model, [replace(request, on_frame=on_third)])

    monkeypatch.setattr(replies, "generate_batch", failing)
    with pytest.raises(MemoryError, match="no more"):
        asyncio.run(collect(engine.generate_delta_stream(sample(tensors, "plain.force"), 40, force_audio_gen=True)))


def test_leaving_the_deltas_early_ends_the_thread(engine, tensors):
    async def run():
        async for delta in engine.generate_delta_stream(sample(tensors, "plain.force"), 8000, force_audio_gen=True):
            if delta.audio_tokens is not None:
                break

    asyncio.run(run())
    for thread in threading.enumerate():
        if thread.name == "higgs-native":  # in its last step
            join(thread)


def test_the_parameters_reach_the_model(engine, monkeypatch):
    seen = []

    def generate_batch(model, requests):
        seen.extend(requests)
        return [GenerationOutput([], [], "stop", 1, 0)]

    monkeypatch.setattr(replies, "generate_batch", generate_batch)
    messages = ChatMLSample([Message("user", "Hello.")])
    response = engine.generate(messages, 7)
    assert seen[0].convention == "boson"
    assert seen[0].sampling == SamplingParams(0.7, None, 0.95, 7, 2, None, 7, ("<|end_of_text|>", "<|eot_id|>"))
    assert (response.audio, response.generated_text, response.finish_reason) == (None, "", "stop")
    engine.generate(messages, 7, 0.0, 5, 1.0, ["x"], True, -1, 3, 9)
    assert seen[1].sampling == SamplingParams(0.0, 5, 1.0, -1, 3, 9, 7, ["x"])


@pytest.mark.parametrize("steps", [1, 5, 9, 10])
def test_audio_of_less_than_a_frame_is_none(engine, steps):
    response = engine.generate(ChatMLSample([Message("user", "Hi.")]), steps, force_audio_gen=True, **GREEDY)
    assert (response.audio is None) == (steps < 10)
    assert response.generated_audio_tokens.shape == (8, steps)
    assert response.finish_reason == "length"


def test_a_replaced_audio_tokenizer_encodes_and_decodes(audio_tokenizer_folder, tmp_path):
    write_audio_tokenizer(tmp_path, replace(DEMO_AUDIO_TOKENIZER_CONFIG, codebook_size=30), seed=5)
    conversation = ChatMLSample(
        [Message("assistant", AudioContent(raw_audio=(noise(0.5), RATE))), Message("user", "Hi.")]
    )
    options = {"max_new_tokens": 20, "force_audio_gen": True, **GREEDY}
    other = HiggsAudioServeEngine(str(FOLDER), str(tmp_path)).generate(conversation, **options)
    engine = HiggsAudioServeEngine(str(FOLDER), str(audio_tokenizer_folder))
    first = engine.generate(conversation, **options)
    engine.audio_tokenizer = load_higgs_audio_tokenizer(str(tmp_path))
    replaced = engine.generate(conversation, **options)
    assert np.array_equal(replaced.audio, other.audio)
    assert np.array_equal(replaced.generated_audio_tokens, other.generated_audio_tokens)
    assert not np.array_equal(replaced.audio, first.audio)
    streamed = asyncio.run(collect(engine.generate_delta_stream(conversation, **options)))
    frames = torch.stack([delta.audio_tokens for delta in streamed if delta.audio_tokens is not None], dim=1)
    assert np.array_equal(frames, other.generated_audio_tokens)


def test_a_replaced_model_and_a_replaced_tokenizer(audio_tokenizer_folder, tmp_path):
    engine = HiggsAudioServeEngine(str(FOLDER), str(audio_tokenizer_folder))
    conversation = ChatMLSample([Message("user", "Hi.")])
    options = {"max_new_tokens": 20, "force_audio_gen": True, **GREEDY}
    first = engine.generate(conversation, **options).generated_audio_tokens
    tokenizer = engine.tokenizer
    engine.model = boson.HiggsAudioModel.from_pretrained(FOLDER, quantization="int4")
    replaced = engine.generate(conversation, **options)
    assert engine.model.native.tokenizer is tokenizer.backend_tokenizer
    assert not np.array_equal(replaced.generated_audio_tokens, first)
    longer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    longer.normalizer = normalizers.Prepend("Well, ")
    engine.tokenizer = TextTokenizer(longer)
    assert engine.generate(conversation, **options).usage["prompt_tokens"] > replaced.usage["prompt_tokens"]


def test_what_the_engine_does_not_have_is_one_line(engine):
    for thing, message in (
        (engine, r"the engine has no to; docs/compat_boson\.md lists what it has"),
        (engine.model, "the model has no state_dict: its weights are packed for the engine, and it only generates"),
        (engine.audio_tokenizer, "the audio tokenizer has no semantic_model: its networks are packed"),
        (engine.tokenizer, "the engine's tokenizer has no apply_chat_template; transformers' AutoTokenizer"),
        (engine.model.config, "the configuration has no audio_tower"),
    ):
        name = message.split(" has no ")[1].replace(";", " ").replace(":", " ").split()[0]
        assert not hasattr(thing, name)
        with pytest.raises(AttributeError, match=message):
            getattr(thing, name)


def test_what_can_not_be_asked(engine):
    for conversation, error, message in (
        ([], PromptError, "conversation must hold at least one message, got none"),
        ([Message("user", AudioContent(audio_url=""))], PromptError, "must name a recording, got neither"),
        (
            [Message("user", AudioContent(audio_url="missing.wav"))],
            AudioError,
            "existing file .*missing.wav",
        ),
        ([Message("user", "a" * 9000)], PromptError, "max_cache_length"),
    ):
        with pytest.raises(error, match=message):
            engine.generate(ChatMLSample(conversation), 10)
    with pytest.raises(ParameterError, match="temperature"):
        engine.generate(ChatMLSample([Message("user", "a")]), 10, temperature=-1)
    for conversation, message in (
        (None, r"conversation must be a list of Message\(role, content\), got None"),
        (ChatMLSample(None), "conversation must be a list"),
        (ChatMLSample([{"role": "user", "content": "a"}]), r"must hold Message\(role, content\) only, got {'content'"),
    ):
        with pytest.raises(PromptError, match=message):
            engine.generate(conversation, 10)


def test_without_a_text_head_audio_is_to_be_forced():
    """The small voice has none."""
    engine = HiggsAudioServeEngine(str(EMBEDDED_VOICE), str(EMBEDDED_VOICE / "audio_tokenizer"))
    conversation = ChatMLSample([Message("system", "Generate audio following instruction."), Message("user", "Hi.")])
    with pytest.raises(CheckpointError, match=r"no text head .*; with force_audio_gen=True it speaks"):
        engine.generate(conversation, 10)
    with pytest.raises(CheckpointError, match=r"no text head .*; with force_audio_gen=True it speaks"):
        asyncio.run(collect(engine.generate_delta_stream(conversation, 10)))
    assert engine.generate(conversation, 20, force_audio_gen=True).audio is not None


def test_recordings_in_every_role_reach_the_model_with_offset_and_duration(
    audio_tokenizer_folder, monkeypatch, tmp_path
):
    engine = HiggsAudioServeEngine(str(FOLDER), str(audio_tokenizer_folder))
    soundfile.write(tmp_path / "a.wav", noise(2.0), RATE, subtype="FLOAT")
    encoded = base64.b64encode((tmp_path / "a.wav").read_bytes()).decode()
    seen = []

    def generate_batch(model, requests):
        seen.extend(requests[0].reference_codes)
        return [GenerationOutput([], [], "stop", 1, 0)]

    monkeypatch.setattr(replies, "generate_batch", generate_batch)
    path = str(tmp_path / "a.wav")
    messages = [
        Message("system", [TextContent("SPEAKER0: "), AudioContent(audio_url=path, offset=0.5, duration=1.0)]),
        Message("user", AudioContent(audio_url="placeholder", raw_audio=encoded)),
        Message("assistant", AudioContent(audio_url=path, duration=0.4)),
        Message("user", "Go on."),
    ]
    engine.generate(ChatMLSample(messages), 10)
    encode = engine.audio_tokenizer.encode
    whole, middle, start = noise(2.0), noise(2.0)[12000:36000], noise(2.0)[:9600]
    for codes, samples in zip(seen, (middle, whole, start), strict=True):
        assert torch.equal(codes, encode(samples, RATE))


def test_text_that_ends_inside_of_a_character_comes_at_the_end(engine, tensors, monkeypatch):
    begun = engine.tokenizer.encode("你", add_special_tokens=False)[:1]

    def generate_batch(model, requests):
        requests[0].on_token(begun[0])
        return [GenerationOutput([], begun, "length", 1, 1)]

    monkeypatch.setattr(replies, "generate_batch", generate_batch)
    deltas = asyncio.run(collect(engine.generate_delta_stream(sample(tensors, "plain.force"), 1)))
    assert [delta.text for delta in deltas] == ["", "\ufffd", None]
    assert deltas[-1].finish_reason == "length"


def test_what_is_handed_out_can_be_changed(engine, tensors):
    """Generation runs in inference mode, whose tensors refuse that outside of it."""
    streamed = asyncio.run(collect(engine.generate_delta_stream(sample(tensors, "clone_system.free"), 80, **GREEDY)))
    handed_out = [tensor for delta in streamed for tensor in (delta.text_tokens, delta.audio_tokens)]
    handed_out = [tensor for tensor in handed_out if tensor is not None]
    assert {len(tensor) for tensor in handed_out} == {1, 8}
    for tensor in handed_out:
        assert not tensor.is_inference()
        tensor += 1


def test_the_example_of_the_docs_runs(audio_tokenizer_folder, tmp_path, monkeypatch):
    text = (Path(__file__).parents[3] / "docs" / "compat_boson.md").read_text()
    code = text.split("```python\n")[2].split("```")[0]
    code = code.replace("bosonai/higgs-audio-v2-generation-3B-base", str(FOLDER))
    code = code.replace("bosonai/higgs-audio-v2-tokenizer", str(audio_tokenizer_folder))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert isinstance(names["output"], boson.HiggsAudioResponse)
    assert (tmp_path / "output.wav").is_file() == (names["output"].audio is not None)


def test_signatures_and_fields_are_those_of_the_original():
    def names(function):
        return [name for name in inspect.signature(function).parameters if name != "self"]

    generate = "chat_ml_sample max_new_tokens temperature top_k top_p stop_strings force_audio_gen ras_win_len"
    generate = [*generate.split(), "ras_win_max_num_repeat", "seed"]
    assert names(HiggsAudioServeEngine.generate) == generate
    assert names(HiggsAudioServeEngine.generate_delta_stream) == generate
    paths = ["model_name_or_path", "audio_tokenizer_name_or_path", "tokenizer_name_or_path"]
    added = ["quantization", "use_quantization", "quantization_bits"]
    assert names(HiggsAudioServeEngine) == [*paths, "device", "torch_dtype", "kv_cache_lengths", *added]
    expected = {
        boson.HiggsAudioResponse: "audio generated_audio_tokens sampling_rate generated_text generated_text_tokens",
        HiggsAudioStreamerDelta: "text text_tokens audio_tokens finish_reason",
        ChatMLSample: "messages start_index misc speaker",
        Message: "role content recipient",
        TextContent: "text type",
        AudioContent: "audio_url raw_audio offset duration row_id type",
    }
    for kind, listed in expected.items():
        assert [field.name for field in fields(kind)][: len(listed.split())] == listed.split()
    assert [name for name in boson.__all__ if not hasattr(boson, name)] == []
