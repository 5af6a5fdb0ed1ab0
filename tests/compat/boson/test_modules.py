"""Boson's module names over this package."""

import importlib
import sys
import types

import pytest

from higgs_native.compat import boson
from higgs_native.compat.boson.modules import MODULES
from higgs_native.errors import ParameterError


@pytest.fixture
def installed(monkeypatch):
    """Boson's module names, for one test."""
    names = [f"boson_multimodal{suffix}" for suffix in MODULES]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    boson.install()
    yield
    for name in names:
        sys.modules.pop(name, None)


def test_the_imports_of_programs(installed):
    from boson_multimodal.audio_processing.higgs_audio_tokenizer import load_higgs_audio_tokenizer
    from boson_multimodal.constants import AUDIO_IN_TOKEN, AUDIO_OUT_TOKEN
    from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioBatchInput, HiggsAudioSampleCollator
    from boson_multimodal.data_types import AudioContent, ChatMLSample, Message, TextContent
    from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample, prepare_chatml_sample
    from boson_multimodal.model.higgs_audio import HiggsAudioConfig, HiggsAudioModel
    from boson_multimodal.model.higgs_audio.configuration_higgs_audio import HiggsAudioConfig as SameConfig
    from boson_multimodal.model.higgs_audio.modeling_higgs_audio import HiggsAudioModel as SameModel
    from boson_multimodal.model.higgs_audio.utils import revert_delay_pattern
    from boson_multimodal.serve.serve_engine import (
        AsyncHiggsAudioStreamer,
        HiggsAudioResponse,
        HiggsAudioServeEngine,
        HiggsAudioStreamerDelta,
    )

    assert (AUDIO_IN_TOKEN, AUDIO_OUT_TOKEN) == ("<|AUDIO|>", "<|AUDIO_OUT|>")
    assert (SameConfig, SameModel) == (HiggsAudioConfig, HiggsAudioModel)
    for thing in (
        AsyncHiggsAudioStreamer,
        AudioContent,
        ChatMLDatasetSample,
        ChatMLSample,
        HiggsAudioBatchInput,
        HiggsAudioConfig,
        HiggsAudioModel,
        HiggsAudioResponse,
        HiggsAudioSampleCollator,
        HiggsAudioServeEngine,
        HiggsAudioStreamerDelta,
        Message,
        TextContent,
        load_higgs_audio_tokenizer,
        prepare_chatml_sample,
        revert_delay_pattern,
    ):
        assert getattr(boson, thing.__name__) is thing


def test_modules_are_attributes_of_their_packages(installed):
    import boson_multimodal.serve.serve_engine

    assert boson_multimodal.serve.serve_engine.HiggsAudioServeEngine is boson.HiggsAudioServeEngine
    assert boson_multimodal.model.higgs_audio.utils.revert_delay_pattern is boson.revert_delay_pattern
    assert importlib.util.find_spec("boson_multimodal.serve.serve_engine") is not None
    assert importlib.import_module("boson_multimodal.data_types").Message is boson.Message


def test_what_is_not_there_is_one_line(installed):
    import boson_multimodal.model.higgs_audio.modeling_higgs_audio as modeling

    with pytest.raises(
        AttributeError, match=r"modeling_higgs_audio has no HiggsAudioEncoder here: higgs_native\.compat"
    ):
        _ = modeling.HiggsAudioEncoder
    with pytest.raises(
        ImportError, match=r"cannot import name 'AudioAligner' from .*higgs_native.compat.boson.modules"
    ):
        from boson_multimodal.model.higgs_audio.modeling_higgs_audio import AudioAligner  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'boson_multimodal\.trainer'"):
        importlib.import_module("boson_multimodal.trainer")


def test_installing_twice(installed):
    first = sys.modules["boson_multimodal.serve.serve_engine"].HiggsAudioServeEngine
    boson.install()
    assert sys.modules["boson_multimodal.serve.serve_engine"].HiggsAudioServeEngine is first


def test_the_package_itself_is_not_replaced(monkeypatch):
    own = types.ModuleType("boson_multimodal")
    own.__file__ = "site-packages/boson_multimodal/__init__.py"
    monkeypatch.setitem(sys.modules, "boson_multimodal", own)
    with pytest.raises(ParameterError, match=r"must not be imported before install\(\), got that of site-packages/"):
        boson.install()
    assert sys.modules["boson_multimodal"] is own
    assert "boson_multimodal.serve" not in sys.modules
