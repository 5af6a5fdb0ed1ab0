"""Adapters in PEFT's format (LoRA): read, checked, and added to the weights of their base."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from typing_extensions import Self

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.files import listed
from higgs_native.checkpoint.language_model import TEXT_LM_HEAD, LanguageModelFiles, expected_tensors, original_name
from higgs_native.errors import CheckpointError, short_repr
from higgs_native.utils.checks import expanded_path
from higgs_native.utils.fields import Fields
from higgs_native.utils.files import read_json_object
from higgs_native.utils.tensors import is_finite


CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
BASE_KEY = "higgs_native_base"
"""The key of the base's fingerprint in the metadata of the weights. Adapters of other programs have none."""
SPEAKERS_KEY = "higgs_native_speakers"
"""The key of the speakers that the adapter was trained on, one per line."""
_PREFIX = "base_model.model."
# Kinds of factors: the suffixes of A and B, and whether their product is transposed, as that of tables is.
_FACTORS = ((".lora_A.weight", ".lora_B.weight", False), (".lora_embedding_A", ".lora_embedding_B", True))
# Settings of PEFT that change what the factors mean, and the values that leave it as it is.
_PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "lora_bias": (False, None),
}


@dataclass(frozen=True)
class Adapter:
    """Products of low rank that are added to matrices.

    Attributes:
        folder: where it was read from.
        factors: A [rank, inputs] and B [outputs, rank] of each tensor, by its name in the original layout.
        transposed: the names of the tensors to which the transposed product is added: tables.
        scale: of all products.
        base: the fingerprint of the weights that it was trained on; None if it is unknown.
        base_name: the folder or the Hub name of these weights; empty if it is unknown.
        speakers: names of the speakers that it was trained on.
    """

    folder: Path
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    transposed: frozenset[str]
    scale: float
    base: str | None
    base_name: str
    speakers: tuple[str, ...]

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read a folder with `adapter_config.json` and `adapter_model.safetensors`.

        Raises:
            ConfigError: the configuration is missing, or describes an adapter of another kind.
            CheckpointError: the weights are missing or damaged, or are no pairs of factors of one rank.
            ParameterError: `folder` is no path.
        """
        folder = Path(expanded_path("adapter", folder))
        raw = read_json_object(folder / CONFIG_FILE)
        fields = Fields(raw, str(folder / CONFIG_FILE))
        for name, plain in _PLAIN.items():
            value = raw.get(name, plain[-1])
            fields.require(name, value in plain, short_repr(plain[0]), value)
        rank = fields.integer("r")
        fields.require("r", rank >= 1, "at least 1", rank)
        scale = fields.number("lora_alpha") / (math.sqrt(rank) if fields.flag("use_rslora", False) else rank)
        try:
            with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / WEIGHTS_FILE} is missing or damaged: {error}") from None
        factors, transposed = _pairs(tensors, rank, folder)
        speakers = tuple(name for name in metadata.get(SPEAKERS_KEY, "").splitlines() if name)
        base = raw.get("base_model_name_or_path")
        name = base if isinstance(base, str) else ""
        return cls(folder, factors, frozenset(transposed), scale, metadata.get(BASE_KEY), name, speakers)

    def check_base(self, files: LanguageModelFiles, config: HiggsAudioConfig) -> None:
        """Raise CheckpointError if the adapter does not fit a checkpoint, or was trained on other weights."""
        self.check_fit(config, TEXT_LM_HEAD in files, files.fingerprint() if self.base is not None else None)

    def check_fit(self, config: HiggsAudioConfig, has_text_head: bool, base: str | None) -> None:
        """Raise CheckpointError if the adapter does not fit a base.

        Args:
            config: of the base.
            has_text_head: whether the base has a text head.
            base: the fingerprint of its weights; None if it is unknown.
        """
        expected = expected_tensors(config)
        if not has_text_head:
            expected.pop(TEXT_LM_HEAD, None)
        unknown = [name for name in self.factors if name not in expected]
        if unknown:
            raise CheckpointError(f"the adapter {self.folder} must fit its base, got {listed('unknown', unknown)}")
        for name, (a, b) in self.factors.items():
            shape = (a.shape[1], b.shape[0]) if name in self.transposed else (b.shape[0], a.shape[1])
            if shape != expected[name]:
                raise CheckpointError(
                    f"the adapter {self.folder} must fit its base: {name} must be {list(expected[name])}, "
                    f"got {list(shape)}"
                )
        if self.base is not None and base is not None and self.base != base:
            raise CheckpointError(f"the adapter {self.folder} must be of this base, got one of another base")

    def added(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return tensor `name` of the original layout with its product added, in the same dtype; or itself."""
        pair = self.pair(name)
        if pair is None:
            return tensor
        a, b = (factor.to(tensor.device) for factor in pair)
        return (tensor.to(torch.float32) + b @ a).to(tensor.dtype)

    def pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return A [rank, k] and B [n, rank], scaled, float32, whose product B A is added to a tensor [n, k]."""
        if name not in self.factors:
            return None
        a, b = (factor.to(torch.float32) for factor in self.factors[name])
        return (b.T, self.scale * a.T) if name in self.transposed else (a, self.scale * b)


def _pairs(
    tensors: dict[str, torch.Tensor], rank: int, folder: Path
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], list[str]]:
    """Return A and B by the name of the tensor that they change, and the names of tables."""
    factors, transposed, read = {}, [], set()
    for a_suffix, b_suffix, is_table in _FACTORS:
        for stored in tensors:
            if not stored.endswith(a_suffix):
                continue
            module = stored.removesuffix(a_suffix)
            a, b = tensors[stored], tensors.get(module + b_suffix)
            if b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != rank or b.shape[1] != rank:
                raise CheckpointError(f"{folder}: {stored} must be one of two factors of rank {rank}, got another")
            if not (a.is_floating_point() and b.is_floating_point() and is_finite(a) and is_finite(b)):
                raise CheckpointError(f"{folder}: {stored} and its other factor must be finite numbers, got others")
            name = original_name(module.removeprefix(_PREFIX) + ".weight")
            factors[name] = a, b
            read |= {stored, module + b_suffix}
            if is_table:
                transposed.append(name)
    if not factors or len(read) < len(tensors):
        raise CheckpointError(
            f"{folder} must hold factors of LoRA alone, got {listed('unknown', [*tensors.keys() - read])}"
        )
    return factors, transposed
