"""Engines of small random models, and a recording."""

import numpy as np
import pytest
import soundfile
import torch

from higgs_native.pipeline import HiggsAudio
from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_demo_checkpoint, write_language_model


TEXT = "The sun rises in the east."
RATE = 24000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    return HiggsAudio.from_pretrained(folder)


@pytest.fixture(scope="module")
def engines(folder, engine, tmp_path_factory):
    """An engine of each convention."""
    engines = {}
    for layout, name in (("original", "boson"), ("transformers", "transformers")):
        model = tmp_path_factory.mktemp(layout)
        write_language_model(model, DEMO_CONFIG, layout, torch.float32)
        engines[name] = HiggsAudio.from_pretrained(model, audio_tokenizer=folder / "audio_tokenizer")
        assert engines[name].convention == name
    return engines


@pytest.fixture(scope="module")
def samples():
    time = np.arange(RATE) / RATE
    return (0.5 * np.sin(2 * np.pi * 220 * time) * np.sin(np.pi * time)).astype(np.float32)


@pytest.fixture
def recording(samples, tmp_path):
    soundfile.write(tmp_path / "voice.wav", samples, RATE, subtype="FLOAT")
    return tmp_path / "voice.wav"
