"""The static cache of keys and values."""

import torch

from higgs_native.config import HiggsAudioConfig


class KVCache:
    """Keys and values of every layer for a fixed number of sequences and positions, allocated once.

    Attributes:
        keys, values: one tensor a layer, [slots, KV heads, length, head_dim].
        slots: sequences it holds.
        length: positions a sequence may have.
    """

    def __init__(
        self, config: HiggsAudioConfig, slots: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (slots, config.num_key_value_heads, length, config.head_dim)
        # Uninitialised: only what has been written is read, and pages that are never written cost no memory.
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.slots = slots
        self.length = length
