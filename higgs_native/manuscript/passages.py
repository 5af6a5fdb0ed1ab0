"""The passages between a text's pauses and changes of the speed, and the prompt of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from higgs_native.convention import Convention
from higgs_native.manuscript.timing import Passage
from higgs_native.prompt.chat import normalized_text, spoken_turns
from higgs_native.prompt.messages import Message


@dataclass(frozen=True)
class Passages:
    """Passages that are spoken one after the other, in one voice.

    Attributes:
        passages: in order; their texts are normalized.
        opening: messages that begin every prompt.
        needs_context: whether nothing else keeps the voice the same, so that the prompts of later passages hold the
            first one.
        spell: writes a text as the voice reads it.
    """

    passages: Sequence[Passage]
    opening: Sequence[Message]
    needs_context: bool
    spell: Callable[[str], str]

    @classmethod
    def of(
        cls,
        passages: Sequence[Passage],
        opening: Sequence[Message],
        needs_context: bool,
        spell: Callable[[str], str],
        can_read: Callable[[str], bool],
        convention: Convention,
    ) -> "Passages":
        """Normalize the texts as the convention does, and leave out those that can't be read.

        A pause before what is left out is added to the next one.

        Raises:
            PromptError: a text is wrong.
        """
        kept: list[Passage] = []
        pause = 0.0
        for passage in passages:
            text, pause = normalized_text(passage.text, convention), pause + passage.pause
            if can_read(text):
                kept.append(replace(passage, text=text, pause=pause))
                pause = 0.0
        return cls(kept, opening, needs_context, spell)

    def messages(self, index: int, first: torch.Tensor | None) -> list[Message]:
        """Return the prompt of a passage.

        Args:
            index: of the passage.
            first: codes [codebooks, frames] of the first passage; None before they are known.
        """
        context = []
        if index and self.needs_context and first is not None and first.shape[1]:
            context = spoken_turns([(self.spell(self.passages[0].text), first)])
        return [*self.opening, *context, Message("user", self.spell(self.passages[index].text))]


def cut_ends(passages: Sequence[Passage], index: int) -> tuple[bool, bool]:
    """Return whether the silence is cut before a passage, and after it: beside a pause or another passage."""
    return index > 0 or passages[index].pause > 0, index + 1 < len(passages)
