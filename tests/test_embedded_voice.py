"""The embedded voice speaks: held-out sentences are told apart by how eSpeak NG, its teacher, says them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.tools.speech_distance import HOP, mel_spectrogram, pitch, warped_distances
from higgs_native.pipeline import EMBEDDED_VOICE, HiggsAudio
from higgs_native.prompt.chat import build_prompt, speech_messages
from higgs_native.prompt.voices import Voice


ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "embedded_voice"
TEXTS = json.loads((GOLDEN / "sentences.json").read_text(encoding="utf-8"))
PITCHES = {"feminine": 200, "masculine": 100}


@pytest.fixture(scope="module")
def engine():
    return HiggsAudio.from_pretrained()


@pytest.fixture(scope="module")
def spectrograms():
    """eSpeak NG's renderings of `TEXTS`, by voice."""
    stored = load_file(GOLDEN / "spectrograms.safetensors")
    return {profile: [stored[f"{profile}.{index:02}"].float() for index in range(len(TEXTS))] for profile in PITCHES}


@pytest.fixture(scope="module")
def speeches(engine):
    """Each of `TEXTS`, the voices in turn."""
    return [
        (profile, engine.speak(text, voice=Voice(profile=profile), seed=index, max_new_tokens=400))
        for index, (text, profile) in enumerate(zip(TEXTS, list(PITCHES) * 10, strict=True))
    ]


def test_it_says_what_it_should(speeches, spectrograms):
    right = [
        int(warped_distances(mel_spectrogram(speech.audio), spectrograms[profile]).argmin()) == index
        for index, (profile, speech) in enumerate(speeches)
    ]
    assert sum(right) >= 18


def test_it_stops_by_itself_in_time(speeches, spectrograms):
    assert sum(speech.finish_reason == "stop" for _, speech in speeches) >= 19
    ratios = [
        len(speech.audio) / (HOP * len(spectrograms[profile][index]))
        for index, (profile, speech) in enumerate(speeches)
    ]
    assert sum(abs(ratio - 1) <= 0.15 for ratio in ratios) >= 18
    assert 0.93 < np.median(ratios) < 1.07


def test_it_speaks_in_the_voice_that_is_named(speeches):
    right = [abs(pitch(speech.audio) / PITCHES[profile] - 1) < 0.1 for profile, speech in speeches]
    assert sum(right) >= 19


@pytest.mark.filterwarnings("ignore:.*it is short:higgs_native.VoiceWarning")
def test_it_clones_a_recording(engine, speeches):
    for reference in (0, 1):
        profile, shown = speeches[reference]
        speech = engine.speak(
            "hello and welcome.",
            reference_audio=(shown.audio, shown.sampling_rate),
            reference_text=TEXTS[reference],
            seed=0,
        )
        assert abs(pitch(speech.audio) / PITCHES[profile] - 1) < 0.1


def test_the_measure_tells_sentences_apart(spectrograms):
    """A test of the test: the others are far from what is right, and noise is far from all."""
    distances = torch.stack([warped_distances(s, spectrograms["feminine"]) for s in spectrograms["feminine"]])
    assert float(distances.diagonal().max()) < 1
    assert float(distances.fill_diagonal_(torch.inf).min()) > 30
    noise = mel_spectrogram(np.random.default_rng(0).standard_normal(48000).astype(np.float32))
    assert float(warped_distances(noise, spectrograms["feminine"]).min()) > 30


@torch.no_grad()
def test_transformers_reads_it_and_agrees():
    """The published implementation loads the same files: greedy codes, and the sound of codes."""
    from tests.helpers import transformers_reference as reference

    engine = HiggsAudio.from_pretrained(dtype="float32")
    messages = speech_messages(TEXTS[0], convention="transformers")
    prompt = build_prompt(messages, engine.model.tokenizer, "transformers", force_audio_gen=True)
    model = reference.load(EMBEDDED_VOICE)
    theirs = reference.generate(model, [reference.Prompt(prompt.input_ids)], 12)
    ours = engine.model.generate(
        prompt.input_ids,
        convention="transformers",
        max_new_tokens=12,
        temperature=0,
        ras_win_len=None,
        output_logits=True,
    )
    torch.testing.assert_close(ours.audio_logits[1], theirs.logits[1, 0], rtol=1e-3, atol=1e-3)
    assert torch.equal(ours.audio_segments[0], theirs.codes[0])

    codec, report = reference.transformers.HiggsAudioV2TokenizerModel.from_pretrained(
        EMBEDDED_VOICE / "audio_tokenizer", dtype=torch.float32, output_loading_info=True
    )
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    codes = torch.randint(0, 256, (8, 20), generator=torch.Generator().manual_seed(0))
    sound = codec.eval().decode(codes[None]).audio_values[0, 0]
    torch.testing.assert_close(engine.audio_tokenizer.decode(codes), sound, rtol=1e-3, atol=1e-4)
    audio = sound[None, None]
    agreement = engine.audio_tokenizer.encode(sound, 24000) == codec.encode(audio).audio_codes[0]
    assert float(agreement.float().mean()) > 0.99
