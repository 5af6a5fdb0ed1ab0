"""The paged cache of keys and values."""

import torch
from typing_extensions import Self

from higgs_native.checkpoint.config import HiggsAudioConfig


PAGE_SIZE = 16
"""Positions per page."""


class KVCache:
    """Keys and values of every layer, in pages of `PAGE_SIZE` positions, allocated once.

    Position p of slot s is entry p % PAGE_SIZE of page `page_table[s, p // PAGE_SIZE]`, in every layer. The owner of
    the cache writes the table.

    Attributes:
        keys, values: one tensor per layer, [num_pages, KV heads, PAGE_SIZE, head_dim].
        page_table: [slots, ceil(length / PAGE_SIZE)], int32, at first all 0.
        num_pages: the number of pages.
        slots: the max number of sequences.
        length: the max number of positions of a sequence.
    """

    def __init__(
        self,
        config: HiggsAudioConfig,
        num_pages: int,
        slots: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_pages, config.num_key_value_heads, PAGE_SIZE, config.head_dim)
        # Uninitialized: positions are written before they are read, and untouched pages take no memory.
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.page_table = torch.zeros(slots, pages_for(length), dtype=torch.int32, device=device)
        self.num_pages = num_pages
        self.slots = slots
        self.length = length

    @classmethod
    def with_own_pages(
        cls, config: HiggsAudioConfig, slots: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """Allocate a cache in which each slot has pages for `length` positions, in order, that no other slot uses."""
        num_pages = slots * pages_for(length)
        cache = cls(config, num_pages, slots, length, dtype, device)
        torch.arange(num_pages, dtype=torch.int32, device=device, out=cache.page_table.view(-1))
        return cache


def pages_for(length: int) -> int:
    """The number of pages that `length` positions take."""
    return -(-length // PAGE_SIZE)
