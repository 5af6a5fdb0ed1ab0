"""Checkpoints of other kinds, told by their files, configuration or tensors: what they are, and the way out.

A function that tells a kind returns the words that follow "got" in an error, or None.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from higgs_native.errors import CheckpointError, short_repr
from higgs_native.utils.files import read_json_object


_ADAPTER = "an adapter (LoRA): merge it into its model, such as with PEFT's merge_and_unload, and save the whole model"
_QUANTIZED = "give the checkpoint that they were made from, with quantization='int8' or 'int4' to save memory"
_FILES = (
    (re.compile(r"adapter_(config\.json|model\..*)"), _ADAPTER),
    (re.compile(r".*\.gguf"), "a GGUF file, which llama.cpp reads: give the checkpoint that it was made from"),
    (
        re.compile(r"(pytorch_model|model).*\.bin"),
        "a pickle (.bin): save the model as safetensors, as save_pretrained of transformers does",
    ),
)
_TENSORS = (
    (re.compile(r"(^|\.)(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(\.|$)"), _ADAPTER),
    (re.compile(r"\.(SCB|weight_format|absmax|quant_map|nested_absmax|quant_state\..*)$"), "bitsandbytes"),
    (re.compile(r"\.(qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (re.compile(r"\.(weight_packed|weight_scale|weight_scale_inv|weight_zero_point|input_scale)$"), "other software"),
)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a checkpoint.

    Raises:
        ConfigError: it is missing, or holds no JSON object.
        CheckpointError: the checkpoint is of another kind: an adapter, or quantized by other software.
    """
    path = folder / "config.json"
    if not path.exists() and (kind := kind_of_folder(folder)):
        raise CheckpointError(f"{folder} must hold a whole model with its config.json, got {kind}")
    raw = read_json_object(path)
    if kind := kind_of_config(raw):
        raise CheckpointError(f"{folder} must hold weights that are not quantized, got {kind}")
    return raw


def kind_of_folder(folder: Path) -> str | None:
    """Tell the kind of a folder on disk."""
    try:
        return kind_of_files(path.name for path in folder.iterdir())
    except OSError:
        return None  # what reads the folder's files next says why it can't be read


def kind_of_files(names: Iterable[str]) -> str | None:
    """Tell the kind of a folder by the names of its files."""
    names = list(names)
    return next((words for pattern, words in _FILES if any(map(pattern.fullmatch, names))), None)


def kind_of_tensors(names: Iterable[str]) -> str | None:
    """Tell the kind of weights by the names of tensors."""
    names = list(names)
    kind = next((words for pattern, words in _TENSORS if any(map(pattern.search, names))), None)
    return kind if kind in (None, _ADAPTER) else f"weights quantized by {kind}: {_QUANTIZED}"


def kind_of_config(raw: Mapping[str, Any]) -> str | None:
    """Tell the kind of weights by a `config.json`, which names the software that quantized them."""
    quantization = raw.get("quantization_config")
    if not quantization:
        return None
    fields = quantization if isinstance(quantization, dict) else {}
    bits = next((bits for bits in (4, 8) if fields.get(f"load_in_{bits}bit") or fields.get("bits") == bits), None)
    software = fields.get("quant_method", "bitsandbytes" if bits else "other software")
    name = software if isinstance(software, str) else short_repr(software)
    return f"weights quantized by {name}{f' to {bits} bits' if bits else ''}: {_QUANTIZED}"
