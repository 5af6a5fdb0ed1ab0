"""The audio tokenizer's networks against the outputs of the original implementation (tests/golden/boson_codec)."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from higgs_native.audio.resample import resample_sinc
from higgs_native.audio_tokenizer import encoder
from higgs_native.audio_tokenizer.checkpoint import convert
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig, HubertConfig
from higgs_native.audio_tokenizer.decoder import StreamingDecoder
from higgs_native.audio_tokenizer.hubert import semantic_features
from higgs_native.audio_tokenizer.layers import Weights
from higgs_native.audio_tokenizer.weights import pack_weights
from higgs_native.convention import Convention
from tests.audio_tokenizer.test_config import RECIPE
from tests.golden import recipe
from tests.helpers.near_ties import assert_same_codes


CASES = load_file(Path(__file__).parents[1] / "golden" / "boson_codec" / "cases.safetensors")


@pytest.fixture(scope="module")
def config() -> HiggsAudioTokenizerConfig:
    hubert = {
        field.name: tuple(value) if isinstance(value, list) else value
        for field in fields(HubertConfig)
        if (value := RECIPE["hubert_config"].get(field.name)) is not None
    }
    return replace(HiggsAudioTokenizerConfig.from_dict(RECIPE["config"]), hubert=HubertConfig(**hubert))


@pytest.fixture(scope="module")
def weights(config) -> Weights:
    state = {name: torch.from_numpy(recipe.tensor(name, shape)) for name, shape in RECIPE["tensors"].items()}
    return pack_weights(convert(state, config), config)


def test_decoded_audio_equals_the_original(weights, config):
    audio = StreamingDecoder(weights, config).decode(CASES["decode.codes"], is_last=True)
    assert audio.shape == CASES["decode.audio"].shape
    torch.testing.assert_close(audio, CASES["decode.audio"], rtol=0, atol=1e-5 * CASES["decode.audio"].abs().max())


@pytest.mark.parametrize("case", "abc")
def test_semantic_features_equal_the_original(weights, config, case):
    features = semantic_features(weights, config, CASES[f"encode.{case}.audio"][None])
    torch.testing.assert_close(features, CASES[f"encode.{case}.semantic"], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def initialized(weights, config) -> Weights:
    """The weights with the codebooks that the original encoded with.

    They are not the recipe's. The recipe leaves the codebooks' `inited` flag unset, so the original replaced them
    when it first encoded, by the k-means centers of that audio, case a. With 25 frames for 1024 centers, every center
    is one of the frames (projected into the codebook), repeated many times, and the first copy is chosen. So a
    frame's code in case a is the index of its center's first copy; the other copies are never chosen.
    """
    books = torch.full_like(weights["quantizer.codebook.embed"], 1e3)
    residual = encoder.embeddings(weights, config, CASES["encode.a.audio"][None], Convention.BOSON)
    for level, codes in enumerate(CASES["encode.a.codes"]):
        assert len(codes.unique()) == len(codes)
        x, quantized = project(weights, level, residual)
        books[level, codes.long()] = x
        residual = residual - quantized(x)
    return weights | {"quantizer.codebook.embed": books}


def project(weights, level, residual):
    """Return a level's input, projected into the codebook, and the function that projects back."""
    x = F.linear(residual, weights["quantizer.project_in.weight"][level], weights["quantizer.project_in.bias"][level])
    out = weights["quantizer.project_out.weight"][level], weights["quantizer.project_out.bias"][level]
    return x, lambda entry: F.linear(entry, *out)


@pytest.mark.parametrize("case", "abc")
def test_codes_equal_the_original(initialized, config, case):
    """In cases b and c the two branches differ in length."""
    audio, expected = CASES[f"encode.{case}.audio"][None], CASES[f"encode.{case}.codes"]
    codes = encoder.encode(initialized, config, audio)
    assert_same_codes(initialized, encoder.embeddings(initialized, config, audio, Convention.BOSON), codes, expected)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(24000, 16000), (16000, 24000), (44100, 16000), (8000, 8000)])
@pytest.mark.parametrize("samples", [1, 100, 4801])
def test_resampling_equals_torchaudio(from_rate, to_rate, samples):
    from tests.helpers.transformers_reference import transformers  # noqa: F401 (lets torchaudio import beside any torch)

    torchaudio = pytest.importorskip("torchaudio")
    audio = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    expected = torchaudio.functional.resample(audio, from_rate, to_rate)
    torch.testing.assert_close(resample_sinc(audio, from_rate, to_rate), expected, rtol=0, atol=2e-6)
