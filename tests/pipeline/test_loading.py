"""What is loaded, from which files, and how engines are told apart."""

import pytest
import torch

import higgs_native
from higgs_native import pipeline
from higgs_native.errors import CheckpointError, ConfigError, ParameterError, PromptError
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.voices import Voice
from higgs_native.utils.variables import VOICES_VARIABLE
from tests.pipeline.conftest import TEXT


def test_a_fingerprint_tells_models_apart(engine, engines, folder):
    fingerprints = {
        engine.fingerprint(),
        engines["transformers"].fingerprint(),
        HiggsAudio.from_pretrained(folder, dtype="float32" if engine.model.dtype is torch.bfloat16 else "bfloat16")
        .fingerprint(),
        HiggsAudio(engine.model, engine.audio_tokenizer, "boson").fingerprint(),
    }  # fmt: skip
    assert len(fingerprints) == 4
    assert HiggsAudio.from_pretrained(folder).fingerprint() == engine.fingerprint()
    table = engine.model.audio_table
    first = table[0, 0].clone()
    table[0, 0] += 1
    # Weights don't change after loading, so an engine keeps its fingerprint.
    changed = HiggsAudio(engine.model, engine.audio_tokenizer, engine.convention)
    assert changed.fingerprint() not in fingerprints
    table[0, 0] = first
    assert changed.fingerprint() not in fingerprints
    assert HiggsAudio(engine.model, engine.audio_tokenizer, engine.convention).fingerprint() == engine.fingerprint()


def test_the_embedded_voice_is_known(engine):
    assert not engine.is_embedded_voice
    assert HiggsAudio.from_pretrained().is_embedded_voice
    assert HiggsAudio.from_pretrained(pipeline.EMBEDDED_VOICE).is_embedded_voice


def test_voices_of_the_checkpoint_have_names(engine, monkeypatch):
    monkeypatch.delenv(VOICES_VARIABLE, raising=False)
    embedded = HiggsAudio.from_pretrained()
    assert embedded.trained_voices[:6] == ("heart", "bella", "fenrir", "puck", "emma", "george")
    assert embedded.trained_voices[6:] == ("feminine", "masculine")
    named = embedded.speak("Hello.", voice="fenrir", seed=1)
    described = embedded.speak("Hello.", voice=Voice(profile="fenrir"), seed=1)
    assert torch.equal(named.codes, described.codes)
    assert engine.trained_voices == ()
    with pytest.raises(PromptError, match="the folder of voices must be given"):
        engine.speak(TEXT, voice="fenrir")


@pytest.mark.parametrize("voices", ['"anna"', "[1]", '[" "]', "{}"])
def test_a_wrong_list_of_voices_is_refused(tmp_path, voices):
    (tmp_path / "config.json").write_text(f'{{"{pipeline.VOICES_KEY}": {voices}}}')
    with pytest.raises(ConfigError, match="must be a list of names"):
        pipeline.read_trained_voices(tmp_path)


def test_the_device_and_the_dtype(folder):
    assert HiggsAudio.from_pretrained(folder, dtype="float32").model.dtype == torch.float32
    assert HiggsAudio.from_pretrained(folder, device=torch.device("cpu"), dtype=torch.bfloat16)
    for device, message in (
        ("cuda:99", "device must be .*, got cuda:99: "),
        ("gpu", "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("mps", "device must be auto, cpu, cuda or cuda:N, got 'mps'"),
    ):
        with pytest.raises(ParameterError, match=message):
            HiggsAudio.from_pretrained(folder, device=device)


def test_a_model_and_an_audio_tokenizer_that_do_not_fit(engine, monkeypatch):
    monkeypatch.setattr(type(engine.audio_tokenizer), "codebook_size", 30)
    with pytest.raises(CheckpointError, match="8 codebooks of 1024 codes, but the audio tokenizer has 8 of 30"):
        HiggsAudio(engine.model, engine.audio_tokenizer)


def test_a_model_without_a_tokenizer(folder, tmp_path):
    for file in folder.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        HiggsAudio.from_pretrained(tmp_path)


@pytest.mark.parametrize("argument", ["path_or_name", "audio_tokenizer"])
def test_what_is_no_checkpoint(folder, argument):
    kind = "model" if argument == "path_or_name" else "audio tokenizer"
    arguments = {"path_or_name": folder, argument: 5}
    with pytest.raises(ParameterError, match=f"{kind} must be a string or a path, got 5"):
        HiggsAudio.from_pretrained(**arguments)
    arguments[argument] = "https://example.org/voice"
    with pytest.raises(
        CheckpointError, match=f"{kind} must be .*, got https://example.org/voice, which does not exist"
    ):
        HiggsAudio.from_pretrained(**arguments)


def test_the_published_audio_tokenizer_is_the_default(folder, tmp_path, monkeypatch):
    """A folder without `audio_tokenizer` in it asks the Hub."""
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    asked = []

    def from_pretrained(path_or_name, device):
        asked.append(path_or_name)
        raise CheckpointError("stop here")

    monkeypatch.setattr(pipeline.HiggsAudioTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(CheckpointError, match="stop here"):
        HiggsAudio.from_pretrained(tmp_path)
    assert asked == ["bosonai/higgs-audio-v2-tokenizer"]


def test_the_public_names_are_there():
    assert [name for name in higgs_native.__all__ if not hasattr(higgs_native, name)] == []
    assert higgs_native.HiggsAudio is HiggsAudio
