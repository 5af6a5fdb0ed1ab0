"""The language model's configuration, read from either layout of `config.json`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from higgs_native.checkpoint.other_kinds import read_config
from higgs_native.convention import Convention
from higgs_native.errors import ConfigError, ParameterError, short_repr
from higgs_native.ops.formats import STORED_DTYPES
from higgs_native.utils.fields import MAX_INTEGER, Fields
from higgs_native.utils.files import read_json_object


AUDIO_ADAPTER_TYPES = ("dual_ffn", "dual_ffn_fast_forward", "stack")
# Far above those of any model: what is built before the tensors are compared with the configuration stays small.
MAX_LAYERS = MAX_HEADS = MAX_HEAD_DIM = 1024
MAX_CODEBOOKS = 64
AUDIO_PLACEHOLDER = -100
"""The id of a delayed frame in a prompt of Higgs TTS 3; no token has it."""
_MODEL_TYPES = ("higgs_audio", "higgs_audio_v2", "higgs_multimodal_qwen3")
_SOURCE = "config.json"
_GENERATION_SOURCE = "generation_config.json"

# Names in config.json that differ from the attributes' names, for error messages.
_STORED_NAMES = {
    Convention.BOSON: {
        "num_codebooks": "audio_num_codebooks",
        "audio_in_token_id": "audio_in_token_idx",
        "audio_out_token_id": "audio_out_token_idx",
    },
    Convention.TRANSFORMERS: {"audio_out_token_id": "audio_token_id", "audio_out_bos_token_id": "audio_bos_token_id"},
    Convention.HIGGS_TTS_3: {"codebook_size": "vocab_size of audio_encoder_config"},
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
    """The shapes and special ids of a language model: of Higgs Audio V2, or of Higgs TTS 3.

    Attributes:
        codebook_size: rows of a codebook in the embedding and in the head: its codes, BOS and EOS (1026).
        audio_adapter_type: `dual_ffn` (layers in `audio_dual_ffn_layers` are dual, the others plain),
            `dual_ffn_fast_forward` (audio rows skip the others) or `stack` (no layer is dual).
        audio_in_token_id: the placeholder of audio in a system or user message; None if the layout has none.
        audio_out_token_id: the placeholder of audio in an assistant message, and of a generated frame.
        audio_out_bos_token_id: the token after which audio is generated; None: it follows every prompt (Higgs TTS 3).
        audio_eos_token_id: the text token after an audio segment (original layout only).
        audio_delay_token_id: the text token of a frame that closes the delay pattern (transformers layout only).
        eos_token_id: the text token that ends a reply (transformers layout only).
        end_token_ids: the text tokens that end a reply beside the stop strings in Boson's convention; None: the one
            of `eos_token_id`.
        head_norms: whether each head of query and key has an RMSNorm before its rotation.
        tied_audio_head: whether the audio head is the table of the codebooks.
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
    audio_out_bos_token_id: int | None
    audio_eos_token_id: int | None
    audio_delay_token_id: int | None
    pad_token_id: int | None
    eos_token_id: int | None
    end_token_ids: tuple[int, ...] | None = None
    head_norms: bool = False
    tied_audio_head: bool = False

    def __post_init__(self) -> None:
        if self.end_token_ids is None:
            ids = () if self.eos_token_id is None else (self.eos_token_id,)
            object.__setattr__(self, "end_token_ids", ids)

    def is_dual(self, layer: int) -> bool:
        """Whether `layer` has separate norms and a separate feed-forward path for audio rows."""
        return self.audio_adapter_type != "stack" and layer in self.audio_dual_ffn_layers

    @property
    def convention(self) -> Convention:
        """The convention that a checkpoint of this layout was trained with."""
        if self.audio_out_bos_token_id is None:
            return Convention.HIGGS_TTS_3
        return Convention.TRANSFORMERS if self.audio_eos_token_id is None else Convention.BOSON

    def convention_of(self, asked: Convention | None) -> Convention:
        """Return the convention of a request: the one asked for; None: `boson`, with Higgs TTS 3 `higgs_tts_3`.

        Raises:
            ParameterError: it is one of the other model.
        """
        own = self.convention
        choices = (own,) if own is Convention.HIGGS_TTS_3 else (Convention.BOSON, Convention.TRANSFORMERS)
        if asked is not None and asked not in choices:
            expected = " or ".join(repr(choice.value) for choice in choices)
            raise ParameterError(f"convention must be {expected} for this model, got {asked.value!r}")
        return choices[0] if asked is None else asked

    def skips_audio(self, layer: int) -> bool:
        """Whether audio rows skip `layer`."""
        return self.audio_adapter_type == "dual_ffn_fast_forward" and layer not in self.audio_dual_ffn_layers

    @classmethod
    def from_dict(cls, raw: dict[str, Any], generation: dict[str, Any] | None = None) -> "HiggsAudioConfig":
        """Read the contents of a `config.json` of any layout, and those of a `generation_config.json` beside it.

        Raises:
            ConfigError: it describes another model, or a value is missing, wrong, or contradicts another.
        """
        fields = Fields(raw, _SOURCE)
        model_type = fields.value("model_type", None)
        if model_type not in _MODEL_TYPES:
            expected = ", ".join(map(repr, _MODEL_TYPES[:-1])) + f" or {_MODEL_TYPES[-1]!r}"
            raise ConfigError(f"model_type must be {expected}, got {short_repr(model_type)}")
        if model_type == "higgs_multimodal_qwen3":
            config = _read_higgs_tts_3(fields)
        # In V2, only the original layout nests a text_config. model_type does not tell: some files mix the two.
        elif "text_config" in fields:
            config = _read_original(fields, None if generation is None else Fields(generation, _GENERATION_SOURCE))
        else:
            config = _read_transformers(Fields({**_TRANSFORMERS_DEFAULTS, **raw}, _SOURCE))
        config._check()
        return config

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "HiggsAudioConfig":
        """Read `config.json` in `folder`, and `generation_config.json` if there is one.

        Raises:
            ConfigError: a file is no JSON object, the first is missing, or they do not describe this model.
            CheckpointError: the folder holds a checkpoint of another kind; see `other_kinds`.
        """
        generation = Path(folder) / _GENERATION_SOURCE
        return cls.from_dict(read_config(Path(folder)), read_json_object(generation) if generation.is_file() else None)

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
            if (token, self.convention) == (AUDIO_PLACEHOLDER, Convention.HIGGS_TTS_3):
                continue
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

        self._require("rms_norm_eps", 0 < self.rms_norm_eps <= 1, "above 0 and at most 1")
        # Other values make rotary frequencies that are infinite or NaN in float32.
        self._require("rope_theta", 1 <= self.rope_theta <= 1e12, "from 1 to 1e12")
        if self.rope_scaling is not None:
            self._check_rope_scaling(self.rope_scaling)

    def _check_rope_scaling(self, scaling: RopeScaling) -> None:
        for name, least, most in (
            ("factor", 1, 1e6),
            ("low_freq_factor", 1e-6, 1e6),
            ("high_freq_factor", 1e-6, 1e6),
            ("original_max_position_embeddings", 1, MAX_INTEGER),
        ):
            value = getattr(scaling, name)
            if not least <= value <= most:
                raise ConfigError(f"{_SOURCE}: {name} must be from {least:g} to {most:g}, got {value:g}")
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise ConfigError(
                f"{_SOURCE}: high_freq_factor must be above low_freq_factor {scaling.low_freq_factor:g}, "
                f"got {scaling.high_freq_factor:g}"
            )

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            stored = _STORED_NAMES[self.convention].get(name, name)
            raise ConfigError(f"{_SOURCE}: {stored} must be {expected}, got {short_repr(getattr(self, name))}")


