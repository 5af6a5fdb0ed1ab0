"""The audio tokenizer against transformers, with random weights of small and of the published size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from higgs_native.audio_tokenizer import encoder
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig, HubertConfig
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.convention import Convention
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer
from tests.audio_tokenizer.test_config import SMALL
from tests.helpers.near_ties import assert_same_codes
from tests.helpers.transformers_reference import transformers


CONFIGS = {
    "small": SMALL,
    "demo": DEMO_AUDIO_TOKENIZER_CONFIG,
    # 2 of HuBERT's 12 equal layers, which saves most of the time.
    "published": replace(HiggsAudioTokenizerConfig(), hubert=HubertConfig(num_hidden_layers=2)),
}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """One checkpoint in both implementations."""
    folder: Path = tmp_path_factory.mktemp("audio_tokenizer")
    write_audio_tokenizer(folder, CONFIGS[request.param])
    reference = transformers.HiggsAudioV2TokenizerModel.from_pretrained(folder).eval()
    yield HiggsAudioTokenizer.from_pretrained(folder), reference
    (folder / "model.safetensors").unlink()


def noise(samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


@pytest.mark.parametrize("frames", [1, 2, 13, 30])
def test_decoded_audio_is_equal(pair, frames):
    native, reference = pair
    generator = torch.Generator().manual_seed(frames)
    codes = torch.randint(native.codebook_size, (native.num_codebooks, frames), generator=generator)
    with torch.no_grad():
        expected = reference.decode(codes[None]).audio_values[0, 0]
    audio = native.decode(codes)
    assert audio.shape == (frames * 960,)
    torch.testing.assert_close(audio, expected, rtol=0, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("samples", [2400, 9600, 4831, 5279, 14399])
def test_codes_are_equal(pair, samples):
    """Whole frames, and lengths at which the branches differ."""
    native, reference = pair
    audio = noise(samples)
    with torch.no_grad():
        expected = reference.encode(audio[None, None]).audio_codes[0]
        embeddings = encoder.embeddings(native._weights, native.config, audio[None], Convention.TRANSFORMERS)
    codes = native.encode(audio, 24000, convention="transformers")
    assert_same_codes(native._weights, embeddings, codes, expected)
    if samples % 960 == 0:
        assert torch.equal(native.encode(audio, 24000, convention="boson"), codes)


def test_transformers_convention_refuses_branches_that_differ(tmp_path):
    """transformers fails if the configuration makes one branch twice as long."""
    write_audio_tokenizer(tmp_path, replace(DEMO_AUDIO_TOKENIZER_CONFIG, downsample_factor=160))
    native = HiggsAudioTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"as many acoustic as semantic frames, got 11 and 5 of 9600 samples; pad it"):
        native.encode(noise(9600), 24000, convention="transformers")
    assert native.encode(noise(9600), 24000, convention="boson").shape == (8, 5)
