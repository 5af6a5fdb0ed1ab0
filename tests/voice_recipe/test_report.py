"""The checkpoint that is made of the trainings, and its judges."""

import json

import numpy as np
import torch
from recipe import (
    export,
    judge,
    phoneme_tokenizer,
    report,
    speech_quantizer,
    tokenizer_networks,
    train_decoder,
    train_language_model,
)
from recipe.acoustic_networks import AcousticDecoder, AcousticEncoder
from safetensors.torch import save_file

from higgs_native.english.guess import Guesser
from higgs_native.pipeline import HiggsAudio
from higgs_native.training.model import TrainableModel
from tests.voice_recipe.helpers import run_step


def test_what_was_trained_becomes_a_checkpoint_that_speaks(rendered, materials, tmp_path, monkeypatch):
    tokenizer = phoneme_tokenizer.build_tokenizer()
    torch.manual_seed(0)
    config = train_language_model.model_config(tokenizer, 128, layers=1)
    language_model = TrainableModel(config, text_head=False)
    export.write_language_model(language_model.state_dict(), tmp_path)
    fitted = speech_quantizer.Quantizer.load(rendered / "codes" / "quantizer.safetensors")
    config = tokenizer_networks.tokenizer_config(fitted.latent, 32)
    parts = AcousticEncoder(config).state_dict(), AcousticDecoder(config).state_dict()
    export.write_audio_tokenizer(*parts, fitted, tmp_path / "audio_tokenizer")
    model = Guesser(width=32, inner=64, layers=1)
    save_file(model.state_dict(), tmp_path / "g", {name: str(value) for name, value in model.shape.items()})
    export.write_reader(materials, tmp_path / "g", tmp_path)
    voices = json.loads((tmp_path / export.VOICES_FILE).read_text())
    assert voices["emma"] == {"accent": "gb"}
    spoken = []
    original = HiggsAudio.prepare_request

    def prepare_request(self, conversation, *arguments, **options):
        spoken.append(conversation[-1].content)
        return original(self, conversation, *arguments, **options)

    monkeypatch.setattr(HiggsAudio, "prepare_request", prepare_request)
    speech = HiggsAudio.from_pretrained(tmp_path).speak("the cat sees", voice="emma", seed=1, max_new_tokens=12)
    assert spoken == ["ðə cˈæt sˈæs."]
    assert len(speech.audio) > 0


def test_the_judges_measures():
    filters = judge.mel_filters()
    assert filters.shape == (120, 161)
    assert (filters >= 0).all()
    time_axis = np.arange(48000) / 24000
    tone = 0.3 * sum(np.sin(2 * np.pi * 200 * k * time_axis) / k for k in (1, 2, 3))
    np.testing.assert_allclose(judge.pitches(tone), 200, rtol=0.01)
    assert judge.pitch_spread(tone) < 0.1
    glide = np.sin(2 * np.pi * np.cumsum(np.geomspace(150, 300, 48000)) / 24000)
    assert 2.5 < judge.pitch_spread(glide) < 4.0  # an octave, evenly: 12 / sqrt(12)
    assert judge.pitch_spread(np.zeros(48000)) == 0.0
    mels = judge.log_mels(np.sin(2 * np.pi * 440 * np.arange(16000) / 16000))
    assert mels.shape == (100, 120)
    assert mels.max() == 1.0
    assert mels.min() >= -1.0
    assert mels[50].argmax() == filters[:, round(440 * 321 / 16000)].argmax()


def test_the_report_judges_held_out_speech(rendered, monkeypatch):
    class Deaf:
        def __init__(self, materials):
            pass

        def hear(self, audio):
            return "the cat sees"

        def scores(self, audio):
            return 3.0, float(len(audio) > 0)

        def word_error_rate(self, said, heard):
            return sum(a != b for a, b in zip(said, heard, strict=True)) / len(said)

    monkeypatch.setattr(report, "Recognizer", Deaf)
    monkeypatch.setattr(report, "Quality", Deaf)
    small = ["--batch", "1", "--frames", "4", "--channels", "32", "--device", "cpu", "--log-every", "1"]
    run_step(train_decoder, rendered, *small, "--steps", "1")
    printed = run_step(report, rendered, "--count", "3")
    results = json.loads((rendered / "report.json").read_text())
    assert set(results) == {"teacher", "resynthesis"}
    assert results["teacher"]["utterances"] == 3
    assert results["teacher"]["word_error_rate"] == 1.0
    assert "resynthesis" in printed
