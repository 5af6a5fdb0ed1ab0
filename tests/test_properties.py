"""Whatever a caller passes to a public callable: it works, or is refused in one printable line.

Two thousand cases run by default, the same ones in every run. Many more by hand, with other cases in every run:

    HIGGS_NATIVE_PROPERTY_CASES=200000 python -m pytest -n 0 -s tests/test_properties.py tests/compat/*/test_prop*.py
"""

import inspect
import io
import sys
from collections import Counter

import numpy as np
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st

import higgs_native
from higgs_native import (
    HiggsAudio,
    HiggsAudioModel,
    HiggsAudioTokenizer,
    LongSpeech,
    Message,
    Pauses,
    Recording,
    SamplingParams,
    Voice,
)
from higgs_native.cli.main import app, main
from higgs_native.generation.engine import Engine
from higgs_native.generation.model import generate_batch
from higgs_native.generation.requests import GenerationRequest
from tests.helpers.drawn_values import (
    LARGE,
    TEXTS,
    UNSET,
    Faces,
    check_calls,
    check_message,
    drawn_settings,
    one_of,
    with_parameters_of,
)


@pytest.fixture(scope="module")
def faces(demo_folder) -> Faces:
    engine = HiggsAudio.from_pretrained(demo_folder)
    model, tokenizer = engine.model, engine.audio_tokenizer
    codes = torch.zeros(8, 3, dtype=torch.int64)
    samples = np.zeros(4800, dtype=np.float32)
    conversation = [Message("system", "Speak."), Message("user", "Hi.")]
    ids = torch.tensor([[*model.tokenizer.encode("Hi.").ids, model.config.audio_out_bos_token_id]])
    generation = {"seed": 1, "max_new_tokens": 12}
    speech = engine.speak("Hi.", **generation)

    def speak(**arguments):
        return engine.speak(**arguments)

    def stream(**arguments):
        return list(engine.stream(**arguments))

    def decode_piece(codes, is_last):
        return tokenizer.streaming_decoder().decode(codes, is_last)

    def speak_as(**arguments):
        return engine.speak("Hi.", Voice(**arguments), **generation)

    options = dict.fromkeys(inspect.signature(SamplingParams).parameters, UNSET)
    return {
        "HiggsAudio": (HiggsAudio, {"model": model, "audio_tokenizer": tokenizer}),
        "HiggsAudio.from_pretrained": (HiggsAudio.from_pretrained, {"path_or_name": demo_folder}),
        "HiggsAudio.speak": (speak, options | with_parameters_of(engine.speak, text="Hi.", **generation)),
        "HiggsAudio.stream": (stream, options | with_parameters_of(engine.stream, text="Hi.", **generation)),
        "HiggsAudio.generate": (
            engine.generate,
            options | {"conversation": conversation, "force_audio_gen": True, "on_progress": None, **generation},
        ),
        "HiggsAudioModel.from_pretrained": (HiggsAudioModel.from_pretrained, {"path_or_name": demo_folder}),
        "HiggsAudioModel.generate": (
            model.generate,
            options | {"input_ids": ids, "convention": engine.convention, "partial_audio": None, **generation},
        ),
        "HiggsAudio.speech_messages": (engine.speech_messages, {"text": "Hi.", "voices": (), "scene": None}),
        "Engine": (Engine, {"model": model}),
        "Engine.add": (
            lambda **arguments: model.engine.add(GenerationRequest(**arguments)).result(),
            with_parameters_of(GenerationRequest, input_ids=ids, sampling=SamplingParams(**generation)),
        ),
        "generate_batch": (
            generate_batch,
            {"model": model, "requests": [GenerationRequest(ids, sampling=SamplingParams(**generation))]},
        ),
        "HiggsAudioTokenizer.from_pretrained": (
            HiggsAudioTokenizer.from_pretrained,
            {"path_or_name": demo_folder / "audio_tokenizer"},
        ),
        "HiggsAudioTokenizer.encode": (tokenizer.encode, {"audio": samples, "sampling_rate": 24000}),
        "HiggsAudioTokenizer.decode": (tokenizer.decode, {"codes": codes}),
        "HiggsAudioTokenizer.streaming_decoder": (tokenizer.streaming_decoder, {}),
        "StreamingDecoder.decode": (decode_piece, {"codes": codes, "is_last": True}),
        "LongSpeech": (LongSpeech, {"engine": engine, "text": "Hi.", "seed": 1}),
        "LongSpeech.save": (LongSpeech(engine, "Hi.", seed=1, max_retries=0).save, {"path": "out.wav"}),
        "Speech.save": (speech.save, {"path": "out.wav"}),
        "Recording": (Recording, {"samples": samples, "sampling_rate": 24000}),
        "Recording.read": (Recording.read, {"audio": (samples, 24000)}),
        "Recording.part": (Recording(samples, 24000).part, {}),
        "Recording.advice": (Recording(samples, 24000).advice, {"reference_text": "Hi."}),
        "Voice": (speak_as, with_parameters_of(Voice, profile="male")),
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
    }


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_drawn_arguments(faces, elsewhere):
    check_calls(faces, 0.5)


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


def test_drawn_arguments_of_commands(elsewhere, demo_folder, capsysbinary, monkeypatch):
    ends = Counter()

    @drawn_settings(0.1)
    @given(st.data())
    def check(data):
        name = data.draw(st.sampled_from(sorted(OPTIONS)), "command")
        arguments = [name]
        if name == "serve":
            arguments += ["--model", str(elsewhere / "missing")]  # which would serve without end
        elif name in ("speak", "read"):
            arguments += ["--model", str(data.draw(one_of([demo_folder, elsewhere / "missing"]), "model"))]
            arguments += {"speak": ["--max-new-tokens", "12"], "read": ["--max-retries", "0"]}[name]
        arguments += data.draw(st.lists(WORDS, max_size=2), "arguments")
        for option in data.draw(st.lists(st.sampled_from(["--bogus", *OPTIONS[name]]), max_size=2), "options"):
            arguments += [option, data.draw(WORDS, option)]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi.")))
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        errors = capsysbinary.readouterr().err.decode()  # standard output may take audio
        ends[exit.value.code] += 1
        assert exit.value.code in (0, 2), errors
        for line in errors.splitlines():
            check_message(line.removeprefix("error: "))
        if exit.value.code == 2:
            assert line.startswith("error: ")

    check()
    print(f"\n{ends.total()} commands: {ends[0]} done, {ends[2]} refused")
