"""Whatever a caller passes to a public callable: it works, or is refused in one printable line.

Two thousand cases run by default, the same ones in every run. Many more by hand, with other cases in every run:

    HIGGS_NATIVE_PROPERTY_CASES=200000 python -m pytest tests/test_properties.py -n 0 -s
"""

import asyncio
import decimal
import fractions
import importlib
import inspect
import io
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import higgs_native
from higgs_native import (
    AudioContent,
    ChatMLSample,
    HiggsAudio,
    HiggsAudioModel,
    HiggsAudioTokenizer,
    HiggsNativeError,
    LongSpeech,
    Message,
    Pauses,
    Recording,
    SamplingParams,
    TextContent,
    Voice,
)
from higgs_native.cli.main import app, main
from higgs_native.compat.boson.audio_tokenizer import load_higgs_audio_tokenizer
from higgs_native.compat.boson.serve_engine import HiggsAudioServeEngine
from higgs_native.errors import MAX_MESSAGE, short_repr
from higgs_native.testing.random_checkpoint import write_demo_checkpoint


CASES = int(os.environ.get("HIGGS_NATIVE_PROPERTY_CASES", "2000"))
SETTINGS = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize=CASES <= 2000,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


def one_of(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of the values, which hypothesis does not write out: Python refuses to, for some of them."""
    return st.integers(0, len(values) - 1).map(lambda index: values[index])


@dataclass
class Drawn:
    """A drawn value; a report shows the beginning of it."""

    value: Any

    def __repr__(self) -> str:
        return short_repr(self.value)


TEXTS = st.text(st.characters(), max_size=50)
LARGE = (2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**5000, -(10**5000))
INTEGERS = st.one_of(st.integers(-3, 30), st.integers(), one_of(LARGE))
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
TORCH_DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)
NUMPY_DTYPES = ("f4", ">f4", "f2", "f8", "i8", ">i2", "u1", "?", "c8", "U3", "O", "M8[s]", "V4")
FILLS = (0, 1, 1024, 2.5, float("nan"), -1)
TENSORS = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    SHAPES,
    st.sampled_from(TORCH_DTYPES),
    st.sampled_from(FILLS),
)
ARRAYS = st.builds(lambda shape, dtype: np.zeros(shape, dtype), SHAPES, st.sampled_from(NUMPY_DTYPES))
ODD = (
    None,
    True,
    ...,
    object(),
    object,
    len,
    Path("missing"),
    1 + 2j,
    decimal.Decimal("NaN"),
    fractions.Fraction(10**5000),
    np.float32(3),
    np.int8(-1),
    np.bool_(True),
    np.datetime64("NaT"),
    torch.device("meta"),
    torch.empty(8, 3, device="meta"),
    torch.zeros(8, 3).to_sparse(),
    torch.float32,
    memoryview(b"abc"),
    range(3),
    type("Text", (str,), {})("text"),
    AudioContent(raw_audio="AAAA"),
    AudioContent(codes=torch.zeros(8, 3, dtype=torch.int64)),
    TextContent("Hi."),
    Voice(profile="male"),
    SamplingParams(max_new_tokens=12),
    Pauses(),
)
SAMPLES = (0.1 * np.random.default_rng(0).standard_normal(4800)).astype(np.float32)
PLAUSIBLE = (
    0,
    1,
    7,
    0.5,
    1.0,
    False,
    "",
    "Hi.",
    "Good morning. [SPEAKER1] How are you?",
    ".",
    "auto",
    "cpu",
    "float32",
    "boson",
    "transformers",
    "int8,heads=int4",
    "out.flac",
    [],
    SAMPLES,
    torch.from_numpy(SAMPLES),
    (SAMPLES, 24000),
    Recording(SAMPLES, 16000),
    Voice((SAMPLES, 24000), "Hello."),
    torch.arange(24).reshape(8, 3),
    np.full((8, 4), 1024),
    [torch.arange(24).reshape(8, 3)],
    ["<|eot_id|>"],
    [Message("system", "Speak."), Message("user", ["Hi.", AudioContent(raw_audio=(SAMPLES, 24000))])],
    repr,
)
SCALARS = st.one_of(one_of(ODD), TEXTS, st.binary(max_size=50), INTEGERS, st.floats(), TENSORS, ARRAYS)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(TEXTS, inner, max_size=2),
        st.builds(Message, inner, inner),
        st.builds(AudioContent, inner, inner, inner, inner),
        st.builds(TextContent, inner),
        st.tuples(ARRAYS, inner),
    ),
    max_leaves=4,
)
VALUES = st.one_of(one_of(PLAUSIBLE), ANYTHING).map(Drawn)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def faces(folder) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """The public callables, each with arguments that it takes."""
    engine = HiggsAudio.from_pretrained(folder)
    model, tokenizer = engine.model, engine.audio_tokenizer
    codes = torch.zeros(8, 3, dtype=torch.int64)
    samples = np.zeros(4800, dtype=np.float32)
    conversation = [Message("system", "Speak."), Message("user", "Hi.")]
    ids = torch.tensor([[*model.tokenizer.encode("Hi.").ids, model.config.audio_out_bos_token_id]])
    generation = {"seed": 1, "max_new_tokens": 12}
    speech = engine.speak("Hi.", **generation)
    boson = HiggsAudioServeEngine(folder, folder / "audio_tokenizer", device="cpu")

    def speak(**arguments):
        return engine.speak(**arguments)

    def stream(**arguments):
        return list(engine.stream(**arguments))

    async def deltas(**arguments):
        return [delta async for delta in boson.generate_delta_stream(**arguments)]

    def served(**arguments):
        return asyncio.run(deltas(**arguments))

    options = list(inspect.signature(SamplingParams).parameters)
    options.remove("max_new_tokens")  # a large one takes long
    everything = dict.fromkeys(options, inspect.Parameter.empty)
    speaking = dict.fromkeys(inspect.signature(engine.speak).parameters, inspect.Parameter.empty) | everything
    streaming = dict.fromkeys(inspect.signature(engine.stream).parameters, inspect.Parameter.empty) | everything
    for parameters in (speaking, streaming):
        del parameters["options"]
    asked = {"chat_ml_sample": ChatMLSample(conversation), "max_new_tokens": 12, "seed": 1, "force_audio_gen": True}
    return {
        "HiggsAudio": (HiggsAudio, {"model": model, "audio_tokenizer": tokenizer}),
        "HiggsAudio.from_pretrained": (HiggsAudio.from_pretrained, {"path_or_name": folder}),
        "HiggsAudio.speak": (speak, speaking | {"text": "Hi.", **generation}),
        "HiggsAudio.stream": (stream, streaming | {"text": "Hi.", **generation}),
        "HiggsAudio.generate": (
            engine.generate,
            everything | {"conversation": conversation, "force_audio_gen": True, "on_progress": None, **generation},
        ),
        "HiggsAudioModel.from_pretrained": (HiggsAudioModel.from_pretrained, {"path_or_name": folder}),
        "HiggsAudioModel.generate": (
            model.generate,
            everything | {"input_ids": ids, "convention": engine.convention, "partial_audio": None, **generation},
        ),
        "HiggsAudioTokenizer.from_pretrained": (
            HiggsAudioTokenizer.from_pretrained,
            {"path_or_name": folder / "audio_tokenizer"},
        ),
        "HiggsAudioTokenizer.encode": (tokenizer.encode, {"audio": samples, "sampling_rate": 24000}),
        "HiggsAudioTokenizer.decode": (tokenizer.decode, {"codes": codes}),
        "HiggsAudioTokenizer.streaming_decoder": (tokenizer.streaming_decoder, {}),
        "StreamingDecoder.decode": (
            lambda codes, is_last: tokenizer.streaming_decoder().decode(codes, is_last),
            {"codes": codes, "is_last": True},
        ),
        "LongSpeech": (LongSpeech, {"engine": engine, "text": "Hi.", "seed": 1}),
        "Speech.save": (speech.save, {"path": "out.wav"}),
        "Recording": (Recording, {"samples": samples, "sampling_rate": 24000}),
        "Voice": (lambda **arguments: engine.speak("Hi.", Voice(**arguments), **generation), {"profile": "male"}),
        "SamplingParams": (SamplingParams, generation),
        "Pauses": (Pauses, {}),
        "build_prompt": (
            higgs_native.build_prompt,
            {"conversation": conversation, "tokenizer": model.tokenizer, "convention": engine.convention},
        ),
        "check_recording": (higgs_native.check_recording, {"samples": samples, "sampling_rate": 24000}),
        "chunk_text": (higgs_native.chunk_text, {"text": "Hi.", "max_seconds": 20}),
        "normalize_text": (higgs_native.normalize_text, {"text": "Hi."}),
        "find_voice": (higgs_native.find_voice, {"name": "anna", "folder": "."}),
        "list_voices": (higgs_native.list_voices, {"folder": "."}),
        "boson: load_higgs_audio_tokenizer": (
            load_higgs_audio_tokenizer,
            {"tokenizer_name_or_path": folder / "audio_tokenizer"},
        ),
        "boson: HiggsAudioServeEngine": (
            HiggsAudioServeEngine,
            {"model_name_or_path": folder, "audio_tokenizer_name_or_path": folder / "audio_tokenizer"},
        ),
        "boson: generate": (boson.generate, asked),
        "boson: generate_delta_stream": (
            served,
            dict.fromkeys(inspect.signature(boson.generate).parameters, inspect.Parameter.empty) | asked,
        ),
        "boson: encode": (boson.audio_tokenizer.encode, {"audio_path_or_wv": samples, "sr": 24000}),
        "boson: decode": (boson.audio_tokenizer.decode, {"vq_code": codes[None]}),
    }


def parameters_of(call: Callable[..., Any], arguments: dict[str, Any]) -> list[str]:
    """The names of all parameters that get drawn values."""
    named = [
        name
        for name, parameter in inspect.signature(call).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    return sorted({*named, *arguments} - {"max_new_tokens"})


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A current folder for what cases write, so deep that no drawn path leads out of it; no Hub."""
    work = tmp_path / "a" / "b" / "c" / "d"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HIGGS_NATIVE_VOICES", raising=False)
    return work


def check_message(message: str) -> None:
    assert message.isprintable(), repr(message)
    assert 0 < len(message) <= MAX_MESSAGE, repr(message)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_calls(faces, elsewhere, folder):
    ends = Counter()

    @SETTINGS
    @given(st.data())
    def check(data):
        name = data.draw(st.sampled_from(sorted(faces)), "face")
        call, valid = faces[name]
        drawn = data.draw(st.lists(st.sampled_from(parameters_of(call, valid)), max_size=2, unique=True), "drawn")
        arguments = {name: value for name, value in valid.items() if value is not inspect.Parameter.empty}
        for parameter in drawn:
            arguments[parameter] = data.draw(VALUES, parameter).value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                call(**arguments)
            except HiggsNativeError as error:
                check_message(str(error))
                ends["refused"] += 1
            else:
                ends["accepted"] += 1

    check()
    print(f"\n{ends.total()} calls: {ends['accepted']} accepted, {ends['refused']} refused")


@pytest.mark.filterwarnings("ignore")
def test_calls_of_transformers(elsewhere, folder):
    """transformers checks arguments too: an error that its own code raises is not ours."""
    reference = importlib.import_module("tests.helpers.transformers_reference")  # skips where transformers is missing
    compat = importlib.import_module("higgs_native.compat.transformers")
    accelerate = compat.accelerate
    model = accelerate(reference.tiny_model(1))
    inputs = reference.model_inputs(model.config, [reference.random_prompt(model.config, 0, 20, (7,))])
    taken = ("temperature", "top_k", "top_p", "ras_win_len", "eos_token_id", "position_ids", "do_sample")
    faces = {
        "accelerate": (accelerate, {"model": model}),
        "from_pretrained": (compat.from_pretrained, {"pretrained_model_name_or_path": folder}),
        "generate": (
            lambda **arguments: accelerate(model).generate(**arguments),
            dict.fromkeys(taken, inspect.Parameter.empty) | {**inputs, "max_new_tokens": 12},
        ),
    }

    @settings(SETTINGS, max_examples=max(CASES // 10, 1))
    @given(st.data())
    def check(data):
        call, valid = faces[data.draw(st.sampled_from(sorted(faces)), "face")]
        arguments = {name: value for name, value in valid.items() if value is not inspect.Parameter.empty}
        parameters = st.sampled_from(parameters_of(call, valid))
        for name in data.draw(st.lists(parameters, max_size=2, unique=True), "drawn"):
            arguments[name] = data.draw(VALUES, name).value
        try:
            call(**arguments)
        except HiggsNativeError as error:
            check_message(str(error))
        except Exception as error:
            files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
            inner = [file for file in files if "/higgs_native/" in file or "/transformers/" in file]
            if not inner or "/transformers/" not in inner[-1] or "/higgs_native/" in inner[-1]:
                raise

    check()


WORDS = st.one_of(
    TEXTS.filter(lambda text: "\0" not in text and not text.startswith("/")),  # as no argument of a process can be
    one_of(
        [*map(str, LARGE[:-2]), "1" * 5000, "", "-", "-1", "0", "0.5", "nan", "1e999", "-5 degrees", "--", "--bogus"]
    ),
    one_of(["Hi.", "cpu", "cuda", "auto", "int8", "out.wav", "out.pcm", ".", "x" * 300, "a/b", "profile:x"]),
)
OPTIONS = {
    command.name: [
        option
        for parameter in command.params
        if parameter.param_type_name == "option" and parameter.name != "max_new_tokens"  # many take long
        for option in parameter.opts
    ]
    for command in typer.main.get_command(app).commands.values()
}


def test_commands(elsewhere, folder, capsys, monkeypatch):
    ends = Counter()

    @settings(SETTINGS, max_examples=max(CASES // 10, 1))
    @given(st.data())
    def check(data):
        name = data.draw(st.sampled_from(sorted(OPTIONS)), "command")
        arguments = [name]
        if name == "serve":
            arguments += ["--model", str(elsewhere / "missing")]  # which would serve without end
        elif name in ("speak", "read"):
            arguments += ["--model", str(data.draw(one_of([folder, elsewhere / "missing"]), "model"))]
            arguments += {"speak": ["--max-new-tokens", "12"], "read": ["--max-retries", "0"]}[name]
        arguments += data.draw(st.lists(WORDS, max_size=2), "arguments")
        for option in data.draw(st.lists(st.sampled_from(["--bogus", *OPTIONS[name]]), max_size=2), "options"):
            arguments += [option, data.draw(WORDS, option)]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi.")))
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        errors = capsys.readouterr().err
        ends[exit.value.code] += 1
        assert exit.value.code in (0, 2), errors
        for line in errors.splitlines():
            check_message(line.removeprefix("error: "))
        if exit.value.code == 2:
            assert line.startswith("error: ")

    check()
    print(f"\n{ends.total()} commands: {ends[0]} done, {ends[2]} refused")
