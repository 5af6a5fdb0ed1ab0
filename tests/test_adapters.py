"""Adapters from end to end: a speech, a stream, a conversation and a long text name one, on one engine."""

import numpy as np
import pytest

from higgs_native.checkpoint.adapter import BASE_KEY, SPEAKERS_KEY
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.voices import Voice
from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_demo_checkpoint
from tests.model.test_low_rank import write_factors


TEXT = "The sun rises in the east."
OPTIONS = {"seed": 1, "max_new_tokens": 20}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint, and two adapters of it."""
    folder = tmp_path_factory.mktemp("adapters")
    write_demo_checkpoint(folder / "base")
    write_factors(folder / "anna", DEMO_CONFIG, **{SPEAKERS_KEY: "anna\nben"})
    write_factors(folder / "other", DEMO_CONFIG, seed=1)
    return folder


@pytest.fixture(scope="module")
def engine(folders):
    engine = HiggsAudio.from_pretrained(folders / "base", adapters={"anna": folders / "anna"})
    engine.load_adapter("other", folders / "other")
    return engine


def test_each_speech_has_its_adapter(folders):
    engine = HiggsAudio.from_pretrained(folders / "base", dtype="float32", adapters={"other": folders / "other"})
    merged = HiggsAudio.from_pretrained(folders / "base", dtype="float32", adapter=folders / "other")
    plain, adapted = engine.speak(TEXT, **OPTIONS), engine.speak(TEXT, adapter="other", **OPTIONS)
    assert not np.array_equal(plain.codes, adapted.codes)
    # Sums of float32 are rounded at other places, by too little to draw other codes.
    assert np.array_equal(adapted.codes, merged.speak(TEXT, **OPTIONS).codes)
    without = HiggsAudio.from_pretrained(folders / "base", dtype="float32")
    assert np.array_equal(plain.codes, without.speak(TEXT, **OPTIONS).codes)


def test_the_speakers_of_an_adapter_are_voices(engine):
    """The first of them speaks if nobody is named."""
    described = engine.speak(TEXT, Voice(profile="anna"), adapter="anna", **OPTIONS)
    assert engine.speak(TEXT, adapter="anna", **OPTIONS) == described
    assert engine.speak(TEXT, "anna", adapter="anna", **OPTIONS) == described
    assert engine.speak(TEXT, "ben", adapter="anna", **OPTIONS) != described
    assert engine.voices_with("anna") == ("anna", "ben")
    assert engine.voices_with(None) == engine.voices_with("other") == ()


def test_a_stream_and_a_conversation_are_the_speech(engine):
    speech = engine.speak(TEXT, adapter="anna", **OPTIONS)
    chunks = [chunk.samples for chunk in engine.stream(TEXT, adapter="anna", **OPTIONS)]
    np.testing.assert_array_equal(np.concatenate(chunks), speech.audio)
    reply = engine.generate(
        engine.speech_messages(TEXT, [Voice(profile="anna")], None), True, adapter="anna", **OPTIONS
    )
    assert np.array_equal(reply.codes, speech.codes)


def test_a_long_text_has_an_adapter_and_goes_on_with_the_same(engine, tmp_path):
    options = {"seed": 1, "max_retries": 0, "parallel": 2, "context_chunks": 0}
    with pytest.raises(ParameterError, match=r"adapter must be one that is loaded \(anna, other\), got 'none'"):
        LongSpeech(engine, TEXT, tmp_path / "none", adapter="none", **options)
    assert not (tmp_path / "none").exists()
    (chunk,) = LongSpeech(engine, TEXT, tmp_path / "parts", adapter="other", **options)
    (plain,) = LongSpeech(engine, TEXT, tmp_path / "plain", **options)
    assert not np.array_equal(chunk.codes, plain.codes)
    (again,) = LongSpeech(engine, TEXT, tmp_path / "parts", adapter="other", **options)
    assert np.array_equal(again.pcm, chunk.pcm)
    for adapter in ("anna", None):
        with pytest.raises(ParameterError, match="folder"):
            LongSpeech(engine, TEXT, tmp_path / "parts", adapter=adapter, **options)


def test_what_is_wrong_is_refused_before_work_starts(engine, folders, tmp_path):
    for speak in (engine.speak, engine.stream):
        with pytest.raises(ParameterError, match=r"adapter must be one that is loaded \(anna, other\), got 'none'"):
            speak(TEXT, adapter="none")
        with pytest.raises(ParameterError, match="adapter must be a string"):
            speak(TEXT, adapter=1)
    foreign = write_factors(tmp_path / "foreign", DEMO_CONFIG, **{BASE_KEY: "0" * 64})
    with pytest.raises(CheckpointError, match="must be of this base, got one of another base"):
        engine.load_adapter("foreign", foreign)
    with pytest.raises(CheckpointError, match="must be of this base, got one of another base"):
        HiggsAudio.from_pretrained(folders / "base", adapters={"foreign": foreign})
    with pytest.raises(ParameterError, match="adapters must be folders by name, got 1"):
        HiggsAudio.from_pretrained(folders / "base", adapters=1)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_bytes((foreign / "adapter_config.json").read_bytes())
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing or damaged"):
        engine.load_adapter("pickled", pickled)
    engine.load_adapter("gone", folders / "other")
    engine.unload_adapter("gone")
    with pytest.raises(ParameterError, match="adapter must be one that is loaded"):
        engine.unload_adapter("gone")
