"""The audio tokenizer against transformers, on random weights of small and of the real size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from higgs_native.audio_tokenizer import encoder
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig, HubertConfig
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.testing.random_checkpoint import DEMO_AUDIO_TOKENIZER_CONFIG, write_audio_tokenizer
from tests.audio_tokenizer.test_config import SMALL
from tests.helpers.near_ties import assert_same_codes
from tests.helpers.transformers_reference import transformers


CONFIGS = {
    "small": SMALL,
    "demo": DEMO_AUDIO_TOKENIZER_CONFIG,
    # HuBERT's layers are all alike: 2 of the 12 save most of the time.
    "real": replace(HiggsAudioTokenizerConfig(), hubert=HubertConfig(num_hidden_layers=2)),
}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """The same checkpoint in both implementations."""
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
    """Whole frames, and lengths that make the branches differ."""
    native, reference = pair
    audio = noise(samples)
    with torch.no_grad():
        expected = reference.encode(audio[None, None]).audio_codes[0]
        embeddings = encoder.embeddings(native._weights, native.config, audio[None], "transformers")
    codes = native.encode(audio, 24000, length_rule="transformers")
    assert_same_codes(native._weights, embeddings, codes, expected)
    if samples % 960 == 0:
        assert torch.equal(native.encode(audio, 24000, length_rule="boson"), codes)


def test_the_transformers_rule_refuses_what_it_can_not_encode(tmp_path):
    """Where the configuration makes one branch twice as long, transformers fails at joining them."""
    write_audio_tokenizer(tmp_path, replace(DEMO_AUDIO_TOKENIZER_CONFIG, downsample_factor=160))
    native = HiggsAudioTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"9600 samples make 11 acoustic and 5 semantic frames"):
        native.encode(noise(9600), 24000, length_rule="transformers")
    assert native.encode(noise(9600), 24000, length_rule="boson").shape == (8, 5)
