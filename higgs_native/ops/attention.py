"""Query, key and value with rotary positions into the paged KV cache, and causal grouped-query attention over it.

A row is one position of one sequence. A batch holds rows of several sequences without padding, text rows before audio
rows. `slots` names the sequence of each row, `cache_positions` its position in that sequence's cache.

Cache position p of sequence s is entry p % page size of page `page_table[s, p // page size]`. The pages of a sequence
may lie in any order, and sequences may share a page, as long as none of them writes it. Neither changes a result.

CUDA kernels can't refuse values: there it is the caller who keeps slots, positions and page numbers within bounds.
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
    page_table: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    cache_positions: torch.Tensor,
    num_text_rows: int,
    query_norm: torch.Tensor | None = None,
    key_norm: torch.Tensor | None = None,
) -> None:
    """Apply RMSNorm, the three projections and the rotary embedding, and write keys and values into the cache.

    The first `num_text_rows` rows are normalized with `text_norm`, the others with `audio_norm`. Dimension i of a head
    is rotated with dimension i + head_dim / 2, as Llama in transformers does ("rotate half"). With `query_norm` and
    `key_norm`, each head of query and key is normalized before, as in Qwen3.

    Args:
        query: [rows, query heads * head_dim], float32; written.
        key_cache, value_cache: [pages, KV heads, page size, head_dim], float32, bfloat16 or float16; the page size is
            16, 32 or 64. One position per row is written.
        x: [rows, hidden], float32.
        text_norm, audio_norm: [hidden], float32, bfloat16 or float16.
        eps: added to the mean square by RMSNorm.
        qkv_weight: [(query heads + 2 * KV heads) * head_dim, hidden], packed: query, key, value.
        rope_table: [positions, head_dim], float32: the cosines of the head_dim / 2 angles, then the sines.
        page_table: [slots, max pages], int32: the pages of each sequence. Entries of unused positions are not read.
        slots, positions, cache_positions: [rows], int32: the sequence, the rotary position, the cache position.
        num_text_rows: the first rows of the batch that are text.
        query_norm, key_norm: [head_dim], of the dtype of the other norms: the weights of an RMSNorm over each head,
            shared by the heads; None: the heads have none.

    Raises:
        RuntimeError: a shape or dtype does not fit, or a slot, position or page lies outside its tensor.
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
        page_table,
        slots,
        positions,
        cache_positions,
        num_text_rows,
        query_norm,
        key_norm,
    )


def attention(
    out: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    page_table: torch.Tensor,
    slots: torch.Tensor,
    cache_positions: torch.Tensor,
    scale: float,
) -> None:
    """`softmax(scale * q K^T) V` of each row over its sequence, up to and including its own cache position.

    Query head h reads KV head h * KV heads // query heads.

    Args:
        out: [rows, query heads * head_dim], float32; written.
        query: [rows, query heads * head_dim], float32.
        key_cache, value_cache: [pages, KV heads, page size, head_dim], float32, bfloat16 or float16; the page size is
            16, 32 or 64.
        page_table: [slots, max pages], int32: the pages of each sequence. Entries of unused positions are not read.
        slots, cache_positions: [rows], int32; row r reads positions 0 .. cache_positions[r] of sequence slots[r].
        scale: usually head_dim ** -0.5.

    Raises:
        RuntimeError: a shape or dtype does not fit, or a slot, position or page lies outside its tensor.
    """
    torch.ops.higgs_native.attention(out, query, key_cache, value_cache, page_table, slots, cache_positions, scale)
