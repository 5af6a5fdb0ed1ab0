"""The audio tokenizer's configuration: both layouts, what follows from it, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig, HubertConfig, tensor_shapes
from higgs_native.errors import ConfigError


RECIPE = json.loads((Path(__file__).parents[1] / "golden" / "boson_codec" / "recipe.json").read_text())
REAL = HiggsAudioTokenizerConfig()
SMALL = replace(
    REAL,
    num_codebooks=3,
    codebook_size=32,
    codebook_dim=5,
    encoder_hidden_size=2,
    decoder_hidden_size=64,
    acoustic_hidden_size=7,
    upsampling_ratios=(3, 5, 8, 4, 2),
    block_dilations=(1, 2, 3),
    hubert=HubertConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=9,
        conv_dim=(4, 5, 6, 7, 8, 9, 10),
        conv_bias=True,
        num_conv_pos_embeddings=5,
        num_conv_pos_embedding_groups=4,
        feat_proj_layer_norm=False,
    ),
)


def test_the_published_sizes():
    assert (REAL.hop_length, REAL.frame_rate, REAL.hidden_size, REAL.semantic_downsample_factor) == (960, 25, 1024, 2)
    assert REAL.decoder_context == 10
    shapes = tensor_shapes(REAL)
    assert shapes["acoustic_decoder.block.0.conv_t1.weight"] == (1024, 512, 16)
    assert shapes["quantizer.quantizers.7.codebook.embed"] == (1024, 64)
    assert shapes["semantic_model.encoder.pos_conv_embed.conv.parametrizations.weight.original1"] == (768, 48, 128)


def test_bosons_layout():
    assert HiggsAudioTokenizerConfig.from_dict(RECIPE["config"]) == REAL


@pytest.mark.parametrize("config", [REAL, SMALL, replace(SMALL, num_codebooks=7)], ids=["real", "small", "seven"])
def test_the_transformers_layout_round_trips(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert HiggsAudioTokenizerConfig.from_pretrained(tmp_path) == config


def test_values_left_out_are_the_published_ones():
    """8 codebooks, then: the class default of transformers 5.23 would make 16 of them."""
    assert HiggsAudioTokenizerConfig.from_dict({"model_type": "higgs_audio_v2_tokenizer"}) == REAL


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "model_type is None; expected 'higgs_audio_v2_tokenizer'"),
        ({"model_type": "dac"}, "model_type is 'dac'"),
        (RECIPE["config"] | {"semantic_techer": "wavlm"}, "semantic_techer is 'wavlm'"),
        (RECIPE["config"] | {"downsample_mode": "avg"}, "downsample_mode is 'avg'"),
        ({"n_q": 8}, "no 'ratios'"),
        (RECIPE["config"] | {"n_q": 0}, "num_codebooks is 0; expected positive"),
        (RECIPE["config"] | {"ratios": []}, "downsampling_ratios is .*; expected positive"),
        (RECIPE["config"] | {"ratios": 8}, "not iterable"),
        (RECIPE["config"] | {"ratios": [8, 5, 4, 2, 3, 1]}, "expected at least 2 each"),
        (RECIPE["config"] | {"ratios": [2, 2]}, "shorter than a HuBERT frame"),
        (RECIPE["config"] | {"ratios": [2] * 11}, "can't be halved 11 times"),
        (RECIPE["config"] | {"bins": "many"}, "invalid literal"),
        (REAL.to_dict() | {"target_bandwidths": [0.1]}, "num_codebooks is 0"),
        (REAL.to_dict() | {"strides": [1]}, "strides and channel_ratios differ"),
        (REAL.to_dict() | {"channel_ratios": [1, 2]}, "channel_ratios must end at 1"),
        (REAL.to_dict() | {"acoustic_model_config": {"upsampling_ratios": [2]}}, "differ in their products"),
        (REAL.to_dict() | {"acoustic_model_config": [1]}, "has no attribute"),
        (REAL.to_dict() | {"semantic_model_config": {"feat_extract_norm": "layer"}}, "feat_extract_norm 'layer'"),
        (REAL.to_dict() | {"semantic_model_config": {"do_stable_layer_norm": True}}, "do_stable_layer_norm True"),
        (
            REAL.to_dict() | {"semantic_model_config": {"conv_dim": [3]}},
            "conv_dim, conv_kernel and conv_stride differ",
        ),
        (REAL.to_dict() | {"semantic_model_config": {"num_attention_heads": 5}}, "no multiple of its num_attention"),
    ],
)
def test_what_can_not_be_is_named(raw, message):
    with pytest.raises(ConfigError, match=message) as error:
        HiggsAudioTokenizerConfig.from_dict(raw)
    assert "\n" not in str(error.value)
