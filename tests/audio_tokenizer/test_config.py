"""The audio tokenizer's configuration: both layouts, derived sizes, and refusals."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig, HubertConfig
from higgs_native.errors import ConfigError


RECIPE = json.loads((Path(__file__).parents[1] / "golden" / "boson_codec" / "recipe.json").read_text())
PUBLISHED = HiggsAudioTokenizerConfig()
SMALL = replace(
    PUBLISHED,
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


def test_published_sizes():
    assert (
        PUBLISHED.hop_length,
        PUBLISHED.frame_rate,
        PUBLISHED.hidden_size,
        PUBLISHED.semantic_downsample_factor,
    ) == (960, 25, 1024, 2)
    assert PUBLISHED.decoder_context == 10
    # HuBERT's window has 400 samples at 16 kHz, of which the padding gives 320.
    assert (PUBLISHED.min_samples, PUBLISHED.min_acoustic_samples) == (119, 632)


def test_a_frame_may_be_shorter_than_huberts():
    config = HiggsAudioTokenizerConfig.from_dict(RECIPE["config"] | {"ratios": [2, 2]})
    assert (config.hop_length, config.semantic_downsample_factor) == (4, 1)


def test_boson_layout():
    assert HiggsAudioTokenizerConfig.from_dict(RECIPE["config"]) == PUBLISHED


@pytest.mark.parametrize(
    "config", [PUBLISHED, SMALL, replace(SMALL, num_codebooks=7)], ids=["published", "small", "seven"]
)
def test_transformers_layout_round_trips(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert HiggsAudioTokenizerConfig.from_pretrained(tmp_path) == config


def test_defaults_are_the_published_values():
    """Among them 8 codebooks: the class default of transformers 5.23 would make 16."""
    assert HiggsAudioTokenizerConfig.from_dict({"model_type": "higgs_audio_v2_tokenizer"}) == PUBLISHED


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "model_type must be 'higgs_audio_v2_tokenizer', got None"),
        ({"model_type": "dac"}, "got 'dac'"),
        (
            RECIPE["config"] | {"semantic_techer": "wavlm"},
            "semantic_techer must be 'hubert_base' or 'hubert_base_general', got 'wavlm'",
        ),
        (RECIPE["config"] | {"downsample_mode": "avg"}, "downsample_mode must be 'step_down', got 'avg'"),
        ({"n_q": 8}, "no 'ratios'"),
        (RECIPE["config"] | {"n_q": 0}, "num_codebooks must be positive, got 0"),
        (RECIPE["config"] | {"ratios": []}, "downsampling_ratios must be positive, got"),
        (RECIPE["config"] | {"ratios": 8}, "not iterable"),
        (RECIPE["config"] | {"ratios": [8, 5, 4, 2, 3, 1]}, "upsampling_ratios must be at least 2 each, got"),
        (RECIPE["config"] | {"ratios": [2] * 11}, "decoder_hidden_size must be a multiple of 2048 .*, got 1024"),
        (RECIPE["config"] | {"bins": "many"}, "invalid literal"),
        (PUBLISHED.to_dict() | {"target_bandwidths": [0.1]}, "num_codebooks must be positive, got 0"),
        (PUBLISHED.to_dict() | {"strides": [1]}, "strides must have the length of channel_ratios, 2, got 1"),
        (PUBLISHED.to_dict() | {"channel_ratios": [1, 2]}, "channel_ratios must end with 1"),
        (
            PUBLISHED.to_dict() | {"acoustic_model_config": {"upsampling_ratios": [2]}},
            "upsampling_ratios must have the product of downsampling_ratios, 960, got",
        ),
        (PUBLISHED.to_dict() | {"acoustic_model_config": [1]}, "has no attribute"),
        (
            PUBLISHED.to_dict() | {"semantic_model_config": {"feat_extract_norm": "layer"}},
            "feat_extract_norm must be 'group', got 'layer'",
        ),
        (
            PUBLISHED.to_dict() | {"semantic_model_config": {"do_stable_layer_norm": True}},
            "do_stable_layer_norm must be False, got True",
        ),
        (
            PUBLISHED.to_dict() | {"semantic_model_config": {"conv_dim": [3]}},
            "conv_dim, conv_kernel and conv_stride must have the same length, got 1, 7 and 7",
        ),
        (
            PUBLISHED.to_dict() | {"semantic_model_config": {"num_attention_heads": 5}},
            "hidden_size must be a multiple of its num_attention_heads, 5, got 768",
        ),
    ],
)
def test_an_impossible_configuration_is_refused(raw, message):
    with pytest.raises(ConfigError, match=message) as error:
        HiggsAudioTokenizerConfig.from_dict(raw)
    assert "\n" not in str(error.value)
