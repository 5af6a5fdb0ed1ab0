"""Valid arguments of every operator, by name, as its schema has them: packed weights as data and scales."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from higgs_native import ops
from tests.ops import test_attention, test_audio_tokenizer, test_decoder, test_dual_ffn, test_embedding
from tests.ops.slots import Slots
from tests.ops.tensors import int32, random


def _flat(values) -> list[Any]:
    return [part for value in values for part in (value if isinstance(value, ops.PackedWeight) else (value,))]


def _int8(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    data, scales = ops.pack_linear(random((n, k)), format="int8")
    return data, scales


def _one_row() -> tuple[torch.Tensor, ...]:
    """The parameters of a row or slot: temperature, top_k, top_p."""
    return torch.tensor([0.8]), int32(5), torch.tensor([0.9])


def _audio_tokenizer(name: str) -> Callable[[], list[Any]]:
    def arguments() -> list[Any]:
        return list(copy.deepcopy(test_audio_tokenizer.ARGUMENTS[name]).values())

    return arguments


EXAMPLES: dict[str, Callable[[], list[Any]]] = {
    "embed": lambda: list(test_embedding.arguments().values()),
    "pack_linear": lambda: [torch.empty(1, 20, 32, 1), random((6, 20)), 0, 32],
    "linear": lambda: [torch.empty(3, 6), random((3, 20)), *_int8(6, 20), random((3, 6))],
    "rms_norm_linear": lambda: [torch.empty(3, 6), random((3, 20)), random((20,)), 1e-5, *_int8(6, 20)],
    "quantize_linear": lambda: [torch.empty(2, 5, dtype=torch.int8), torch.empty(2), random((2, 5)), 8, True],
    "qkv_rope_cache": lambda: _flat(
        (test_attention.qkv_arguments() | {"qkv_weight": ops.PackedWeight(*_int8(32, 10))}).values()
    ),
    "attention": lambda: list(test_attention.attention_arguments().values()),
    "dual_ffn": lambda: _flat(
        [torch.empty(3, 32), random((3, 32)), *test_dual_ffn.weights(32, 48, torch.float32, "int8"), 1e-5, 1]
    ),
    "decoder_layers": lambda: list(
        (
            test_decoder.arguments([0, 1], 2, "int8", True)
            | {"adapters": int32(0, -1, 0, 0, 0), "factors": 2 * test_decoder.layer_factors(3, 0)}
        ).values()
    ),
    "sample_audio_frame": lambda: list(Slots(2, 3, 12).arguments()),
    "sample_text": lambda: [int32(0), random((1, 9)), int32(0), int32(0), *_one_row(), torch.tensor([0])],
    "process_logits": lambda: [torch.empty(1, 9), random((1, 9)), *_one_row()],
    "delay_pattern_build": lambda: [int32(*range(12)).view(2, 6), int32(*range(6)).view(2, 3), 8, 9],
    "delay_pattern_revert": lambda: [int32(*range(4)).view(2, 2), int32(*range(6)).view(2, 3)],
} | {name: _audio_tokenizer(name) for name in test_audio_tokenizer.ARGUMENTS}
