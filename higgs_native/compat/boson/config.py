"""The configuration of a language model under Boson's names."""

import copy
import os
from types import SimpleNamespace
from typing import Any

from typing_extensions import Self

from higgs_native.checkpoint.config import HiggsAudioConfig as NativeConfig
from higgs_native.checkpoint.files import load_tokenizer, resolve_folder
from higgs_native.checkpoint.hub import hub_options
from higgs_native.errors import ConfigError, short_repr
from higgs_native.prompt.markup import AUDIO_PLACEHOLDERS
from higgs_native.utils.files import read_json_object


# The meaning of an absent value for a model that reads recordings as codes.
_DEFAULTS = {
    "encode_whisper_embed": False,
    "encode_audio_in_tokens": True,
    "skip_audio_tower": True,
    "use_delay_pattern": True,
}


class HiggsAudioConfig:
    """A language model's configuration: the values of Boson's `config.json` as attributes.

    A checkpoint of transformers' layout has the same attributes.

    Raises:
        ConfigError: the values describe another model, or contradict each other.
    """

    model_type = "higgs_audio"

    def __init__(self, **values: Any) -> None:
        native = NativeConfig.from_dict({"model_type": self.model_type, **values})
        self._values = {**_DEFAULTS, **_boson_values(native), **values}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"the configuration has no {name}")
        return self._values[name]

    @property
    def text_config(self) -> Any:
        """The transformer's part: a LlamaConfig if transformers is there, which its caches take."""
        values = copy.deepcopy(self._values.get("text_config", self._values))  # transformers changes what it reads
        try:
            from transformers import LlamaConfig
        except ImportError:
            return SimpleNamespace(**values)
        return LlamaConfig.from_dict(values)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Self:
        """Return the configuration of a `config.json`'s contents, updated by `options`.

        Raises:
            ConfigError: as for the class; or `config_dict` is no dictionary by names.
        """
        if not isinstance(config_dict, dict) or not all(isinstance(name, str) for name in config_dict):
            raise ConfigError(f"config_dict must be a dictionary by names, got {short_repr(config_dict)}")
        return cls(**{**config_dict, **options})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **options: Any) -> Self:
        """Read a checkpoint's configuration; of transformers' options, those of the Hub have an effect.

        Raises:
            CheckpointError, ConfigError: the file is missing, damaged, or describes another model.
        """
        folder = resolve_folder(pretrained_model_name_or_path, **hub_options(options))
        config = cls(**read_json_object(folder / "config.json"))
        if config.audio_in_token_idx is None and (tokenizer := load_tokenizer(folder)) is not None:
            # transformers' layout leaves this token to the tokenizer.
            config._values["audio_in_token_idx"] = tokenizer.token_to_id(AUDIO_PLACEHOLDERS[0])
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the values by their names."""
        return dict(self._values)


def _boson_values(native: NativeConfig) -> dict[str, Any]:
    return {
        "audio_num_codebooks": native.num_codebooks,
        "audio_codebook_size": native.codebook_size - 2,  # without BOS and EOS
        "audio_stream_bos_id": native.audio_stream_bos_id,
        "audio_stream_eos_id": native.audio_stream_eos_id,
        "audio_in_token_idx": native.audio_in_token_id,
        "audio_out_token_idx": native.audio_out_token_id,
        "audio_out_bos_token_id": native.audio_out_bos_token_id,
        "audio_eos_token_id": native.audio_eos_token_id,
        "audio_adapter_type": native.audio_adapter_type,
        "audio_dual_ffn_layers": list(native.audio_dual_ffn_layers),
        "pad_token_id": native.pad_token_id,
    }
