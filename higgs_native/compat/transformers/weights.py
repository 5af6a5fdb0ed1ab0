"""The weights of a loaded model, as the engine reads them, and what shows that they have changed."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2TokenizerModel,
)

from higgs_native import ops
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.language_model import TEXT_LM_HEAD, expected_tensors, transformers_name
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.errors import CheckpointError
from higgs_native.model.transformer import checked_dtype
from higgs_native.ops import PackedWeight
from higgs_native.ops.formats import STORED_DTYPES
from higgs_native.utils.tensors import is_finite


_COMPARED = 16
"""Bytes per tensor that `weights_state` holds."""
_PLAIN = (torch.Tensor, torch.nn.Parameter)


class ModelWeights:
    """`Weights` of a loaded model: tables and norms are its own tensors, matrices are packed."""

    def __init__(
        self, model: HiggsAudioV2ForConditionalGeneration, config: HiggsAudioConfig, quantization: Quantization
    ) -> None:
        self.dtype = checked_dtype(model.dtype)
        self.quantization = quantization
        state = model.state_dict()
        self._tensors = {}
        for name, shape in expected_tensors(config).items():
            stored = transformers_name(name)
            tensor = state.get(stored)
            if tensor is None and name == TEXT_LM_HEAD:
                continue
            if tensor is None:
                raise CheckpointError(f"the model has no {stored}; merge adapters and parametrizations")
            check_plain({stored: tensor}, model.device)
            if tuple(tensor.shape) != shape:
                raise CheckpointError(
                    f"{stored} has shape {list(tensor.shape)}, but the configuration asks for {list(shape)}"
                )
            self._tensors[name] = tensor.to(self.dtype).contiguous()
            if not is_finite(self._tensors[name]):
                raise CheckpointError(f"{stored} must be finite, got NaN or infinity")

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def linear(self, part: str, name: str, *names: str) -> PackedWeight:
        return ops.pack_linear(*(self._tensors[n] for n in names or (name,)), **self._packing(part))

    def gate_up(self, part: str, name: str, gate: str, up: str) -> PackedWeight:
        return ops.pack_gate_up(self._tensors[gate], self._tensors[up], **self._packing(part))

    def _packing(self, part: str) -> dict[str, Any]:
        return {"format": getattr(self.quantization, part), "clip": self.quantization.clip}


def check_plain(tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Raise CheckpointError if a tensor does not hold the weight itself: quantized, offloaded, or a subclass.

    Quantized tensors keep their scales elsewhere, so a cast to a floating dtype would be noise.
    """
    for name, tensor in tensors.items():
        kind, dtype = type(tensor), tensor.dtype
        if kind in _PLAIN and dtype in STORED_DTYPES.values() and tensor.device == device:
            continue
        raise CheckpointError(
            f"{name} must be a plain tensor of float32, bfloat16 or float16 on {device}, "
            f"got a {kind.__name__} of {str(dtype).removeprefix('torch.')} on {tensor.device}; load the model whole "
            "and not quantized: accelerate(model, quantization=...) quantizes it"
        )


def weights_state(model: HiggsAudioV2ForConditionalGeneration | HiggsAudioV2TokenizerModel) -> tuple:
    """Return what differs once a weight has been replaced, moved or written to.

    A tensor's version counts its writes, except those through `.data`, which adapters are merged by. So some bytes of
    each tensor are part of it too.
    """
    versions: list[tuple] = []
    bytes_of: dict[torch.device, list[torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if type(tensor) not in _PLAIN or tensor.is_meta:
            versions.append((name, type(tensor)))  # not to be packed
            continue
        version = None if tensor.is_inference() else tensor._version
        versions.append((name, tensor.dtype, tensor.data_ptr(), version))
        flat = tensor.detach().reshape(-1).view(torch.uint8)
        # An odd stride: bytes of the exponent and of the mantissa.
        bytes_of.setdefault(tensor.device, []).append(flat[:: len(flat) // _COMPARED | 1])
    return versions, [torch.cat(parts).cpu().numpy().tobytes() for parts in bytes_of.values()]