def configured_dtype(folder: Path) -> torch.dtype | None:
    """Return the dtype that `config.json` names for the weights, or None if it names none that a model can have.

    Raises:
        ConfigError: the file is missing or holds no JSON object.
    """
    raw = read_json_object(folder / "config.json")
    name = raw.get("dtype") or raw.get("torch_dtype")
    return next((dtype for dtype in STORED_DTYPES.values() if str(dtype) == f"torch.{name}"), None)


# HiggsAudioV2Config's defaults that differ from LlamaConfig's.
_TRANSFORMERS_DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "eos_token_id": 128009,
    "pad_token_id": 128001,
}
# HiggsAudioV2Config's values if `rope_parameters` is absent.
_TRANSFORMERS_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 0.125,
    "high_freq_factor": 0.5,
    "original_max_position_embeddings": 1024,
}


def _rope(fields: Fields, absent: dict[str, Any], default_theta: float = 10000.0) -> dict[str, Any]:
    """Return the rotary fields from `rope_scaling` (before transformers 5), else `rope_parameters`, else `absent`."""
    scaling, parameters = fields.value("rope_scaling", None), fields.value("rope_parameters", None)
    if scaling:
        rope = Fields(scaling, f"{_SOURCE}: rope_scaling")
    else:
        rope = Fields(absent if parameters is None else parameters, f"{_SOURCE}: rope_parameters")
    theta = rope.number("rope_theta", None)
    return {
        "rope_theta": fields.number("rope_theta", default_theta) if theta is None else theta,
        "rope_scaling": _rope_scaling(rope, fields.integer("max_position_embeddings", 2048)),
    }


