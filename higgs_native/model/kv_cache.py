"""The static cache of keys and values."""

import torch

from higgs_native.model.config import HiggsAudioConfig


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
        self._skips_audio = [config.skips_audio(layer) for layer in range(config.num_hidden_layers)]

    def places(self, slot: int, positions: slice, text_positions: slice) -> list[torch.Tensor]:
        """Where a run of positions of a sequence stands: views [KV heads, positions, head_dim], keys and values.

        Args:
            slot: the sequence.
            positions: the run.
            text_positions: the places of its text rows in the layers that audio rows pass by.
        """
        runs = [text_positions if skips_audio else positions for skips_audio in self._skips_audio]
        return [
            tensor[slot, :, run]
            for tensors in (self.keys, self.values)
            for tensor, run in zip(tensors, runs, strict=True)
        ]
