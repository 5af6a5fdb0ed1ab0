"""The small model of the tests of the engine, and its folder."""

import pytest
import torch

from higgs_native.generation.model import HiggsAudioModel
from higgs_native.testing.random_checkpoint import write_language_model
from tests.generation.random_requests import load
from tests.model.test_transformer import config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    # Wide enough for a group of quantized weights.
    write_language_model(
        folder, config(hidden_size=128, intermediate_size=128), layout="original", dtype=torch.float32, endless=True
    )
    return folder


@pytest.fixture(scope="module")
def model(folder) -> HiggsAudioModel:
    return load(folder)
