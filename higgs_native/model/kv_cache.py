"""The static cache of keys and values."""

import torch

from higgs_native.model.config import HiggsAudioConfig


class KVCache:
    """Keys and values of every layer for a fixed number of sequences and positions, allocated once.

    Attributes:
        keys, values: one tensor per layer, [slots, KV heads, length, head_dim].
        slots: the number of sequences.
        length: the max number of positions of a sequence.
    """

    def __init__(
        self, config: HiggsAudioConfig, slots: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (slots, config.num_key_value_heads, length, config.head_dim)
        # Uninitialized: positions are written before they are read, and untouched pages take no memory.
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.slots = slots
        self.length = length
        self._skips_audio = [config.skips_audio(layer) for layer in range(config.num_hidden_layers)]

    def views(self, slot: int, positions: slice, text_positions: slice) -> list[torch.Tensor]:
        """Return views [KV heads, positions, head_dim] of some positions of a sequence: all keys, then all values.

        Args:
            slot: the sequence.
            positions: its cache positions in layers that audio rows pass through.
            text_positions: its cache positions in layers that audio rows skip.
        """
        ranges = [text_positions if skips_audio else positions for skips_audio in self._skips_audio]
        return [
            tensor[slot, :, cache_positions]
            for tensors in (self.keys, self.values)
            for tensor, cache_positions in zip(tensors, ranges, strict=True)
        ]
