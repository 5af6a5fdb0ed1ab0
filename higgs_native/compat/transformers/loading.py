"""Checkpoints loaded into models that have no weights besides those of the engine."""

import os
from dataclasses import asdict
from typing import Any

import torch
from transformers import (
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
)
from transformers.generation import (
    GenerationConfig,
)

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.files import resolve_folder
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.compat.transformers.classes import WithoutWeights
from higgs_native.errors import ConfigError, ParameterError, short_repr
from higgs_native.generation.model import HiggsAudioModel
from higgs_native.model.transformer import DEFAULT_CACHE_LENGTH
from higgs_native.ops.device import checked_device
from higgs_native.utils.checks import check_string, expanded_path
from higgs_native.utils.files import read_json_object


# Options of transformers' `from_pretrained` for how the same weights are loaded or run.
_LOADED_WITHOUT = ("attn_implementation", "low_cpu_mem_usage", "trust_remote_code", "use_safetensors", "weights_only")
_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "token")


def from_pretrained(
    pretrained_model_name_or_path: str | os.PathLike,
    dtype: str | torch.dtype | None = None,
    max_cache_length: int = DEFAULT_CACHE_LENGTH,
    quantization: str | Quantization | None = None,
    device: str | torch.device | None = None,
    *,
    torch_dtype: str | torch.dtype | None = None,
    device_map: str | int | torch.device | dict[str, str | int | torch.device] | None = None,
    revision: str | None = None,
    config: HiggsAudioV2Config | str | os.PathLike | None = None,
    generation_config: GenerationConfig | None = None,
    **options: Any,
) -> HiggsAudioV2ForConditionalGeneration:
    """Load a checkpoint of transformers' layout into a model of which only `generate` can be called.

    transformers' own modules get no weights, so that memory holds them once, packed. `to`, `cuda`, `half` and the like
    return the model where they ask for what it is already, and raise ParameterError otherwise.

    Args:
        pretrained_model_name_or_path: a folder, or a Hub name.
        dtype: float32, bfloat16, float16, or `auto`, the default: as stored.
        max_cache_length, quantization: as for `accelerate`.
        device: `cpu`, the default, `cuda`, `cuda:1`, ..., or `auto`: a GPU where there is one.
        torch_dtype: the older name of `dtype`.
        device_map: transformers' way to name the device: a device, its number, or a dictionary of one device alone.
        revision: of a Hub name.
        config: the model's configuration, or where to load it; it must describe the checkpoint's model.
        generation_config: in place of the checkpoint's.
        options: `cache_dir`, `force_download`, `local_files_only` and `token` are for the Hub. `attn_implementation`,
            `low_cpu_mem_usage`, `trust_remote_code`, `use_safetensors` and `weights_only` have no effect. Any other is
            None or False.

    Raises:
        CheckpointError, ConfigError: the files are missing, damaged, or of another layout.
        ParameterError: the dtype, the length, the quantization, the device, the configuration or another option can't
            be used.
    """
    options = {name: value for name, value in options.items() if value is not None and value is not False}
    unknown = [name for name in options if name not in (*_LOADED_WITHOUT, *_OF_THE_HUB)]
    if unknown:
        raise ParameterError(
            f"from_pretrained does not take {', '.join(unknown)}; load the model with transformers' own "
            "from_pretrained, and accelerate(model); quantization=... packs it quantized"
        )
    name = expanded_path("pretrained_model_name_or_path", pretrained_model_name_or_path)
    check_string("revision", revision, optional=True)
    chosen_device = _one_device(device, device_map)
    chosen_dtype = next((given for given in (dtype, torch_dtype) if given is not None), "auto")
    folder = resolve_folder(
        name if revision is None or os.path.isdir(name) else f"{name}@{revision}",
        **{option: options[option] for option in _OF_THE_HUB if option in options},
    )
    raw = read_json_object(folder / "config.json")
    if "text_config" in raw or raw.get("model_type") != "higgs_audio_v2":
        raise ConfigError(f"{folder} is not of transformers' layout; load it with higgs_native.HiggsAudio")
    own_config = HiggsAudioV2Config.from_dict(raw)
    chosen_config = own_config if config is None else _checked_config(config, own_config)
    native = HiggsAudioModel.from_pretrained(folder, chosen_device, chosen_dtype, max_cache_length, quantization)
    with torch.device("meta"):
        model = HiggsAudioV2ForConditionalGeneration(chosen_config).eval()
    if generation_config is not None:
        model.generation_config = generation_config
    elif (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.higgs_native = native
    model.__class__ = WithoutWeights
    return model


def _checked_config(config: Any, own: HiggsAudioV2Config) -> HiggsAudioV2Config:
    """The configuration that `config` is or names.

    Raises:
        ParameterError: it is none, or describes another model than the checkpoint's own.
    """
    if isinstance(config, str | os.PathLike):
        config = HiggsAudioV2Config.from_pretrained(config)
    if not isinstance(config, HiggsAudioV2Config):
        raise ParameterError(f"config must be a HiggsAudioV2Config or its path, got a {type(config).__name__}")
    given, expected = (asdict(HiggsAudioConfig.from_dict(one.to_dict())) for one in (config, own))
    for name, value in expected.items():
        # In transformers' convention the engine reads none of these ids.
        if given[name] != value and name not in ("eos_token_id", "end_token_ids", "pad_token_id"):
            raise ParameterError(f"config must be the checkpoint's, whose {name} is {value}, got {given[name]}")
    return config


def _one_device(device: str | torch.device | None, device_map: Any) -> torch.device:
    """The device that `device` or `device_map` names."""
    if device is not None and device_map is not None:
        raise ParameterError("both device and device_map are given; expected one of them")
    if device_map is None:
        return checked_device("cpu" if device is None else device)
    named = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
    devices = {checked_device(f"cuda:{device}" if isinstance(device, int) else device) for device in named}
    if len(devices) != 1:
        raise ParameterError(f"device_map must name one device for the whole model, got {short_repr(device_map)}")
    return devices.pop()
