"""The language model's configuration, read from either layout of `config.json`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from higgs_native.errors import ConfigError
from higgs_native.utils.files import read_json_object


AUDIO_ADAPTER_TYPES = ("dual_ffn", "dual_ffn_fast_forward", "stack")


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
        codebook_size: rows a codebook has in the embedding and in the head: its codes and BOS and EOS (1026).
        audio_adapter_type: `dual_ffn` (layers in `audio_dual_ffn_layers` are dual, the others plain),
            `dual_ffn_fast_forward` (audio positions skip the others) or `stack` (none is dual).
        audio_in_token_id: the placeholder of audio in a system or user message, or None where the layout has none.
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
        """Whether audio rows have norms and a feed-forward path of their own in `layer`."""
        return self.audio_adapter_type != "stack" and layer in self.audio_dual_ffn_layers

    @property
    def layout(self) -> Literal["boson", "transformers"]:
        """The checkpoint's layout, and so whose prompts and rule of generation are its own."""
        return "transformers" if self.audio_eos_token_id is None else "boson"

    def skips_audio(self, layer: int) -> bool:
        """Whether audio rows pass `layer` by."""
        return self.audio_adapter_type == "dual_ffn_fast_forward" and layer not in self.audio_dual_ffn_layers

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "HiggsAudioConfig":
        """Read the contents of a `config.json` of either layout.

        Raises:
            ConfigError: the model is another one, or a value is missing or contradicts another.
        """
        model_type = raw.get("model_type")
        if model_type not in ("higgs_audio", "higgs_audio_v2"):
            raise ConfigError(f"model_type is {model_type!r}; expected 'higgs_audio' or 'higgs_audio_v2'")
        try:
            # A nested text_config is the original layout's; model_type and layout have been seen mixed.
            config = _read_original(raw) if "text_config" in raw else _read_transformers(raw)
        except KeyError as error:
            raise ConfigError(f"config.json has no {error}") from None
            config._check()
        except ConfigError:
            raise
        except (AttributeError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
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
            if getattr(self, name) < 1:
                raise ConfigError(f"config.json: {name} is {getattr(self, name)}; expected at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"config.json: num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"config.json: head_dim is {self.head_dim}; expected an even number")
        if self.audio_adapter_type not in AUDIO_ADAPTER_TYPES:
            raise ConfigError(
                f"config.json: audio_adapter_type is {self.audio_adapter_type!r}; "
                f"expected one of {', '.join(AUDIO_ADAPTER_TYPES)}"
            )
        for layer in self.audio_dual_ffn_layers:
            if not 0 <= layer < self.num_hidden_layers:
                raise ConfigError(
                    f"config.json: audio_dual_ffn_layers names layer {layer}, but there are {self.num_hidden_layers}"
                )
        for name in ("audio_in", "audio_out", "audio_out_bos", "audio_eos", "audio_delay"):
            token = getattr(self, f"{name}_token_id")
            if token is not None and not 0 <= token < self.vocab_size:
                raise ConfigError(
                    f"config.json: {name}_token_id {token} lies outside the vocabulary {self.vocab_size}"
                )
        for name in ("audio_stream_bos_id", "audio_stream_eos_id"):
            if not 0 <= getattr(self, name) < self.codebook_size:
                raise ConfigError(
                    f"config.json: {name} {getattr(self, name)} lies outside a codebook of {self.codebook_size} rows"
                )


def _rope_scaling(raw: dict[str, Any] | None) -> RopeScaling | None:
    kind = "default" if raw is None else raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_type is {kind!r}; expected 'llama3' or 'default'")
    return RopeScaling(
        factor=float(raw["factor"]),
        low_freq_factor=float(raw["low_freq_factor"]),
        high_freq_factor=float(raw["high_freq_factor"]),
        original_max_position_embeddings=int(raw["original_max_position_embeddings"]),
    )


def _shared_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """Read what both layouts name alike: the transformer's own values."""
    for name in ("attention_bias", "mlp_bias"):
        if raw.get(name):
            raise ValueError(f"{name} is set; this model has no biases")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {raw['hidden_act']!r}; expected 'silu'")
    heads = int(raw["num_attention_heads"])
    hidden = int(raw["hidden_size"])
    eos = raw.get("eos_token_id")
    return {
        "vocab_size": int(raw["vocab_size"]),
        "hidden_size": hidden,
        "intermediate_size": int(raw["intermediate_size"]),
        "num_hidden_layers": int(raw["num_hidden_layers"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(raw.get("num_key_value_heads") or heads),
        "head_dim": int(raw.get("head_dim") or hidden // heads),
        "rms_norm_eps": float(raw.get("rms_norm_eps", 1e-5)),
        "max_position_embeddings": int(raw.get("max_position_embeddings", 2048)),
        "eos_token_id": eos[0] if isinstance(eos, list) else eos,
    }


def _read_original(raw: dict[str, Any]) -> HiggsAudioConfig:
    text = raw["text_config"]
    adapter = raw.get("audio_adapter_type", "stack")
    return HiggsAudioConfig(
        **_shared_fields(text),
        rope_theta=float(text.get("rope_theta", 10000.0)),
        rope_scaling=_rope_scaling(text.get("rope_scaling")),
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
    rope = raw.get("rope_parameters") or {}
    scaling = rope or raw.get("rope_scaling")
    return HiggsAudioConfig(
        **_shared_fields(raw),
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 500000.0))),
        rope_scaling=_rope_scaling(scaling),
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
