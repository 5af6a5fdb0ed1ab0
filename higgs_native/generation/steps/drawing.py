"""Draws the next frame or text token of each sequence, from the hidden state of its last row."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from higgs_native.generation.conventions.behavior import GenerationMode
from higgs_native.generation.sequence import Row, SequenceState
from higgs_native.generation.steps.sampler import SamplerState
from higgs_native.model.low_rank import RowAdapters
from higgs_native.model.transformer import LanguageModel


class Drawn(NamedTuple):
    """The next item of a sequence.

    Attributes:
        sequence: the sequence.
        item: a frame or a text token; None if its logits can't be drawn from.
        is_active: whether the audio segment goes on after the frame.
        error: the sampler's error, on a CPU. On a GPU, it reports such logits by values below 0.
    """

    sequence: SequenceState
    item: Row | None
    is_active: bool = True
    error: RuntimeError | None = None


def draw(
    model: LanguageModel, sampler: SamplerState, last_rows: Sequence[tuple[SequenceState, int]], states: torch.Tensor
) -> Iterator[Drawn]:
    """Draw for sequences whose rows are all computed.

    Args:
        model: the language model.
        sampler: the sampler of all slots.
        last_rows: sequences, and the index of each one's last row.
        states: [rows, hidden], of all rows of the step.
    """
    by_mode: dict[GenerationMode, list[tuple[SequenceState, int]]] = {mode: [] for mode in GenerationMode}
    for sequence, row in last_rows:
        sequence.steps += 1
        by_mode[sequence.mode].append((sequence, row))
    for sequence, row in by_mode[GenerationMode.AUDIO_INIT]:
        if sequence.output_logits and model.text_head is not None:
            sequence.text_logits.append(model.text_logits(states[row : row + 1], _adapters(model, [sequence]))[0])
        sequence.mode = GenerationMode.AUDIO_IN_PROGRESS
        yield Drawn(sequence, tuple(sampler.begin_segment(sequence.slot).tolist()))
    if audio := by_mode[GenerationMode.AUDIO_IN_PROGRESS]:
        yield from _draw_audio(model, sampler, [sequence for sequence, _ in audio], states[[row for _, row in audio]])
    if text := by_mode[GenerationMode.TEXT]:
        yield from _draw_text(model, sampler, [sequence for sequence, _ in text], states[[row for _, row in text]])


def _draw_audio(
    model: LanguageModel, sampler: SamplerState, sequences: Sequence[SequenceState], states: torch.Tensor
) -> Iterator[Drawn]:
    logits = model.audio_logits(states, adapters=_adapters(model, sequences))
    slots = _int32([sequence.slot for sequence in sequences], model)
    frames = _sampled(lambda rows: sampler.sample_audio_frame(logits[rows], slots[rows]), len(sequences))
    for row, (sequence, frame) in enumerate(zip(sequences, frames, strict=True)):
        if isinstance(frame, RuntimeError):
            yield Drawn(sequence, None, error=frame)
        elif min(frame) < 0:
            yield Drawn(sequence, None)
        else:
            if sequence.output_logits:
                sequence.audio_logits.append(logits[row])
            yield Drawn(sequence, tuple(frame), sampler.is_active(sequence.slot))


def _draw_text(
    model: LanguageModel, sampler: SamplerState, sequences: Sequence[SequenceState], states: torch.Tensor
) -> Iterator[Drawn]:
    logits = model.text_logits(states, _adapters(model, sequences))
    slots = _int32([sequence.slot for sequence in sequences], model)
    steps = _int32([sequence.steps for sequence in sequences], model)
    tokens = _sampled(lambda rows: sampler.sample_text(logits[rows], slots[rows], steps[rows]), len(sequences))
    for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
        if isinstance(token, RuntimeError):
            yield Drawn(sequence, None, error=token)
        elif token < 0:
            yield Drawn(sequence, None)
        else:
            if sequence.output_logits:
                sequence.text_logits.append(logits[row])
            yield Drawn(sequence, token)


def _sampled(sample: Callable[[slice], torch.Tensor], num_rows: int) -> list[Any]:
    """Return what is sampled for each row, or the sampler's error if its logits can't be drawn from."""
    try:
        return sample(slice(None)).tolist()
    except RuntimeError as error:
        if num_rows == 1:
            return [error]
    # The sampler has drawn nothing. Drawing one by one finds the rows at fault, and draws for the others.
    drawn: list[Any] = []
    for row in range(num_rows):
        try:
            drawn += sample(slice(row, row + 1)).tolist()
        except RuntimeError as error:
            drawn.append(error)
    return drawn


def _adapters(model: LanguageModel, sequences: Sequence[SequenceState]) -> RowAdapters | None:
    """Return the adapters of a row of each sequence."""
    return RowAdapters.of([sequence.adapter for sequence in sequences], model.device)


def _int32(values: Sequence[int], model: LanguageModel) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=model.device)
