"""Settings of long speech. The help of `higgs-native read` shows them, so this module imports nothing that is slow."""

from dataclasses import dataclass, fields
from typing import Literal

from higgs_native.errors import ParameterError
from higgs_native.utils.checks import check_number


CHUNK_SECONDS = 20.0
CONTEXT_CHUNKS = 2
EMBEDDED_VOICE_CHUNK_SECONDS = 10.0
"""The embedded voice was trained on one or two sentences of up to 20 seconds, most of them shorter than 8, after one
recording at most. Its chunks hold one sentence at most."""
MAX_RETRIES = 3
PARALLEL_CHUNKS = 8
"""Chunks without context that are spoken side by side. Each adds a row to a step, which reads the weights once."""

Boundary = Literal["chapter", "paragraph", "turn", "sentence", "word"]
"""The kind of text unit that begins with a chunk."""

_MAX_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Pauses:
    """The silence before a chunk, in seconds, by its boundary; before a `word` there is none.

    The speech itself has up to `joining.EDGE_SECONDS` of silence at each end.

    Raises:
        ParameterError: a pause is negative or longer than a minute.
    """

    paragraph: float = 0.7
    turn: float = 0.4
    sentence: float = 0.25
    chapter: float = 1.5

    def __post_init__(self) -> None:
        for field in fields(self):
            seconds = getattr(self, field.name)
            check_number(f"{field.name}_pause", seconds)
            if not 0 <= seconds <= _MAX_PAUSE_SECONDS:
                raise ParameterError(
                    f"{field.name}_pause must be between 0 and {_MAX_PAUSE_SECONDS:g} seconds, got {seconds}"
                )

    def before(self, boundary: Boundary) -> float:
        """Return the pause before what begins at a boundary, in seconds."""
        return 0.0 if boundary == "word" else getattr(self, boundary)
