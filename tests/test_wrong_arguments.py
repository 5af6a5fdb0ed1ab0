"""Arguments of a wrong type are refused by name, in one line; `test_properties` tries many more."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from higgs_native import (
    AudioError,
    HiggsAudio,
    HiggsAudioModel,
    HiggsNativeError,
    LongSpeech,
    Message,
    ParameterError,
    Pauses,
    PromptError,
    Recording,
    SamplingParams,
    build_prompt,
    check_recording,
    chunk_text,
    find_voice,
    list_voices,
)
from higgs_native.audio_tokenizer.graph_decoder import DecoderWindows, WindowedDecoder
from higgs_native.generation.engine import Engine
from higgs_native.generation.model import generate_batch
from higgs_native.generation.requests import GenerationRequest
from higgs_native.testing.random_checkpoint import write_demo_checkpoint


HUGE = 10**5000  # which Python refuses to write out
CONVERSATION = [Message("system", "Speak."), Message("user", "Hi.")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo_checkpoint(folder)
    return HiggsAudio.from_pretrained(folder)


def prompt(engine):
    return [[*engine.model.tokenizer.encode("Hi").ids, engine.model.config.audio_out_bos_token_id]]


def generate(engine, **arguments):
    arguments = {"input_ids": np.array(prompt(engine)), "convention": "boson", "max_new_tokens": 12} | arguments
    return engine.model.generate(**arguments)


def test_a_prompt_may_be_an_array_of_any_integers(engine):
    expected = generate(engine, input_ids=torch.tensor(prompt(engine)), seed=1)
    for dtype in (np.int32, np.int64, np.uint16, ">i8"):
        output = generate(engine, input_ids=np.array(prompt(engine), dtype=dtype), seed=1)
        assert torch.equal(output.audio_segments[0], expected.audio_segments[0])


CASES = {
    "a list as prompt": (
        lambda engine: generate(engine, input_ids=prompt(engine)),
        "input_ids must be integers in a tensor or an array, got list",
    ),
    "floats as prompt": (
        lambda engine: generate(engine, input_ids=np.array(prompt(engine), dtype=float)),
        "input_ids must be integers in a tensor or an array, got float64",
    ),
    "large partial audio": (
        lambda engine: generate(engine, partial_audio=torch.full((8, 1), 2**40)),
        "partial_audio must be between 0 and 1025, got 1099511627776 to 1099511627776",
    ),
    "fractional partial audio": (
        lambda engine: generate(engine, partial_audio=torch.full((8, 1), 0.5)),
        "partial_audio must be integers in a tensor or an array, got torch.float32",
    ),
    "a number as folder": (
        lambda engine: LongSpeech(engine, "Hi.", folder=3),
        "folder must be a string or a path, got 3",
    ),
    "a folder with a zero byte": (
        lambda engine: LongSpeech(engine, "Hi.", folder="a\0b"),
        r"folder must be a path without zero bytes, got 'a\x00b'",
    ),
    "no engine": (lambda engine: LongSpeech(3, "Hi."), "engine must be of the class HiggsAudio, got int"),
    "no pauses": (
        lambda engine: LongSpeech(engine, "Hi.", pauses=0.5),
        "pauses must be of the class Pauses, got float",
    ),
    "strict": (lambda engine: LongSpeech(engine, "Hi.", strict={}), "strict must be True or False, got {}"),
    "force_audio_gen": (
        lambda engine: engine.generate(CONVERSATION, force_audio_gen={}),
        "force_audio_gen must be True or False, got {}",
    ),
    "force_audio_gen 3": (
        lambda engine: build_prompt(CONVERSATION, engine.model.tokenizer, force_audio_gen=3),
        "force_audio_gen must be True or False, got 3",
    ),
    "no tokenizer": (
        lambda engine: build_prompt(CONVERSATION, "tokenizer.json"),
        "tokenizer must be of the class Tokenizer, got str",
    ),
    "no role": (lambda engine: engine.generate([Message(None, "Hi.")], True), "role must be a string, got None"),
    "no progress": (
        lambda engine: engine.speak("Hi.", on_progress=3),
        "on_progress must be a function or None, got 3",
    ),
    "scene": (lambda engine: engine.speak("Hi.", scene={}), "scene must be a string, got {}"),
    "unknown option": (
        lambda engine: engine.speak("Hi.", sed=1),
        "options must be of temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed, max_new_tokens, "
        "stop_strings, got 'sed'",
    ),
    "no model": (
        lambda engine: HiggsAudio(engine, engine.audio_tokenizer),
        "model must be of the class HiggsAudioModel, got HiggsAudio",
    ),
    "no voices": (
        lambda engine: engine.speech_messages("Hi.", 0, None),
        "voices must be a list of Voice, got int",
    ),
    "voices by name": (
        lambda engine: engine.speech_messages("Hi.", ["anna"], None),
        "each of voices must be of the class Voice, got str",
    ),
    "an engine of no model": (lambda engine: Engine(1), "model must be of the class LanguageModel, got int"),
    "a batch of no model": (
        lambda engine: generate_batch(1, []),
        "model must be of the class HiggsAudioModel, got int",
    ),
    "a batch that is none": (
        lambda engine: generate_batch(engine.model, 0),
        "requests must be a list of GenerationRequest, got int",
    ),
    "a batch of prompts": (
        lambda engine: generate_batch(engine.model, [torch.tensor(prompt(engine))]),
        "request must be of the class GenerationRequest, got Tensor",
    ),
    "no audio tokenizer": (
        lambda engine: HiggsAudio(engine.model, None),
        "audio_tokenizer must be of the class HiggsAudioTokenizer, got NoneType",
    ),
    "long cache": (
        lambda engine: HiggsAudioModel.from_pretrained("missing", max_cache_length=2**31),
        "max_cache_length must be between 1 and 1048576, got 2147483648",
    ),
    "stream twice": (
        lambda engine: [list(stream) for stream in [engine.stream("Hi.", max_new_tokens=12)] * 2],
        "a SpeechStream must be iterated once, and not after close",
    ),
    "a number as folder of voices": (
        lambda engine: list_voices(3),
        "the folder of voices must be a string or a path, got 3",
    ),
    "a long name of a folder of voices": (
        lambda engine: find_voice("anna", "x" * 5000),
        "the folder of voices must exist, got xxx",
    ),
    "no samples": (
        lambda engine: check_recording(3, 24000),
        "samples must be an array [samples], float32, of at least",
    ),
    "samples that are not finite": (
        lambda engine: check_recording(np.full(24000, np.nan), 24000),
        "samples must be finite, got NaN or infinity",
    ),
    "the name of a recording": (
        lambda engine: Recording(np.zeros(24000), 24000, name=HUGE),
        "name must be a string, got 0x",
    ),
    "codes without memory": (
        lambda engine: engine.audio_tokenizer.decode(torch.zeros(8, 3, dtype=torch.int64, device="meta")),
        "codes must be a dense tensor with memory, got one of the device meta",
    ),
    "device": (
        lambda engine: HiggsAudio.from_pretrained(device=HUGE),
        "device must be auto, cpu, cuda or cuda:N, got",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_type_is_refused_by_name(engine, case):
    call, message = CASES[case]
    with pytest.raises(HiggsNativeError) as refused:
        call(engine)
    assert message in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("value", [HUGE, -HUGE, Fraction(HUGE)], ids=["huge", "low", "fraction"])
def test_numbers_of_any_size_can_be_named(engine, value):
    calls = [lambda name=name: SamplingParams(**{name: value}) for name in ("temperature", "top_p")]
    calls += [
        lambda: chunk_text("Hi.", value),
        lambda: Pauses(value),
        lambda: engine.stream("Hi.", chunk_growth=value),
    ]
    for name in ("top_k", "ras_win_len", "ras_win_max_num_repeat", "seed", "max_new_tokens"):
        calls.append(lambda name=name: SamplingParams(**{name: value}))
    for name in ("first_chunk_frames", "max_chunk_frames", "low_latency"):
        calls.append(lambda name=name: engine.stream("Hi.", **{name: value}))
    for name in ("context_chunks", "max_retries", "chunk_seconds", "folder"):
        calls.append(lambda name=name: LongSpeech(engine, "Hi.", **{name: value}))
    calls += [
        lambda: SamplingParams(stop_strings=[value]),
        lambda: engine.audio_tokenizer.streaming_decoder(value),
        lambda: engine.speak(value),
        lambda: engine.generate([Message(value, "Hi.")], True),
        lambda: HiggsAudio(engine.model, engine.audio_tokenizer, value),
        lambda: HiggsAudio.from_pretrained(dtype=value),
        lambda: HiggsAudio.from_pretrained(quantization=value),
    ]
    for call in calls:
        with pytest.raises((ParameterError, PromptError, AudioError)) as refused:
            call()
        assert len(str(refused.value)) <= 500


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_what_holds_weights_or_threads_says_how_to_share_it(engine, copied):
    for item in (engine, engine.model, engine.audio_tokenizer, LongSpeech(engine, "Hi."), [engine]):
        with pytest.raises(
            ParameterError,
            match=r"a HiggsAudio\w+ can't be copied or pickled: threads can share it, and other processes can load "
            "their own with from_pretrained",
        ):
            copied(item)
    with pytest.raises(ParameterError, match=r"^an Engine can't be copied or pickled: threads can share it"):
        copied(engine.model.engine)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_gives_results_piece_by_piece_says_what_can_be_copied(engine, copied):
    request = GenerationRequest(torch.tensor(prompt(engine)), sampling=SamplingParams(max_new_tokens=12))
    handle = engine.model.engine.add(request)
    for item, name, instead in (
        (engine.stream("Hi."), "SpeechStream", "its items may be"),
        (engine.audio_tokenizer.streaming_decoder(), "StreamingDecoder", "its audio may be"),
        (
            WindowedDecoder(DecoderWindows(engine.audio_tokenizer._weights, engine.audio_tokenizer.config, (24,))),
            "WindowedDecoder",
            "its audio may be",
        ),
        (handle, "RequestHandle", "its items and its output may be"),
    ):
        with pytest.raises(ParameterError, match=f"^a {name} can't be copied or pickled; {instead}$"):
            copied(item)
    assert pickle.loads(pickle.dumps(handle.result())).finish_reason == "length"


def test_results_can_be_copied_and_pickled(engine):
    speech = engine.speak("Hi.", max_new_tokens=20)
    for copied in (copy.deepcopy(speech), pickle.loads(pickle.dumps(speech))):
        assert np.array_equal(copied.audio, speech.audio)
        assert torch.equal(copied.codes, speech.codes)
        assert (copied.seed, copied.failures) == (speech.seed, speech.failures)
