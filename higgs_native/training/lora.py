"""Which parameters are trained: LoRA in PEFT's format on parts of the model, or the parts themselves."""

import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from higgs_native.checkpoint.adapter import BASE_KEY, SPEAKERS_KEY, WEIGHTS_FILE
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.training.model import TrainableModel
from higgs_native.training.settings import PARTS
from higgs_native.training.sharding import whole
from higgs_native.utils.files import replacing


def add_lora(
    model: TrainableModel, parts: tuple[str, ...], rank: int, alpha: float, dropout: float, base: str
) -> PeftModel:
    """Freeze a model, and add trainable factors to its parts, in float32.

    Args:
        model: the base, whose modules are replaced.
        parts: keys of `PARTS`; norms have no matrices.
        rank, alpha, dropout: of LoRA.
        base: the folder or the Hub name of the base, which PEFT writes down.

    Raises:
        ParameterError: the parts have no matrices in this model.
    """
    names = [name for name, _ in model.named_modules()]
    targets = [
        suffix
        for part in parts
        for suffix in PARTS[part]
        if part != "norms" and any(name == suffix or name.endswith(f".{suffix}") for name in names)
    ]
    if not targets:
        raise ParameterError(f"parts must have matrices for method lora, got {', '.join(parts)}")
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
    adapted = get_peft_model(model, config)
    config.base_model_name_or_path = base
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            # Autocast casts the factors; PEFT would cast the activations to float32 and back.
            module.cast_input_dtype_enabled = False
    return adapted


def train_parts(model: TrainableModel, parts: tuple[str, ...]) -> None:
    """Make the parameters of parts trainable, in float32, and freeze all others."""
    pattern = re.compile(r"(^|\.)(" + "|".join(re.escape(end) for part in parts for end in PARTS[part]) + r")\.weight")
    for name, parameter in model.named_parameters():
        trains = pattern.search(name) is not None
        parameter.requires_grad_(trains)
        if trains:
            parameter.data = parameter.data.to(torch.float32)


def save_adapter(model: PeftModel, folder: Path, base: str, speakers: list[str], writes: bool = True) -> None:
    """Write an adapter in PEFT's format, with the fingerprint of its base and the names of its speakers.

    All processes of a sharded model call this, and one of them `writes`.
    """
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}
    if not writes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS_FILE) as path:
        save_file(tensors, path, {"format": "pt", BASE_KEY: base, SPEAKERS_KEY: "\n".join(speakers)})
    config = model.peft_config["default"]
    config.inference_mode = True
    try:
        config.save_pretrained(str(folder))
    finally:
        config.inference_mode = False


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Begin with the factors of an adapter, which has the same parts and the same rank.

    Raises:
        CheckpointError: it has others.
    """
    tensors = load_file(folder / WEIGHTS_FILE)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in own.items()}:
        raise CheckpointError(f"adapter must have the parts and the rank of this run, got others in {folder}")
    set_peft_model_state_dict(model, tensors)
