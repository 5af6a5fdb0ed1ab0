"""The rows of one forward pass, and what it writes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from typing_extensions import Self


@dataclass
class Batch:
    """The positions that one forward pass computes, of any number of sequences: text rows first, then audio rows.

    Attributes:
        token_ids: [T], int32.
        codes: [A, codebooks], int32, delayed.
        slots: [T + A], int32: the sequence of the cache.
        positions: [T + A], int32: the position in that sequence.
        text_positions: [T], int32: how many text rows come before it in its sequence. Layers that audio passes by keep
            their cache at these places.
    """

    token_ids: torch.Tensor
    codes: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor
    text_positions: torch.Tensor

    @classmethod
    def text_then_audio(
        cls, sequences: Sequence[tuple[Sequence[int], torch.Tensor]], device: str | torch.device = "cpu"
    ) -> Self:
        """Whole sequences, each of token ids and the delayed frames [codebooks, N] that follow them, in slots 0, 1,
        ...
        """

        def int32(values: Iterable[int]) -> torch.Tensor:
            return torch.tensor(list(values), dtype=torch.int32, device=device)

        counts = [(len(ids), frames.shape[1]) for ids, frames in sequences]
        text = [(slot, place) for slot, (text, _) in enumerate(counts) for place in range(text)]
        audio = [(slot, text + place) for slot, (text, audio) in enumerate(counts) for place in range(audio)]
        return cls(
            token_ids=int32(token for ids, _ in sequences for token in ids),
            codes=torch.cat([frames.T for _, frames in sequences]).to(dtype=torch.int32, device=device).contiguous(),
            slots=int32(slot for slot, _ in text + audio),
            positions=int32(position for _, position in text + audio),
            text_positions=int32(position for _, position in text),
        )


@dataclass
class Buffers:
    """What a forward pass of some rows writes.

    Attributes:
        states: [rows, hidden], float32: the result.
        query, attended: [rows, query heads * head_dim], float32.
    """

    states: torch.Tensor
    query: torch.Tensor
    attended: torch.Tensor
