"""The engine of the golden cases."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from higgs_native.compat.boson import HiggsAudioServeEngine
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer
from tests.compat.boson.golden import FOLDER, references


@pytest.fixture(scope="module")
def audio_tokenizer_folder(tmp_path_factory):
    """An audio tokenizer with the codebooks of the golden language model."""
    folder = tmp_path_factory.mktemp("audio_tokenizer")
    write_audio_tokenizer(folder, replace(DEMO_AUDIO_TOKENIZER_CONFIG, codebook_size=30))
    return folder


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "cases.safetensors")


@pytest.fixture(scope="module")
def engine(audio_tokenizer_folder, tensors):
    """The golden engine. It encodes samples of the value n as the n-th reference of all cases."""
    engine = HiggsAudioServeEngine(str(FOLDER), str(audio_tokenizer_folder))
    all_references = references(tensors)
    engine.audio_tokenizer.native.encode = lambda samples, rate, convention=None: all_references[int(samples[0])]
    return engine
