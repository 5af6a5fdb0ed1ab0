"""Sequences in the pages of a cache."""

import torch


def random_page_table(slots: int, length: int, page_size: int, seed: int = 0) -> tuple[torch.Tensor, int]:
    """A table of pages for `length` positions of each slot, in random order, and the number of pages, which is larger.

    Returns:
        [slots, max pages], int32, and the number of pages.
    """
    count = -(-length // page_size)
    num_pages = slots * count + 3
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed))
    return order[: slots * count].view(slots, count).int().contiguous(), num_pages


def in_pages(sequences: torch.Tensor, page_table: torch.Tensor, num_pages: int, page_size: int) -> torch.Tensor:
    """Keys or values of sequences [slots, KV heads, length, head_dim] as a cache, with NaN in all other entries."""
    _, kv_heads, length, head_dim = sequences.shape
    cache = torch.full((num_pages, kv_heads, page_size, head_dim), torch.nan, dtype=sequences.dtype)
    positions = torch.arange(length)
    for sequence, pages in zip(sequences, page_table.long(), strict=True):
        cache[pages[positions // page_size], :, positions % page_size] = sequence.transpose(0, 1)
    return cache