def _rope_scaling(rope: Fields, max_positions: int) -> RopeScaling | None:
    kind = rope.value("rope_type", rope.value("type", "default"))
    rope.require("rope_type", kind in ("llama3", "default"), "'llama3' or 'default'", kind)
    if kind == "default":
        return None
    return RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=rope.integer("original_max_position_embeddings", max_positions),
    )


def _shared_fields(fields: Fields) -> dict[str, Any]:
    """Read the transformer's values, which both layouts name alike."""
    for name in ("attention_bias", "mlp_bias"):
        bias = fields.value(name, False)
        fields.require(name, not bias, "false", bias)
    activation = fields.value("hidden_act", "silu")
    fields.require("hidden_act", activation == "silu", "'silu'", activation)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads", maximum=MAX_HEADS)
    key_value_heads = fields.integer("num_key_value_heads", None, MAX_HEADS)
    head_dim = fields.integer("head_dim", None, MAX_HEAD_DIM)
    eos = fields.integers("eos_token_id")[:1] if isinstance(fields.value("eos_token_id", None), list) else ()
    return {
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": fields.integer("intermediate_size"),
        "num_hidden_layers": fields.integer("num_hidden_layers", maximum=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": heads if key_value_heads is None else key_value_heads,
        "head_dim": hidden // max(heads, 1) if head_dim is None else head_dim,
        "max_position_embeddings": fields.integer("max_position_embeddings", 2048),
        "eos_token_id": eos[0] if eos else fields.integer("eos_token_id", None),
    }


def _end_token_ids(fields: Fields, text: Fields, generation: Fields | None) -> tuple[int, ...]:
    """Read the text tokens that end a reply, as transformers' `generate` finds them for the original model.

    `generation_config.json` decides if there is one, then the top level of config.json, then its `text_config`.
    """
    if generation is not None:
        # These change what the original draws, and no published model has them.
        for name, off in (("repetition_penalty", 1.0), ("min_new_tokens", None), ("suppress_tokens", None)):
            value = generation.value(name, off)
            generation.require(name, value in (off, None), f"{json.dumps(off)} or left out", value)
        source = generation
    else:
        source = fields if fields.value("eos_token_id", None) is not None else text
    default = 2 if source is text and "eos_token_id" not in text else None  # LlamaConfig's
    return _token_ids(source, default)


def _token_ids(fields: Fields, default: int | None) -> tuple[int, ...]:
    """Read `eos_token_id`: an id, a list of ids, or null."""
    value = fields.value("eos_token_id", default)
    if isinstance(value, list):
        return fields.integers("eos_token_id")
    return () if value is None else (fields.integer("eos_token_id", default),)


def _read_original(fields: Fields, generation: Fields | None) -> HiggsAudioConfig:
    # Other values change what the model computes, and no published model has them.
    for name, expected in (("audio_embed_avg", False), ("use_delay_pattern", True)):
        if (value := fields.flag(name, expected)) is not expected:
            raise ConfigError(f"{_SOURCE}: {name} must be {json.dumps(expected)}, got {json.dumps(value)}")
    text = fields.nested("text_config")  # a LlamaConfig, with its defaults
    adapter = fields.text("audio_adapter_type", "stack")
    codes = fields.integer("audio_codebook_size")
    layers = fields.integers("audio_dual_ffn_layers", ()) if adapter != "stack" else ()
    return HiggsAudioConfig(
        **_shared_fields(text),
        **_rope(text, absent={}),
        rms_norm_eps=text.number("rms_norm_eps", 1e-6),
        num_codebooks=fields.integer("audio_num_codebooks", maximum=MAX_CODEBOOKS),
        codebook_size=codes + 2,
        audio_stream_bos_id=fields.integer("audio_stream_bos_id", codes),
        audio_stream_eos_id=fields.integer("audio_stream_eos_id", codes + 1),
        audio_adapter_type=adapter,
        audio_dual_ffn_layers=tuple(sorted(set(layers))),
        audio_in_token_id=fields.integer("audio_in_token_idx"),
        audio_out_token_id=fields.integer("audio_out_token_idx"),
        audio_out_bos_token_id=fields.integer("audio_out_bos_token_id"),
        audio_eos_token_id=fields.integer("audio_eos_token_id"),
        audio_delay_token_id=None,
        end_token_ids=_end_token_ids(fields, text, generation),
        pad_token_id=fields.integer("pad_token_id", None),
    )


def _read_transformers(fields: Fields) -> HiggsAudioConfig:
    shared = _shared_fields(fields)
    return HiggsAudioConfig(
        **shared,
        **_rope(fields, absent=_TRANSFORMERS_ROPE),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-5),
        num_codebooks=fields.integer("num_codebooks", maximum=MAX_CODEBOOKS),
        codebook_size=fields.integer("codebook_size"),
        audio_stream_bos_id=fields.integer("audio_stream_bos_id"),
        audio_stream_eos_id=fields.integer("audio_stream_eos_id"),
        audio_adapter_type="dual_ffn",
        audio_dual_ffn_layers=tuple(range(shared["num_hidden_layers"])),
        audio_in_token_id=None,
        audio_out_token_id=fields.integer("audio_token_id"),
        audio_out_bos_token_id=fields.integer("audio_bos_token_id"),
        audio_eos_token_id=None,
        audio_delay_token_id=fields.integer("audio_delay_token_id"),
        end_token_ids=_token_ids(fields, None),
        pad_token_id=fields.integer("pad_token_id", None),
    )


