"""The prompts of consecutive chunks: the opening, spoken chunks as context, and the text to speak."""

from collections import deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch

from higgs_native.errors import PromptError
from higgs_native.generation.delay_pattern import num_delayed
from higgs_native.long_form.chunking import TextChunk
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.chat import build_prompt, spoken_turns
from higgs_native.prompt.messages import Message


@dataclass(frozen=True, eq=False)
class _Turn:
    text: TextChunk
    codes: torch.Tensor


class Conversation:
    """Writes the prompt of each chunk, with spoken chunks as its context.

    The context keeps a voice the same. It holds the last chunks and, if no recording shows the speaker's voice, that
    speaker's first one.

    Args:
        engine: speaks the chunks; its cache limits the context.
        opening: messages that begin every prompt, with the codes of all recordings.
        recorded_tags: of the speakers whose voice a recording in `opening` shows.
        context_chunks: maximum number of last chunks in a prompt.
        spell: writes a text as the voice reads it (see `HiggsAudio.spelling`).
    """

    def __init__(
        self,
        engine: HiggsAudio,
        opening: Sequence[Message],
        recorded_tags: AbstractSet[str],
        context_chunks: int,
        spell: Callable[[str], str],
    ) -> None:
        self._engine = engine
        self._opening = opening
        self._recorded_tags = recorded_tags
        self._spell = spell
        self._first: dict[str, _Turn] = {}  # by speaker tag
        self._last: deque[_Turn] = deque(maxlen=context_chunks)

    def has_voice(self, tag: str) -> bool:
        """Return whether a recording or a spoken chunk shows a speaker's voice."""
        return tag in self._recorded_tags or tag in self._first

    def add(self, text: TextChunk, codes: torch.Tensor) -> None:
        """Let the context of later chunks contain a chunk, given the codes [codebooks, frames] of its speech."""
        turn = _Turn(text, codes)
        self._first.setdefault(text.tag, turn)
        self._last.append(turn)

    def messages(self, text: TextChunk, max_new_tokens: int) -> list[Message]:
        """Return the prompt of a chunk, with as much context as fits the cache.

        The oldest chunk is left out first, and last the chunk that shows the speaker's voice.

        Args:
            text: to speak.
            max_new_tokens: the limit of its generation, for which the cache must have room too.

        Raises:
            PromptError: the prompt does not fit even without context.
        """
        context = list(self._last)
        voice_chunk = None if text.tag in self._recorded_tags else self._first.get(text.tag)
        if voice_chunk is not None and voice_chunk not in context:
            context.insert(0, voice_chunk)
        limit = self._engine.model.max_cache_length
        while True:
            turns = [(self._spell(chunk.text.prompt), chunk.codes) for chunk in context]
            messages = [*self._opening, *spoken_turns(turns), Message("user", self._spell(text.prompt))]
            needed = self._prompt_length(messages) + max_new_tokens
            if needed <= limit:
                return messages
            if not context:
                raise PromptError(
                    f"max_cache_length must be at least {needed} for a chunk with its references, got {limit}; give "
                    "shorter references or smaller chunk_seconds"
                )
            context.remove(next((chunk for chunk in context if chunk is not voice_chunk), context[0]))

    def _prompt_length(self, messages: Sequence[Message]) -> int:
        """Return the number of cache positions that a prompt takes."""
        engine = self._engine
        prompt = build_prompt(messages, engine.tokenizer, engine.convention, force_audio_gen=True)
        # A placeholder becomes its delayed frames.
        codes = [item.codes for item in prompt.audio if item.codes is not None]
        lengths = (num_delayed(part.shape[1], engine.model.config, engine.convention) for part in codes)
        return prompt.input_ids.shape[1] + sum(length - 1 for length in lengths)
