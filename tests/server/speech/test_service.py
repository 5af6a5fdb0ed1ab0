"""The names and languages that a server gives its model."""

import pytest

from higgs_native import HiggsAudio
from higgs_native.server.settings import ServerSettings
from higgs_native.server.speech.service import SpeechService
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, DEMO_CONFIG, DEMO_TTS_3_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer, write_language_model


def test_the_embedded_voice_has_its_name(engine):
    service = SpeechService(engine, ServerSettings())
    assert (service.model_name, service.speaker.models[0]) == ("Embedded voice", "embedded-voice")
    assert service.languages == ("en",)
    assert SpeechService(engine, ServerSettings(model_id="mine")).speaker.models[0] == "mine"


@pytest.mark.parametrize(
    ("config", "layout", "name", "model_id"),
    [
        (DEMO_CONFIG, "original", "Higgs Audio V2", "higgs-audio-v2"),
        (
            DEMO_TTS_3_CONFIG,
            "higgs_tts_3",
            "Higgs TTS 3 (license: research and non-commercial use)",
            "higgs-tts-3",
        ),
    ],
)
def test_a_model_has_the_name_of_its_kind(tmp_path, config, layout, name, model_id):
    write_language_model(tmp_path / "model", config, layout)
    write_audio_tokenizer(tmp_path / "tokenizer", DEMO_AUDIO_TOKENIZER_CONFIG)
    engine = HiggsAudio.from_pretrained(tmp_path / "model", "cpu", audio_tokenizer=tmp_path / "tokenizer")
    service = SpeechService(engine, ServerSettings())
    assert (service.model_name, service.speaker.models[0]) == (name, model_id)
    assert service.languages == ("en", "zh", "de", "ko")
