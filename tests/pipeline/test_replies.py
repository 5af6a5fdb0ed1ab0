"""Replies to conversations, in audio and in text."""

import numpy as np
import pytest
import torch

from higgs_native.errors import CheckpointError, ParameterError, PromptError
from higgs_native.generation.delay_pattern import build_delay_pattern
from higgs_native.generation.requests import GenerationOutput
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.chat import spoken_turns
from higgs_native.prompt.messages import AudioContent, ChatMLSample, Message, TextContent
from tests.pipeline.conftest import RATE, TEXT


# Most references here are a second of a tone.
pytestmark = pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")


def test_codes_take_the_place_of_a_recording(engine, samples, recording, monkeypatch):
    system = Message("system", "Speak.")
    shown = [Message("user", "Hello."), Message("assistant", AudioContent(str(recording)))]
    options = {"force_audio_gen": True, "seed": 1, "max_new_tokens": 16}
    expected = engine.generate([system, *shown, Message("user", TEXT)], **options)
    codes = engine.audio_tokenizer.encode(samples, RATE)
    spoken = [system, *spoken_turns([("Hello.", codes)]), Message("user", TEXT)]
    monkeypatch.setattr(engine.audio_tokenizer, "encode", None)
    assert torch.equal(engine.generate(spoken, **options).codes, expected.codes)
    spoken = [system, *spoken_turns([("Hello.", codes.numpy())]), Message("user", TEXT)]
    assert torch.equal(engine.generate(spoken, **options).codes, expected.codes)
    for wrong, kind in ((codes.float(), "torch.float32"), (5, "int")):
        spoken = [system, *spoken_turns([("Hello.", wrong)]), Message("user", TEXT)]
        with pytest.raises(PromptError, match=f"codes must be integers in a tensor or an array, got {kind}"):
            engine.generate(spoken, **options)


def test_a_reply_in_text_has_no_audio(engines):
    engine = engines["boson"]
    eot = engine.model.tokenizer.token_to_id("<|eot_id|>")
    text_ids = [*engine.model.tokenizer.encode("No.", add_special_tokens=False).ids, eot]
    speech = engine.speech(GenerationOutput([], text_ids, "stop", 10, 4))
    assert (speech.audio.shape, speech.audio.dtype) == ((0,), np.float32)
    assert (speech.codes.shape, speech.codes.dtype) == ((8, 0), torch.int64)
    assert (speech.text, speech.finish_reason, speech.duration) == ("No.", "stop", 0)


def test_generate_takes_a_conversation_and_may_answer_in_text(engines):
    sample = ChatMLSample([Message("user", "Hi.")])
    speech = engines["boson"].generate(sample, seed=1, max_new_tokens=5)
    assert speech.usage["completion_tokens"] <= 5
    assert len(speech.audio) == 960 * speech.codes.shape[1]


@pytest.mark.parametrize("frames", [0, 1, 2, 9])
@pytest.mark.parametrize("convention", ["boson", "transformers"])
def test_codes_come_back_from_a_delayed_segment(convention, frames, engines):
    engine = engines[convention]
    codes = torch.randint(0, 1024, (8, frames), generator=torch.Generator().manual_seed(frames))
    # What follows the codes of a row is EOS; transformers ends in a frame that is EOS throughout.
    delayed = build_delay_pattern(codes, engine.model.config).T.long()
    assert torch.equal(engine._codes(delayed), codes)
    if convention == "transformers" and frames:
        assert torch.equal(engine._codes(delayed[:, :-1]), codes)
        assert torch.equal(engine._codes(delayed[:, :-2])[:, : frames - 1], codes[:, : frames - 1])


def test_several_segments_are_joined(engines):
    engine = engines["boson"]
    parts = [torch.full((8, frames), frames) for frames in (3, 2)]
    segments = [build_delay_pattern(part, engine.model.config).T.long() for part in parts]
    speech = engine.speech(GenerationOutput([segments[0], segments[1][:, :5]], [], "length", 1, 1))
    assert torch.equal(speech.codes, parts[0])
    speech = engine.speech(GenerationOutput(segments, [], "stop", 1, 1))
    assert torch.equal(speech.codes, torch.cat(parts, dim=1))
    alone = [engine.audio_tokenizer.decode(part).numpy() for part in parts]
    assert np.array_equal(speech.audio, np.concatenate(alone))


def test_one_stop_string_is_no_list(engine):
    with pytest.raises(ParameterError, match="stop_strings must be a list of strings, got the string 'abc'"):
        engine.generate([Message("system", "a"), Message("user", "b")], stop_strings="abc")


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ("hi", r"conversation must hold Message\(role, content\) only, got 'h'"),
        (None, r"conversation must be a list of Message\(role, content\), got None"),
        ([Message("user", 5)], "content of a user message must be str, TextContent or AudioContent, got 5"),
        ([Message("user", TextContent(5))], "text of a user message must be a string, got 5"),
        ([Message("user", "\ud800")], "text of a user message must be valid Unicode, got"),
    ],
)
def test_what_is_no_conversation(engines, conversation, message):
    with pytest.raises(PromptError, match=message):
        engines["boson"].generate(conversation)


def test_what_can_only_speak_must_be_told_to(engines):
    conversation = [Message("system", "Speak."), Message("user", TEXT)]
    with pytest.raises(PromptError, match="force_audio_gen must be True in the convention 'transformers', got False"):
        engines["transformers"].generate(conversation)
    voice = HiggsAudio.from_pretrained()
    voice = HiggsAudio(voice.model, voice.audio_tokenizer, "boson")
    with pytest.raises(CheckpointError, match=r"no text head .*; with force_audio_gen=True it speaks"):
        voice.generate(conversation)
