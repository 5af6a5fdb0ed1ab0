"""The rows of one forward pass, and the tensors that it writes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from typing_extensions import Self

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.model.low_rank import RowAdapters


@dataclass
class Batch:
    """The rows that one forward pass computes, of any number of sequences: T text rows, then A audio rows.

    Attributes:
        token_ids: [T], int32.
        codes: [A, codebooks], int32, delayed.
        slots: [T + A], int32: the sequence of the cache.
        positions: [T + A], int32: the position in the sequence, which is also the cache position.
        text_positions: [T], int32: the number of text rows before it in its sequence, which is the cache position in
            layers that audio rows skip.
        adapters: of the rows; None if no row has one.
        kept_rows: the rows whose states are wanted after the last layer; None: all.
    """

    token_ids: torch.Tensor
    codes: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor
    text_positions: torch.Tensor
    adapters: RowAdapters | None = None
    kept_rows: range | None = None

    @classmethod
    def text_then_audio(
        cls, sequences: Sequence[tuple[Sequence[int], torch.Tensor]], device: str | torch.device = "cpu"
    ) -> Self:
        """Return the rows of whole sequences, in slots 0, 1, ...

        Args:
            sequences: token ids, and the delayed frames [codebooks, N] that follow them, of each sequence.
            device: the device of the rows.
        """

        def int32(values: Iterable[int]) -> torch.Tensor:
            return torch.tensor(list(values), dtype=torch.int32, device=device)

        counts = [(len(ids), frames.shape[1]) for ids, frames in sequences]
        text = [(slot, position) for slot, (num_text, _) in enumerate(counts) for position in range(num_text)]
        audio = [
            (slot, num_text + frame)
            for slot, (num_text, num_frames) in enumerate(counts)
            for frame in range(num_frames)
        ]
        return cls(
            token_ids=int32(token for ids, _ in sequences for token in ids),
            codes=torch.cat([frames.T for _, frames in sequences]).to(dtype=torch.int32, device=device).contiguous(),
            slots=int32(slot for slot, _ in text + audio),
            positions=int32(position for _, position in text + audio),
            text_positions=int32(position for _, position in text),
        )


@dataclass
class Buffers:
    """The tensors that a forward pass writes.

    Attributes:
        states: [rows, hidden], float32: the result.
        query, attended: [rows, query heads * head_dim], float32.
    """

    states: torch.Tensor
    query: torch.Tensor
    attended: torch.Tensor

    @classmethod
    def allocate(cls, config: HiggsAudioConfig, num_rows: int, device: torch.device) -> Self:
        """Allocate the tensors of a pass over `num_rows` rows."""
        width = config.num_attention_heads * config.head_dim
        widths = config.hidden_size, width, width
        return cls(*(torch.empty(num_rows, width, dtype=torch.float32, device=device) for width in widths))
