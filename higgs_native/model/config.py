"""The language model's configuration, read from either layout of `config.json`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from higgs_native.convention import Convention
from higgs_native.errors import ConfigError
from higgs_native.ops.formats import STORED_DTYPES
from higgs_native.utils.files import read_json_object


AUDIO_ADAPTER_TYPES = ("dual_ffn", "dual_ffn_fast_forward", "stack")

# Names in config.json that differ from the attributes' names, for error messages.
_STORED_NAMES = {
    Convention.BOSON: {
        "num_codebooks": "audio_num_codebooks",
        "audio_in_token_id": "audio_in_token_idx",
        "audio_out_token_id": "audio_out_token_idx",
    },
    Convention.TRANSFORMERS: {"audio_out_token_id": "audio_token_id", "audio_out_bos_token_id": "audio_bos_token_id"},
}


@dataclass(frozen=True)
class RopeScaling:
    """The llama3 scaling of rotary frequencies."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class HiggsAudioConfig:
    """The shapes and special ids of a Higgs Audio V2 language model.

    Attributes:
        codebook_size: rows of a codebook in the embedding and in the head: its codes, BOS and EOS (1026).
        audio_adapter_type: `dual_ffn` (layers in `audio_dual_ffn_layers` are dual, the others plain),
            `dual_ffn_fast_forward` (audio rows skip the others) or `stack` (no layer is dual).
        audio_in_token_id: the placeholder of audio in a system or user message; None if the layout has none.
        audio_out_token_id: the placeholder of audio in an assistant message, and of a generated frame.
        audio_out_bos_token_id: the token after which audio is generated.
        audio_eos_token_id: the text token after an audio segment (original layout only).
        audio_delay_token_id: the text token of a frame that closes the delay pattern (transformers layout only).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    num_codebooks: int
    codebook_size: int
    audio_stream_bos_id: int
    audio_stream_eos_id: int
    audio_adapter_type: str
    audio_dual_ffn_layers: tuple[int, ...]
    audio_in_token_id: int | None
    audio_out_token_id: int
    audio_out_bos_token_id: int
    audio_eos_token_id: int | None
    audio_delay_token_id: int | None
    pad_token_id: int | None
    eos_token_id: int | None

    def is_dual(self, layer: int) -> bool:
        """Whether `layer` has separate norms and a separate feed-forward path for audio rows."""
        return self.audio_adapter_type != "stack" and layer in self.audio_dual_ffn_layers

    @property
    def convention(self) -> Convention:
        """The convention that a checkpoint of this layout was trained with."""
        return Convention.TRANSFORMERS if self.audio_eos_token_id is None else Convention.BOSON

    def skips_audio(self, layer: int) -> bool:
        """Whether audio rows skip `layer`."""
        return self.audio_adapter_type == "dual_ffn_fast_forward" and layer not in self.audio_dual_ffn_layers

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "HiggsAudioConfig":
        """Read the contents of a `config.json` of either layout.

        Raises:
            ConfigError: it describes another model, or a value is missing, wrong, or contradicts another.
        """
        model_type = raw.get("model_type")
        if model_type not in ("higgs_audio", "higgs_audio_v2"):
            raise ConfigError(f"model_type must be 'higgs_audio' or 'higgs_audio_v2', got {model_type!r}")
        try:
            # Only the original layout nests a text_config. model_type does not tell: some files mix the two.
            config = _read_original(raw) if "text_config" in raw else _read_transformers(raw)
            config._check()
        except ConfigError:
            raise
        except KeyError as error:
            raise ConfigError(f"config.json has no {error}") from None
        except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
            raise ConfigError(f"config.json: {error}") from None
        return config

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "HiggsAudioConfig":
        """Read `config.json` in `folder`.

        Raises:
            ConfigError: the file is missing, is no JSON object, or does not describe this model.
        """
        return cls.from_dict(read_json_object(Path(folder) / "config.json"))

    def _check(self) -> None:
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "num_codebooks",
            "codebook_size",
            "max_position_embeddings",
        )
        for name in sizes:
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require(
            "num_attention_heads",
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"a multiple of num_key_value_heads {self.num_key_value_heads}",
        )
        self._require("head_dim", self.head_dim % 2 == 0, "even")
        self._require(
            "audio_adapter_type",
            self.audio_adapter_type in AUDIO_ADAPTER_TYPES,
            f"one of {', '.join(AUDIO_ADAPTER_TYPES)}",
        )
        last_layer = self.num_hidden_layers - 1
        self._require(
            "audio_dual_ffn_layers",
            all(0 <= layer <= last_layer for layer in self.audio_dual_ffn_layers),
            f"layers from 0 to {last_layer}",
        )
        for name in ("audio_in", "audio_out", "audio_out_bos", "audio_eos", "audio_delay"):
            token = getattr(self, f"{name}_token_id")
            self._require(
                f"{name}_token_id", token is None or 0 <= token < self.vocab_size, f"from 0 to {self.vocab_size - 1}"
            )
        for name in ("audio_stream_bos_id", "audio_stream_eos_id"):
            self._require(name, 0 <= getattr(self, name) < self.codebook_size, f"from 0 to {self.codebook_size - 1}")
        self._require(
            "audio_stream_eos_id",
            self.audio_stream_eos_id != self.audio_stream_bos_id,
            "another id than audio_stream_bos_id",
        )

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            stored = _STORED_NAMES[self.convention].get(name, name)
            raise ConfigError(f"config.json: {stored} must be {expected}, got {getattr(self, name)!r}")


def configured_dtype(folder: Path) -> torch.dtype | None:
    """Return the dtype that `config.json` names for the weights, or None if it names none that a model can have.

    Raises:
        ConfigError: the file is missing or holds no JSON object.
    """
    raw = read_json_object(folder / "config.json")
    name = raw.get("dtype") or raw.get("torch_dtype")
    return next((dtype for dtype in STORED_DTYPES.values() if str(dtype) == f"torch.{name}"), None)


# HiggsAudioV2Config's values if `rope_parameters` is absent.
_TRANSFORMERS_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 0.125,
    "high_freq_factor": 0.5,
    "original_max_position_embeddings": 1024,
}


def _rope(raw: dict[str, Any], absent: dict[str, Any]) -> dict[str, Any]:
    """Return the rotary fields from `rope_scaling` (before transformers 5), else `rope_parameters`, else `absent`."""
    parameters = raw.get("rope_parameters")
    parameters = raw.get("rope_scaling") or (absent if parameters is None else parameters)
    max_positions = raw.get("max_position_embeddings", 2048)
    return {
        "rope_theta": float(parameters.get("rope_theta", raw.get("rope_theta", 10000.0))),
        "rope_scaling": _rope_scaling({"original_max_position_embeddings": max_positions, **parameters}),
    }


def _rope_scaling(raw: dict[str, Any]) -> RopeScaling | None:
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_type must be 'llama3' or 'default', got {kind!r}")
    return RopeScaling(
        factor=float(raw["factor"]),
        low_freq_factor=float(raw["low_freq_factor"]),
        high_freq_factor=float(raw["high_freq_factor"]),
        original_max_position_embeddings=int(raw["original_max_position_embeddings"]),
    )


def _shared_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """Read the transformer's values, which both layouts name alike."""
    for name in ("attention_bias", "mlp_bias"):
        if raw.get(name):
            raise ValueError(f"{name} must be false, got {raw[name]!r}")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act must be 'silu', got {raw['hidden_act']!r}")
    heads, key_value_heads = int(raw["num_attention_heads"]), raw.get("num_key_value_heads")
    hidden, head_dim = int(raw["hidden_size"]), raw.get("head_dim")
    eos = raw.get("eos_token_id")
    return {
        "vocab_size": int(raw["vocab_size"]),
        "hidden_size": hidden,
        "intermediate_size": int(raw["intermediate_size"]),
        "num_hidden_layers": int(raw["num_hidden_layers"]),
        "num_attention_heads": heads,
        "num_key_value_heads": heads if key_value_heads is None else int(key_value_heads),
        "head_dim": hidden // max(heads, 1) if head_dim is None else int(head_dim),
        "max_position_embeddings": int(raw.get("max_position_embeddings", 2048)),
        "eos_token_id": eos[0] if isinstance(eos, list) else eos,
    }


