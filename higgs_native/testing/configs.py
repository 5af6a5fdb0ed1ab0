"""Configurations for tests and benchmarks, and how a configuration is written as `config.json`."""

from dataclasses import replace
from typing import Any

import torch

from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig, HubertConfig
from higgs_native.checkpoint.config import AUDIO_PLACEHOLDER, HiggsAudioConfig, RopeScaling
from higgs_native.convention import Convention
from higgs_native.errors import ConfigError
from higgs_native.ops.formats import STORED_DTYPES


CHECKPOINT_LAYOUTS = ("transformers", "original", "higgs_tts_3")

TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "pad_token": "<|end_of_text|>",
    "clean_up_tokenization_spaces": False,
}
"""The contents of `tokenizer_config.json`, by which transformers loads `tokenizer.json`."""

REAL_SIZE_CONFIG = HiggsAudioConfig(
    vocab_size=128256,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(
        factor=32.0, low_freq_factor=0.125, high_freq_factor=0.5, original_max_position_embeddings=1024
    ),
    max_position_embeddings=131072,
    num_codebooks=8,
    codebook_size=1026,
    audio_stream_bos_id=1024,
    audio_stream_eos_id=1025,
    audio_adapter_type="dual_ffn",
    audio_dual_ffn_layers=tuple(range(28)),
    audio_in_token_id=128015,
    audio_out_token_id=128016,
    audio_out_bos_token_id=128013,
    audio_eos_token_id=128012,
    audio_delay_token_id=128014,
    pad_token_id=128001,
    eos_token_id=128009,
)
"""The published model: 5.8 G parameters, 11.5 GB in bfloat16."""

DEMO_CONFIG = HiggsAudioConfig(
    vocab_size=288,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=REAL_SIZE_CONFIG.rope_scaling,
    max_position_embeddings=8192,
    num_codebooks=8,
    codebook_size=1026,
    audio_stream_bos_id=1024,
    audio_stream_eos_id=1025,
    audio_adapter_type="dual_ffn",
    audio_dual_ffn_layers=(0, 1),
    audio_in_token_id=271,
    audio_out_token_id=272,
    audio_out_bos_token_id=269,
    audio_eos_token_id=268,
    audio_delay_token_id=270,
    pad_token_id=257,
    eos_token_id=265,
)
"""A small model: 2 layers of width 64, a vocabulary of bytes and special tokens, the published codebooks and rope."""

REAL_SIZE_TTS_3_CONFIG = HiggsAudioConfig(
    vocab_size=151936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    rope_scaling=None,
    max_position_embeddings=32768,
    num_codebooks=8,
    codebook_size=1026,
    audio_stream_bos_id=1024,
    audio_stream_eos_id=1025,
    audio_adapter_type="stack",
    audio_dual_ffn_layers=(),
    audio_in_token_id=None,
    audio_out_token_id=AUDIO_PLACEHOLDER,
    audio_out_bos_token_id=None,
    audio_eos_token_id=None,
    audio_delay_token_id=None,
    pad_token_id=None,
    eos_token_id=None,
    head_norms=True,
    tied_audio_head=True,
)
"""The published Higgs TTS 3: 4.0 G parameters, 8.1 GB in bfloat16, without its audio tokenizer."""

DEMO_TTS_3_CONFIG = replace(
    REAL_SIZE_TTS_3_CONFIG,
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=8192,
)
"""A small model of that kind: heads that are together wider than the states, four query heads per KV head."""

DEMO_AUDIO_TOKENIZER_CONFIG = HiggsAudioTokenizerConfig(
    encoder_hidden_size=4,
    decoder_hidden_size=128,
    acoustic_hidden_size=32,
    hubert=HubertConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    ),
)
"""An audio tokenizer with the published rates and codebooks, and narrow networks."""


