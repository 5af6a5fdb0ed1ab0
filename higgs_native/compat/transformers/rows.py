"""The rows of a batch while their frames are drawn, and the stopping criteria of transformers that end them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    HiggsAudioV2Config,
    StoppingCriteriaList,
)


class AllRowsStopped(Exception):
    """Raised by a frame's callback when no row needs another frame."""


@dataclass
class _Row:
    """A row of the batch.

    Attributes:
        ids: [1, S], the text ids so far, those of the prompt included.
        frames: the frames so far, [codebooks] each.
        drawn: how many of them the engine has drawn; the others are frames of EOS.
        ended: whether the engine draws no more of it.
        length: its number of frames, once a criterion has ended it.
    """

    ids: torch.Tensor
    frames: list[torch.Tensor] = field(default_factory=list)
    drawn: int = 0
    ended: bool = False
    length: int | None = None


class Rows:
    """Takes the frames of each row as they are drawn, and asks the criteria after each of them.

    Criteria see one row at a time: rows need not be drawn at the same pace.

    Args:
        config: of the model.
        input_ids: [batch, S], the prompts.
        criteria: decide when a row is over.
        max_new_tokens: the maximum number of frames of a row.
        streamer: gets the text ids of the only row, or None.
    """

    def __init__(
        self,
        config: HiggsAudioV2Config,
        input_ids: torch.Tensor,
        criteria: StoppingCriteriaList,
        max_new_tokens: int,
        streamer: Any,
    ) -> None:
        self._config = config
        self._criteria = criteria
        self._max_new_tokens = max_new_tokens
        self._streamer = streamer
        self._rows = [_Row(ids) for ids in input_ids.split(1)]
        self._eos = torch.full((config.num_codebooks,), config.audio_stream_eos_id, dtype=torch.int64, device="cpu")
        # With a criterion that knows EOS, transformers fills rows that are over. Without, they go on with the others.
        self._fills = any(hasattr(criterion, "eos_token_id") for criterion in criteria)

    def on_frame(self, index: int) -> Callable[[torch.Tensor], None]:
        """Return the callback for the frames of a row, which raises AllRowsStopped."""
        row = self._rows[index]

        def take(frame: torch.Tensor) -> None:
            row.drawn += 1
            row.ended = row.drawn == self._max_new_tokens or bool((frame == self._eos).all())
            self._take(row, frame)
            for other in self._rows:
                if other.ended:
                    self._fill(other, len(row.frames))
            if self._needs_no_more() and not all(row.ended for row in self._rows):
                raise AllRowsStopped

        return take

    def drawn(self) -> list[int]:
        """Return how many frames the engine has drawn of each row."""
        return [row.drawn for row in self._rows]

    def finish(self) -> list[torch.Tensor]:
        """Return the frames [frames, codebooks] of each row, once the engine draws no more."""
        for row in self._rows:
            self._fill(row, self._max_new_tokens)
        return [torch.stack(row.frames[: row.length if self._fills else self._steps()]) for row in self._rows]

    def _fill(self, row: _Row, count: int) -> None:
        """Go on with frames of EOS, up to `count`, in a row that the engine ended before a criterion did."""
        while row.length is None and len(row.frames) < count:
            self._take(row, self._eos)

    def _take(self, row: _Row, frame: torch.Tensor) -> None:
        row.frames.append(frame)
        if row.length is not None:
            return
        codes = frame[None].to(row.ids.device)
        row.ids = torch.cat([row.ids, next_ids(self._config, codes, row.ids[:, -1])[:, None]], dim=1)
        if self._streamer is not None:
            self._streamer.put(row.ids[:, -1].cpu())
        if bool(self._criteria(row.ids, None).all()) or len(row.frames) == self._max_new_tokens:
            row.length = len(row.frames)

    def _needs_no_more(self) -> bool:
        if any(row.length is None for row in self._rows):
            return False
        return self._fills or all(row.ended or row.drawn >= self._steps() for row in self._rows)

    def _steps(self) -> int:
        """The steps of the batch, once all rows have a length."""
        return max(row.length for row in self._rows if row.length is not None)


def next_ids(config: HiggsAudioV2Config, frames: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return the text ids [batch] that stand for frames [batch, codebooks], after the ids `last` [batch]."""
    is_eos = frames == config.audio_stream_eos_id
    ids = torch.full_like(last, config.audio_token_id)
    ids[is_eos.any(dim=1) | (last == config.audio_delay_token_id)] = config.audio_delay_token_id
    if config.eos_token_id is not None:
        ids[is_eos.all(dim=1)] = config.eos_token_id
    return ids
