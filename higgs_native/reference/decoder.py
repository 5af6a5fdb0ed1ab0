"""`higgs_native.ops.decoder_layers` in plain PyTorch."""

from collections.abc import Sequence

import torch

from higgs_native.ops.linear import PackedWeight
from higgs_native.reference.attention import attention, qkv_rope_cache
from higgs_native.reference.dual_ffn import dual_ffn
from higgs_native.reference.linear import RowFactors, linear


_TENSORS_OF_LAYER = 18
_LAYER_LINEARS = 6


def decoder_layers(
    x: torch.Tensor,
    query: torch.Tensor,
    attended: torch.Tensor,
    key_caches: Sequence[torch.Tensor],
    value_caches: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    skips_audio: Sequence[int],
    eps: float,
    rope_table: torch.Tensor,
    page_table: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    text_positions: torch.Tensor,
    num_text_rows: int,
    adapters: torch.Tensor | None = None,
    factors: Sequence[torch.Tensor] = (),
    first_kept: int = 0,
    num_kept: int | None = None,
    following: torch.Tensor | None = None,
) -> None:
    """See `higgs_native.ops.decoder_layers`. All rows are kept."""
    pairs = [
        (PackedWeight(a), PackedWeight(b)) if a.numel() else None
        for a, b in zip(factors[::2], factors[1::2], strict=True)
    ]
    for index, skips in enumerate(skips_audio):
        rows = slice(num_text_rows if skips else len(x))
        cache_positions = text_positions if skips else positions
        caches = key_caches[index], value_caches[index]
        tensors = iter(weights[index * _TENSORS_OF_LAYER : (index + 1) * _TENSORS_OF_LAYER])

        def packed(tensors=tensors) -> PackedWeight:
            data, scales = next(tensors), next(tensors)
            return PackedWeight(data, scales if scales.numel() else None)

        input_norms = next(tensors), next(tensors)
        qkv, o = packed(), packed()
        text, audio = ((next(tensors), packed(), packed()) for _ in range(2))
        query_norm, key_norm = (norm if norm.numel() else None for norm in tensors)
        layer_rows = rope_table, page_table, slots[rows], positions[rows], cache_positions

        def row_factors(linear_index: int, index=index, rows=rows) -> RowFactors | None:
            if adapters is None:
                return None
            first, step = index * _LAYER_LINEARS + linear_index, len(skips_audio) * _LAYER_LINEARS
            return adapters[rows], pairs[first::step]

        inputs = query[rows], *caches, x[rows], *input_norms, eps, qkv
        qkv_rope_cache(*inputs, *layer_rows, num_text_rows, query_norm, key_norm, row_factors(0))
        scale = caches[0].shape[-1] ** -0.5
        attention(attended[rows], query[rows], *caches, page_table, slots[rows], cache_positions, scale)
        linear(x[rows], attended[rows], o, x[rows], row_factors(1))
        factors_of_ffn = [row_factors(linear_index) for linear_index in range(2, _LAYER_LINEARS)]
        dual_ffn(x[rows], x[rows], *text, *audio, eps, num_text_rows, factors_of_ffn)
