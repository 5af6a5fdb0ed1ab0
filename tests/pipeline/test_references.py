"""Recordings to clone, and the prompt that the model reads for them."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from higgs_native import replies
from higgs_native.audio.quality import VoiceWarning
from higgs_native.errors import AudioError
from higgs_native.generation.requests import GenerationOutput
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.prompt.voices import Voice
from tests.audio.test_quality import syllables
from tests.pipeline.conftest import RATE, TEXT


# Most references here are a second of a tone.
pytestmark = pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")


def test_a_reference_is_a_file_or_samples(engine, recording, samples):
    spoken = [
        engine.speak(TEXT, reference_audio=reference, reference_text="Hello.", seed=1, max_new_tokens=16)
        for reference in (recording, str(recording), (samples, RATE))
    ]
    assert torch.equal(spoken[0].codes, spoken[1].codes)
    assert torch.equal(spoken[0].codes, spoken[2].codes)
    assert spoken[0].usage["prompt_tokens"] > engine.speak(TEXT, max_new_tokens=1).usage["prompt_tokens"] + 25


def test_a_poor_reference_is_told(engine, tmp_path):
    soundfile.write(tmp_path / "anna.wav", syllables(2), RATE)
    options = {"max_new_tokens": 10, "seed": 1}
    message = r"it is short, with 2\.00 s of speech; expected at least 3 s; its words are not given"
    with pytest.warns(VoiceWarning, match=rf"anna\.wav: {message}") as caught:
        engine.speak(TEXT, reference_audio=tmp_path / "anna.wav", **options)
    assert caught[0].filename == __file__
    with pytest.warns(VoiceWarning, match=rf"the reference audio: {message}") as caught:
        engine.stream(TEXT, reference_audio=(syllables(2), RATE), **options)
    assert caught[0].filename == __file__
    with pytest.warns(VoiceWarning) as caught:
        engine.speak(TEXT, voice=[Voice(tmp_path / "anna.wav", "Two words."), Voice(profile="old")], **options)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", VoiceWarning)
        integers = (32767 * syllables(5)).astype(np.int16)
        engine.speak(TEXT, reference_audio=(integers, RATE), reference_text="Words as many as fit into it.", **options)
        engine.speak(TEXT, voice=Voice(profile="old"), **options)


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        (np.zeros(RATE, dtype=np.float32), r"needs its sampling_rate, in Hz: \(samples, sampling_rate\)"),
        (
            (np.zeros(RATE, dtype=np.float32),),
            r"audio must be a file's path, .*\(samples, sampling rate\).*, got tuple",
        ),
        (7, "audio must be a file's path, .*, got int"),
        (b"voice.wav", "the audio file can't be read as audio"),
    ],
)
def test_a_reference_of_another_type_is_refused(engine, reference, error):
    with pytest.raises(AudioError, match=error):
        engine.speak(TEXT, reference_audio=reference)


def test_several_recordings_are_turns_of_the_prompt(engine, samples):
    recordings = [Voice((samples[: len(samples) // part], RATE), f"Hello {part}.") for part in (1, 2)]
    voice = replace(recordings[0], more_recordings=recordings[1:])
    spoken = [engine.speak(TEXT, voice=voice, seed=1, max_new_tokens=16) for _ in range(2)]
    assert torch.equal(spoken[0].codes, spoken[1].codes)
    streamed = engine.stream(TEXT, voice=voice, seed=1, max_new_tokens=16)
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in streamed]), spoken[0].audio)
    chunk = next(iter(LongSpeech(engine, TEXT, voice=voice, seed=1, max_retries=0)))
    length = min(chunk.codes.shape[1], spoken[0].codes.shape[1])
    assert torch.equal(chunk.codes[:, :length], spoken[0].codes[:, :length])
    alone = engine.speak(TEXT, voice=recordings[0], seed=1, max_new_tokens=16)
    assert alone.usage["prompt_tokens"] < spoken[0].usage["prompt_tokens"]


def test_a_poor_one_of_several_recordings_is_told(engine, tmp_path):
    for name, seconds in (("good", 5), ("short", 2)):
        soundfile.write(tmp_path / f"{name}.wav", syllables(seconds), RATE)
    short = Voice(tmp_path / "short.wav", "Two words.")
    voice = Voice(tmp_path / "good.wav", "Words as many as fit into it.", more_recordings=[short])
    with pytest.warns(VoiceWarning, match=r"short\.wav: it is short") as caught:
        engine.speak(TEXT, voice=voice, max_new_tokens=10, seed=1)
    assert len(caught) == 1


@pytest.mark.parametrize("convention", ["boson", "transformers"])
def test_what_the_model_reads(convention, engines, recording, tmp_path, monkeypatch):
    engine = engines[convention]
    prompts = []

    def generate_batch(model, requests):
        (request,) = requests
        assert request.convention == convention
        prompts.append(engine.model.tokenizer.decode(request.input_ids[0].tolist(), skip_special_tokens=False))
        assert [codes.shape[0] for codes in request.reference_codes] == [8] * prompts[-1].count("<|AUDIO_OUT|>")
        return [GenerationOutput([], [], "stop", 1, 0)]

    monkeypatch.setattr(replies, "generate_batch", generate_batch)
    (tmp_path / "voice.txt").write_text("Hello there.")
    engine.speak("你好，世界", voice="voice", voices_folder=tmp_path, scene="A room.")
    engine.speak("[SPEAKER0] a\n\n[SPEAKER1] b", voice="voice, voice", voices_folder=tmp_path)
    system = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nGenerate audio following instruction."
    user, assistant = (f"<|eot_id|><|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
    audio = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>"
    assert prompts[0] == (
        f"{system}\n\n<|scene_desc_start|>\nA room.\n<|scene_desc_end|>{user}Hello there.{assistant}{audio}"
        f"{user}你好, 世界.{assistant}<|audio_out_bos|>"
    )
    assert prompts[1] == (
        f"{system}{user}[SPEAKER0] Hello there.{assistant}{audio}{user}[SPEAKER1] Hello there.{assistant}{audio}"
        f"{user}[SPEAKER0] a\n[SPEAKER1] b.{assistant}<|audio_out_bos|>"
    )