def config_json(config: HiggsAudioConfig, layout: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the contents of `config.json` in a layout, which `HiggsAudioConfig.from_dict` reads.

    Args:
        config: the configuration.
        layout: one of `CHECKPOINT_LAYOUTS`.
        dtype: the dtype of the tensors beside it: float32, bfloat16 or float16.

    Raises:
        ConfigError: the layout or the dtype is another, or the layout can't express the configuration.
    """
    if layout not in CHECKPOINT_LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(map(repr, CHECKPOINT_LAYOUTS))}, got {layout!r}")
    if dtype not in STORED_DTYPES.values():
        raise ConfigError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }
    transformer: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "eos_token_id": config.eos_token_id,
    }
    audio = {
        "audio_stream_bos_id": config.audio_stream_bos_id,
        "audio_stream_eos_id": config.audio_stream_eos_id,
        "pad_token_id": config.pad_token_id,
    }
    dtype_name = str(dtype).removeprefix("torch.")
    if (layout == "higgs_tts_3") != (config.convention is Convention.HIGGS_TTS_3):
        raise ConfigError(f"layout must be 'higgs_tts_3' for Higgs TTS 3, and for it alone, got {layout!r}")
    if layout == "higgs_tts_3":
        return {
            "architectures": ["HiggsMultimodalQwen3ForConditionalGeneration"],
            "model_type": "higgs_multimodal_qwen3",
            "dtype": dtype_name,
            "audio_token_id": config.audio_out_token_id,
            "audio_encoder_config": {
                "model_type": "higgs_audio_encoder",
                "encoder_type": "discrete",
                "num_codebooks": config.num_codebooks,
                "vocab_size": config.codebook_size,
                "out_dim": config.hidden_size,
                "tie_word_embeddings": True,
                "use_delay_pattern": True,
            },
            "text_config": {
                **transformer,
                "model_type": "qwen3",
                "tie_word_embeddings": True,
                "rope_parameters": {"rope_theta": config.rope_theta, **rope},
            },
        }
    if layout == "original":
        described: dict[str, Any] = {
            "architectures": ["HiggsAudioModel"],
            "model_type": "higgs_audio",
            "torch_dtype": dtype_name,
            "audio_adapter_type": config.audio_adapter_type,
            "audio_dual_ffn_layers": list(config.audio_dual_ffn_layers),
            "audio_num_codebooks": config.num_codebooks,
            "audio_codebook_size": config.codebook_size - 2,
            **audio,
            "audio_in_token_idx": config.audio_in_token_id,
            "audio_out_token_idx": config.audio_out_token_id,
            "audio_out_bos_token_id": config.audio_out_bos_token_id,
            "audio_eos_token_id": config.audio_eos_token_id,
            "encode_audio_in_tokens": True,
            "encode_whisper_embed": False,
            "skip_audio_tower": True,
            "use_delay_pattern": True,
            "text_config": {
                **transformer,
                "model_type": "llama",
                "torch_dtype": dtype_name,
                "rope_theta": config.rope_theta,
                "rope_scaling": rope if scaling is not None else None,
            },
        }
    else:
        if not all(map(config.is_dual, range(config.num_hidden_layers))):
            raise ConfigError("layout must be 'original' for layers without an audio path, got 'transformers'")
        described = {
            "architectures": ["HiggsAudioV2ForConditionalGeneration"],
            "model_type": "higgs_audio_v2",
            "dtype": dtype_name,
            **transformer,
            "rope_parameters": {"rope_theta": config.rope_theta, **rope},
            "num_codebooks": config.num_codebooks,
            "codebook_size": config.codebook_size,
            **audio,
            "audio_token_id": config.audio_out_token_id,
            "audio_bos_token_id": config.audio_out_bos_token_id,
            "audio_delay_token_id": config.audio_delay_token_id,
        }
    for name, value in described.items():
        if value is None and name.startswith("audio_"):
            raise ConfigError(f"{name} must be an id in the {layout} layout, got None")
    return described