def _read_higgs_tts_3(fields: Fields) -> HiggsAudioConfig:
    audio, text = fields.nested("audio_encoder_config"), fields.nested("text_config")
    # Other values describe another model; the encoder "whisper" is that of the one for speech recognition.
    for holder, name, expected in (
        (audio, "encoder_type", "discrete"),
        (audio, "tie_word_embeddings", True),
        (audio, "use_delay_pattern", True),
        (text, "use_sliding_window", False),
        (fields, "audio_token_id", AUDIO_PLACEHOLDER),
    ):
        value = holder.value(name, expected)
        holder.require(name, value == expected, json.dumps(expected), value)
    codebook_size = audio.integer("vocab_size")
    return HiggsAudioConfig(
        **_shared_fields(text),
        **_rope(text, absent={}, default_theta=1e6),
        rms_norm_eps=text.number("rms_norm_eps", 1e-6),
        num_codebooks=audio.integer("num_codebooks", maximum=MAX_CODEBOOKS),
        codebook_size=codebook_size,
        audio_stream_bos_id=codebook_size - 2,
        audio_stream_eos_id=codebook_size - 1,
        audio_adapter_type="stack",
        audio_dual_ffn_layers=(),
        audio_in_token_id=None,
        audio_out_token_id=AUDIO_PLACEHOLDER,
        audio_out_bos_token_id=None,
        audio_eos_token_id=None,
        audio_delay_token_id=None,
        pad_token_id=None,
        head_norms=True,
        tied_audio_head=True,
    )
