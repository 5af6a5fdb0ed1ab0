"""Query, key and value with rotary positions into the static KV cache, and causal grouped-query attention over it.

A row is one position of one sequence. A batch holds rows of several sequences without padding, text rows before audio
rows. `slots` names the sequence of each row, `cache_positions` its position in that sequence's cache.
"""

import torch

from higgs_native.ops._library import register_fakes
from higgs_native.ops.linear import PackedWeight


register_fakes("qkv_rope_cache", "attention")


def qkv_rope_cache(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    x: torch.Tensor,
    text_norm: torch.Tensor,
    audio_norm: torch.Tensor,
    eps: float,
    qkv_weight: PackedWeight,
    rope_table: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    cache_positions: torch.Tensor,
    num_text_rows: int,
) -> None:
    """Apply RMSNorm, the three projections and the rotary embedding, and write keys and values into the cache.

    The first `num_text_rows` rows are normalized with `text_norm`, the others with `audio_norm`. Dimension i of a head
    is rotated with dimension i + head_dim / 2, as Llama in transformers does ("rotate half").

    Args:
        query: [rows, query heads * head_dim], float32; written.
        key_cache, value_cache: [slots, KV heads, length, head_dim], float32, bfloat16 or float16; one position
            per row is written.
        x: [rows, hidden], float32.
        text_norm, audio_norm: [hidden], float32, bfloat16 or float16.
        eps: added to the mean square by RMSNorm.
        qkv_weight: [(query heads + 2 * KV heads) * head_dim, hidden], packed: query, key, value.
        rope_table: [positions, head_dim], float32: the cosines of the head_dim / 2 angles, then the sines.
        slots, positions, cache_positions: [rows], int32: the sequence, the rotary position, the cache position.
        num_text_rows: the first rows of the batch that are text.

    Raises:
        RuntimeError: a shape or dtype does not fit, or a position lies outside the cache or the table.
    """
    torch.ops.higgs_native.qkv_rope_cache(
        query,
        key_cache,
        value_cache,
        x,
        text_norm,
        audio_norm,
        eps,
        *qkv_weight,
        rope_table,
        slots,
        positions,
        cache_positions,
        num_text_rows,
    )


def attention(
    out: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    cache_positions: torch.Tensor,
    scale: float,
) -> None:
    """`softmax(scale * q K^T) V` of each row over its sequence, up to and including its own cache position.

    Query head h reads KV head h * KV heads // query heads.

    Args:
        out: [rows, query heads * head_dim], float32; written.
        query: [rows, query heads * head_dim], float32.
        key_cache, value_cache: [slots, KV heads, length, head_dim], float32, bfloat16 or float16.
        slots, cache_positions: [rows], int32; row r reads positions 0 .. cache_positions[r] of sequence slots[r].
        scale: usually head_dim ** -0.5.

    Raises:
        RuntimeError: a shape or dtype does not fit, or a position lies outside the cache.
    """
    torch.ops.higgs_native.attention(out, query, key_cache, value_cache, slots, cache_positions, scale)
