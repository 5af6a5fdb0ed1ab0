"""The rows of a step, gathered from the sequences that it computes."""

from collections.abc import Sequence

import torch

from higgs_native.generation.sequence import Frame, SequenceState
from higgs_native.model.batch import Batch
from higgs_native.model.low_rank import PackedAdapter, RowAdapters
from higgs_native.model.transformer import LanguageModel


def pending_rows(model: LanguageModel, pieces: Sequence[tuple[SequenceState, int]]) -> tuple[Batch, list[int]]:
    """Gather the next rows of each sequence into a batch, text rows first.

    Args:
        model: the language model.
        pieces: sequences, and how many of their pending rows to take.

    Returns:
        The batch, and for each sequence the index of its last row in the batch; -1 if it has more pending rows.
    """
    ids: list[int] = []
    frames: list[Frame] = []
    text_rows: list[tuple[int, int, int]] = []
    audio_rows: list[tuple[int, int]] = []
    text_adapters: list[PackedAdapter | None] = []
    audio_adapters: list[PackedAdapter | None] = []
    last: list[tuple[bool, int]] = []
    for sequence, count in pieces:
        for position in range(sequence.computed, sequence.computed + count):
            row = sequence.rows[position]
            if isinstance(row, int):
                text_rows.append((sequence.slot, position, sequence.text_computed))
                ids.append(row)
                text_adapters.append(sequence.adapter)
                sequence.text_computed += 1
            else:
                audio_rows.append((sequence.slot, position))
                frames.append(row)
                audio_adapters.append(sequence.adapter)
        is_text = isinstance(row, int)
        is_last = sequence.computed + count == len(sequence.rows)
        last.append((is_text, (len(ids if is_text else frames) - 1) if is_last else -1))

    def int32(values: Sequence[int] | Sequence[Frame]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=model.device)

    rows = [row[:2] for row in text_rows] + audio_rows
    batch = Batch(
        token_ids=int32(ids),
        codes=int32(frames).view(-1, model.config.num_codebooks),
        slots=int32([slot for slot, _ in rows]),
        positions=int32([position for _, position in rows]),
        text_positions=int32([text_position for _, _, text_position in text_rows]),
        adapters=RowAdapters.of(text_adapters + audio_adapters, model.device),
    )
    return batch, [index if is_text or index < 0 else len(ids) + index for is_text, index in last]
