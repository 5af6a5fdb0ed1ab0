"""`higgs_native.ops.attention` in plain PyTorch."""

import torch

from higgs_native.ops.linear import PackedWeight
from higgs_native.reference.linear import RowFactors, packed_linear, rms_norm


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
    factors: RowFactors | None = None,
) -> None:
    """See `higgs_native.ops.qkv_rope_cache`."""
    rows = x.shape[0]
    kv_heads, head_dim = key_cache.shape[1], key_cache.shape[3]
    normalized = torch.cat([rms_norm(x[:num_text_rows], text_norm, eps), rms_norm(x[num_text_rows:], audio_norm, eps)])
    width = query.shape[1] + 2 * kv_heads * head_dim
    heads = packed_linear(normalized, qkv_weight, factors)[:, :width].view(rows, -1, head_dim)
    angles = rope_table[positions.long()].unsqueeze(1)
    cosines, sines = angles.split(head_dim // 2, dim=-1)

    def rotate(head: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        normalized = head if norm is None else rms_norm(head, norm, eps)
        first, second = normalized.split(head_dim // 2, dim=-1)
        return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)

    query_heads = heads.shape[1] - 2 * kv_heads
    query.copy_(rotate(heads[:, :query_heads], query_norm).flatten(1))
    pages, entries = cache_positions.long() // key_cache.shape[2], cache_positions.long() % key_cache.shape[2]
    at = (page_table[slots.long(), pages].long(), slice(None), entries)
    key_cache[at] = rotate(heads[:, query_heads : query_heads + kv_heads], key_norm).to(key_cache.dtype)
    value_cache[at] = heads[:, query_heads + kv_heads :].to(value_cache.dtype)


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
    """See `higgs_native.ops.attention`."""
    kv_heads, head_dim = key_cache.shape[1], key_cache.shape[3]
    for row, (slot, position) in enumerate(zip(slots.tolist(), cache_positions.tolist(), strict=True)):
        keys, values = (_positions(cache, page_table[slot], position + 1) for cache in (key_cache, value_cache))
        heads = query[row].view(kv_heads, -1, head_dim)
        weights = torch.softmax(heads @ keys.transpose(1, 2) * scale, dim=-1)
        out[row] = (weights @ values).flatten()


def _positions(cache: torch.Tensor, pages: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` positions [KV heads, count, head_dim] of a sequence with these pages, float32."""
    used = pages[: -(-count // cache.shape[2])].long()
    return cache[used].transpose(0, 1).flatten(1, 2)[:, :count].float()
