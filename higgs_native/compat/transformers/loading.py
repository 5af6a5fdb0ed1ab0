"""Checkpoints loaded into models that have no weights besides those of the engine."""

import os
from typing import Any

import torch
from transformers import (
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
)
from transformers.generation import (
    GenerationConfig,
)

from higgs_native.compat.transformers.classes import WithoutWeights
from higgs_native.errors import ConfigError, ParameterError
from higgs_native.generation.engine import HiggsAudioModel
from higgs_native.model.checkpoint import resolve_folder
from higgs_native.model.quantization import Quantization
from higgs_native.model.transformer import DEFAULT_CACHE_LENGTH
from higgs_native.ops.device import checked_device
from higgs_native.utils.checks import expanded_path
from higgs_native.utils.files import read_json_object


# Options of transformers' `from_pretrained` for how the same weights are loaded or run.
_LOADED_WITHOUT = ("attn_implementation", "low_cpu_mem_usage", "trust_remote_code", "use_safetensors")


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
        options: `attn_implementation`, `low_cpu_mem_usage`, `trust_remote_code` and `use_safetensors` have no effect.

    Raises:
        CheckpointError, ConfigError: the files are missing, damaged, or of another layout.
        ParameterError: the dtype, the length, the quantization, the device or another option can't be used.
    """
    unknown = [name for name in options if name not in _LOADED_WITHOUT]
    if unknown:
        raise ParameterError(
            f"from_pretrained does not take {', '.join(unknown)}; "
            "load the model with transformers' own from_pretrained, and accelerate(model)"
        )
    name = expanded_path("pretrained_model_name_or_path", pretrained_model_name_or_path)
    chosen_device = _one_device(device, device_map)
    chosen_dtype = next((given for given in (dtype, torch_dtype) if given is not None), "auto")
    folder = resolve_folder(name if revision is None or os.path.isdir(name) else f"{name}@{revision}")
    raw = read_json_object(folder / "config.json")
    if "text_config" in raw or raw.get("model_type") != "higgs_audio_v2":
        raise ConfigError(f"{folder} is not of transformers' layout; load it with higgs_native.HiggsAudio")
    native = HiggsAudioModel.from_pretrained(folder, chosen_device, chosen_dtype, max_cache_length, quantization)
    with torch.device("meta"):
        model = WithoutWeights(HiggsAudioV2Config.from_dict(raw)).eval()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.higgs_native = native
    return model


def _one_device(device: str | torch.device | None, device_map: Any) -> torch.device:
    """The device that `device` or `device_map` names."""
    if device is not None and device_map is not None:
        raise ParameterError("both device and device_map are given; expected one of them")
    if device_map is None:
        return checked_device("cpu" if device is None else device)
    places = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
    devices = {checked_device(f"cuda:{place}" if isinstance(place, int) else place) for place in places}
    if len(devices) != 1:
        raise ParameterError(f"device_map must name one device for the whole model, got {device_map!r}")
    return devices.pop()
