"""The weights of a loaded model, as the engine reads them."""

import torch
from transformers import (
    HiggsAudioV2ForConditionalGeneration,
)

from higgs_native import ops
from higgs_native.errors import CheckpointError
from higgs_native.model.checkpoint import TEXT_LM_HEAD, expected_tensors, transformers_name
from higgs_native.model.config import HiggsAudioConfig
from higgs_native.model.quantization import Quantization
from higgs_native.model.transformer import checked_dtype
from higgs_native.ops import PackedWeight


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
            tensor = state.get(transformers_name(name))
            if tensor is None and name == TEXT_LM_HEAD:
                continue
            if tensor is None:
                raise CheckpointError(
                    f"the model has no {transformers_name(name)}; merge adapters and parametrizations"
                )
            if tuple(tensor.shape) != shape:
                raise CheckpointError(
                    f"{transformers_name(name)} has shape {list(tensor.shape)}, but the configuration asks for "
                    f"{list(shape)}"
                )
            self._tensors[name] = tensor.to(self.dtype).contiguous()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def linear(self, part: str, name: str, *names: str) -> PackedWeight:
        return ops.pack_linear(*(self._tensors[n] for n in names or (name,)), **self._packing(part))

    def gate_up(self, part: str, name: str, gate: str, up: str) -> PackedWeight:
        return ops.pack_gate_up(self._tensors[gate], self._tensors[up], **self._packing(part))

    def _packing(self, part: str) -> dict[str, object]:
        return {"format": getattr(self.quantization, part), "clip": self.quantization.clip}
