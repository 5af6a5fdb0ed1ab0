"""The commands with a Higgs TTS 3."""

import pytest
import soundfile

from higgs_native.pipeline import HiggsAudio
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, DEMO_TTS_3_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model


@pytest.fixture(scope="module")
def tts_3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tts3") / "model"
    write_language_model(
        folder, DEMO_TTS_3_CONFIG, "higgs_tts_3", endless=True, audio_tokenizer=DEMO_AUDIO_TOKENIZER_CONFIG
    )
    return folder


def test_an_emotion_and_a_style_are_tags_in_the_text(run, tts_3):
    arguments = ("--model", tts_3, "--seed", 1, "--max-new-tokens", 17, "--dtype", "float32")
    code, _, err = run("speak", "Hello. Who?", *arguments, "--emotion", "amusement", "--style", "whispering")
    assert code == 0, err
    tags = "<|emotion:amusement|><|style:whispering|>"
    engine = HiggsAudio.from_pretrained(tts_3, "cpu", "float32")
    speech = engine.speak(f"{tags}Hello. {tags}Who?", seed=1, max_new_tokens=17)
    speech.save("tagged.wav")
    ours, tagged = soundfile.read("out.wav")[0], soundfile.read("tagged.wav")[0]
    assert len(ours) == 10 * 960
    assert (ours == tagged).all()


def test_wrong_tags_are_told(run, tts_3, model):
    code, _, err = run("speak", "Hi.", "--model", tts_3, "--emotion", "joy")
    assert code == 2
    assert "emotion must be one of affection, amusement, anger" in err
    code, _, err = run("speak", "Hi.", "--model", model, "--style", "singing")
    assert code == 2
    assert "style must be None for this model, got 'singing'" in err


def test_quantize_packs_the_bundled_audio_tokenizer(run, tts_3):
    code, _, err = run("quantize", tts_3, "packed", "--format", "int4,heads=int8")
    assert code == 0, err
    code, _, err = run("speak", "Hello.", "--model", "packed", "--seed", 2, "--max-new-tokens", 12)
    assert code == 0, err
    assert len(soundfile.read("out.wav")[0]) == 5 * 960


def test_calibration_speaks_in_the_models_own_convention(run, tts_3):
    run.work.joinpath("texts.txt").write_text("Hello there.\nIt rains.\n")
    code, _, err = run("quantize", tts_3, "packed", "--calibrate", "--texts", "texts.txt")
    assert code == 0, err
    code, _, err = run("speak", "Hello.", "--model", "packed", "--seed", 2, "--max-new-tokens", 12)
    assert code == 0, err


def test_a_book_is_read(run, tts_3):
    arguments = ("--model", tts_3, "--seed", 1, "--max-retries", 0, "--chunk-seconds", 2)
    code, _, err = run("read", "A cat. [cough]\n\nA dog.", *arguments)
    assert code == 0, err
    assert len(soundfile.read("out.wav")[0]) > 48_000
