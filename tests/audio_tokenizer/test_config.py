"""The audio tokenizer's configuration: both layouts, derived sizes, and refusals."""

import json
import math
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
        (RECIPE["config"] | {"ratios": 8}, "ratios must be a list, got 8"),
        (RECIPE["config"] | {"ratios": [8, 5, 4, 2, 3, 1]}, "upsampling_ratios must be at least 2 each, got"),
        (RECIPE["config"] | {"ratios": [2] * 11}, "decoder_hidden_size must be a multiple of 2048 .*, got 1024"),
        (RECIPE["config"] | {"bins": "many"}, "bins must be an integer, got 'many'"),
        (PUBLISHED.to_dict() | {"target_bandwidths": [0.1]}, "num_codebooks must be positive, got 0"),
        (PUBLISHED.to_dict() | {"strides": [1]}, "strides must be as many as channel_ratios, 2, got "),
        (PUBLISHED.to_dict() | {"channel_ratios": [1, 2]}, "channel_ratios must be 1 at the end, got "),
        (
            PUBLISHED.to_dict() | {"acoustic_model_config": {"upsampling_ratios": [2]}},
            "upsampling_ratios must be ratios with the product of downsampling_ratios, 960, got",
        ),
        (
            PUBLISHED.to_dict() | {"acoustic_model_config": [1]},
            r"acoustic_model_config must be a JSON object, got \[1\]",
        ),
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
            r"conv_dim, conv_kernel and conv_stride must be of the same length, got \(1, 7, 7\)",
        ),
        (
            PUBLISHED.to_dict() | {"semantic_model_config": {"conv_stride": [5, 2, 2, 2, 2, 200, 2]}},
            r"conv_kernel and conv_stride must be small enough for 0.1 s of audio, got",
        ),
        (
            PUBLISHED.to_dict() | {"semantic_model_config": {"num_attention_heads": 5}},
            "hidden_size must be a multiple of its num_attention_heads, 5, got 768",
        ),
        (RECIPE["config"] | {"D": [256]}, r"json: D must be an integer, got \[256\]"),
        (RECIPE["config"] | {"sample_rate": math.inf}, "sample_rate must be an integer, got inf"),
        (RECIPE["config"] | {"ratios": [8, 5, 4, 2, "3"]}, "ratios must be an integer, got '3'"),
        (RECIPE["config"] | {"ratios": [1, 2] * 100_000}, "downsampling_ratios must be a list of at most 16, got"),
        (RECIPE["config"] | {"n_q": 65}, "num_codebooks must be at most 64, got 65"),
        (RECIPE["config"] | {"bins": 10**4000}, "bins must be at most 2147483647, got"),
        (RECIPE["config"] | {"sample_rate": 10**6}, "sampling_rate must be at most 768000, got 1000000"),
        (RECIPE["config"] | {"sample_rate": 23999}, "semantic_sampling_rate must be in a ratio of numbers up to 1000"),
        (RECIPE["config"] | {"ratios": [8, 5, 4, 20, 30]}, r"must be at most 24000 \(1 s\), got 96000"),
        (PUBLISHED.to_dict() | {"codebook_size": 1}, "codebook_size must be at least 2, got 1"),
        (PUBLISHED.to_dict() | {"codebook_size": -4}, "codebook_size must be at least 2, got -4"),
        (
            PUBLISHED.to_dict() | {"target_bandwidths": [math.nan]},
            "target_bandwidths must be a finite number, got nan",
        ),
        (PUBLISHED.to_dict() | {"target_bandwidths": ["2"]}, "target_bandwidths must be a finite number, got '2'"),
        (PUBLISHED.to_dict() | {"target_bandwidths": [1e300]}, "num_codebooks must be at most 2147483647, got"),
        (PUBLISHED.to_dict() | {"channel_ratios": [1e300, 1]}, "channel_ratios must be at most 2147483647, got"),
        (PUBLISHED.to_dict() | {"unit_kernel_size": 4}, "unit_kernel_size must be odd, got 4"),
        (
            PUBLISHED.to_dict() | {"acoustic_model_config": {"downsampling_ratios": [0]}},
            r"the product of downsampling_ratios must be positive, got \(0,\)",
        ),
        (
            PUBLISHED.to_dict() | {"semantic_model_config": {"num_hidden_layers": 65536}},
            "HuBERT's num_hidden_layers must be at most 1024, got 65536",
        ),
        (
            PUBLISHED.to_dict() | {"semantic_model_config": {"conv_bias": 1}},
            "semantic_model_config: conv_bias must be true or false, got 1",
        ),
        (
            PUBLISHED.to_dict() | {"semantic_model_config": {"layer_norm_eps": "tiny"}},
            "semantic_model_config: layer_norm_eps must be a finite number, got 'tiny'",
        ),
    ],
)
def test_an_impossible_configuration_is_refused(raw, message):
    with pytest.raises(ConfigError, match=message) as error:
        HiggsAudioTokenizerConfig.from_dict(raw)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("raw", [None, [], 3])
def test_what_is_no_object_is_refused(raw):
    with pytest.raises(ConfigError, match=r"^the audio tokenizer's config\.json must be a JSON object, got "):
        HiggsAudioTokenizerConfig.from_dict(raw)


def test_ratios_stay_as_they_are_written():
    """The fingerprint of a run, which resumes only with the same model, covers the configuration as text."""
    assert repr(HiggsAudioTokenizerConfig.from_dict(PUBLISHED.to_dict())) == repr(PUBLISHED)