def _read_original(raw: dict[str, Any]) -> HiggsAudioConfig:
    # Other values change what the model computes, and no published model has them.
    for name, expected in (("audio_embed_avg", False), ("use_delay_pattern", True)):
        if raw.get(name, expected) is not expected:
            raise ConfigError(f"config.json: {name} must be {json.dumps(expected)}, got {json.dumps(raw[name])}")
    text = raw["text_config"]  # a LlamaConfig, with its defaults
    adapter = raw.get("audio_adapter_type", "stack")
    return HiggsAudioConfig(
        **_shared_fields(text),
        **_rope(text, absent={}),
        rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
        num_codebooks=int(raw["audio_num_codebooks"]),
        codebook_size=int(raw["audio_codebook_size"]) + 2,
        audio_stream_bos_id=int(raw.get("audio_stream_bos_id", raw["audio_codebook_size"])),
        audio_stream_eos_id=int(raw.get("audio_stream_eos_id", raw["audio_codebook_size"] + 1)),
        audio_adapter_type=adapter,
        audio_dual_ffn_layers=tuple(raw.get("audio_dual_ffn_layers") or ()) if adapter != "stack" else (),
        audio_in_token_id=int(raw["audio_in_token_idx"]),
        audio_out_token_id=int(raw["audio_out_token_idx"]),
        audio_out_bos_token_id=int(raw["audio_out_bos_token_id"]),
        audio_eos_token_id=int(raw["audio_eos_token_id"]),
        audio_delay_token_id=None,
        pad_token_id=raw.get("pad_token_id"),
    )


def _read_transformers(raw: dict[str, Any]) -> HiggsAudioConfig:
    # HiggsAudioV2Config's defaults that differ from LlamaConfig's.
    raw = {"num_key_value_heads": 8, "head_dim": 128, **raw}
    return HiggsAudioConfig(
        **_shared_fields(raw),
        **_rope(raw, absent=_TRANSFORMERS_ROPE),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        num_codebooks=int(raw["num_codebooks"]),
        codebook_size=int(raw["codebook_size"]),
        audio_stream_bos_id=int(raw["audio_stream_bos_id"]),
        audio_stream_eos_id=int(raw["audio_stream_eos_id"]),
        audio_adapter_type="dual_ffn",
        audio_dual_ffn_layers=tuple(range(int(raw["num_hidden_layers"]))),
        audio_in_token_id=None,
        audio_out_token_id=int(raw["audio_token_id"]),
        audio_out_bos_token_id=int(raw["audio_bos_token_id"]),
        audio_eos_token_id=None,
        audio_delay_token_id=int(raw["audio_delay_token_id"]),
        pad_token_id=raw.get("pad_token_id"),
    )
