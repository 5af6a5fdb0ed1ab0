"""The rows of a step, gathered from the sequences that it computes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from higgs_native.generation.sequence import Row, SequenceState
from higgs_native.model.batch import Batch
from higgs_native.model.low_rank import RowAdapters
from higgs_native.model.transformer import LanguageModel


class _PendingRow(NamedTuple):
    """A row, its sequence, its position there, and the number of text rows before it."""

    row: Row
    sequence: SequenceState
    position: int
    text_position: int

    @property
    def is_drawn(self) -> bool:
        """Whether an item is drawn from it: it is the last row of its sequence."""
        return self.position + 1 == len(self.sequence.rows)


def pending_rows(model: LanguageModel, pieces: Sequence[tuple[SequenceState, int]]) -> tuple[Batch, list[int]]:
    """Gather the next rows of each sequence into a batch, text rows first.

    The rows that items are drawn from are the last text rows and the first audio rows. The batch keeps this one range.

    Args:
        model: the language model.
        pieces: sequences, and how many of their pending rows to take.

    Returns:
        The batch, and for each sequence the index of its last row in the batch; -1 if it has more pending rows.
    """
    text: list[_PendingRow] = []
    audio: list[_PendingRow] = []
    for sequence, count in pieces:
        for position in range(sequence.computed, sequence.computed + count):
            pending = _PendingRow(sequence.rows[position], sequence, position, sequence.text_computed)
            if isinstance(pending.row, int):
                text.append(pending)
                sequence.text_computed += 1
            else:
                audio.append(pending)
    text.sort(key=lambda pending: pending.is_drawn)
    audio.sort(key=lambda pending: not pending.is_drawn)
    rows = text + audio
    drawn = {pending.sequence: index for index, pending in enumerate(rows) if pending.is_drawn}
    first_drawn = min(drawn.values(), default=0)

    def int32(values: Sequence[Row]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=model.device)

    batch = Batch(
        token_ids=int32([pending.row for pending in text]),
        codes=int32([pending.row for pending in audio]).view(-1, model.config.num_codebooks),
        slots=int32([pending.sequence.slot for pending in rows]),
        positions=int32([pending.position for pending in rows]),
        text_positions=int32([pending.text_position for pending in text]),
        adapters=RowAdapters.of([pending.sequence.adapter for pending in rows], model.device),
        kept_rows=range(first_drawn, first_drawn + len(drawn)),
    )
    return batch, [drawn.get(sequence, -1) for sequence, _ in pieces]
