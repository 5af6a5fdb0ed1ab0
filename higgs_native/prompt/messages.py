"""The messages of a conversation: texts and recordings."""

from dataclasses import dataclass, field
from typing import Any

import torch

from higgs_native.errors import PromptError


@dataclass
class TextContent:
    """Text in a message."""

    text: str
    type: str = "text"


@dataclass
class AudioContent:
    """A recording in a message.

    Attributes:
        audio_url: an audio file; None, "" or "placeholder" where `raw_audio` holds the recording.
        raw_audio: an audio file's bytes in base64 (white space does no harm), or `(samples, sampling rate in Hz)`.
        offset: where the recording is taken up, in seconds.
        duration: how much of it is taken, in seconds; None: all.
        row_id: not used; datasets number their rows with it.
        codes: what the audio tokenizer makes of it, [codebooks, frames], integers, where this is known already: the
            recording itself is then not read.
    """

    audio_url: str | None = None
    raw_audio: Any = None
    offset: float | None = None
    duration: float | None = None
    row_id: int | None = None
    type: str = "audio"
    codes: torch.Tensor | None = field(default=None, repr=False, compare=False)


Content = TextContent | AudioContent


@dataclass
class Message:
    """One turn of a conversation.

    Attributes:
        role: `system`, `user` or `assistant`; in the transformers layout also `scene`.
        content: a text, a recording, or a list of both.
        recipient: whom an assistant message is for (boson layout).
    """

    role: str
    content: str | Content | list[str | Content]
    recipient: str | None = None

    def contents(self) -> list[Content]:
        """The content as a list.

        Raises:
            PromptError: something is neither text nor audio, or a text is no str, or not valid Unicode.
        """
        items = self.content if isinstance(self.content, list | tuple) else [self.content]
        items = [TextContent(item) if isinstance(item, str) else item for item in items]
        for item in items:
            if not isinstance(item, TextContent | AudioContent):
                raise PromptError(
                    f"a {self.role} message holds an item of type {type(item).__name__}; "
                    "expected str, TextContent or AudioContent"
                )
            if isinstance(item, TextContent):
                check_unicode(item.text, f"text of a {self.role} message")
        return items


@dataclass
class ChatMLSample:
    """A conversation; the reply to it is what will be generated.

    `start_index`, `misc` and `speaker` are carried along and not used.
    """

    messages: list[Message]
    start_index: int | None = None
    misc: dict | None = None
    speaker: str | None = None


def check_unicode(text: str, name: str) -> None:
    """Raise PromptError where a text is no str, or not valid Unicode."""
    if not isinstance(text, str):
        raise PromptError(f"the {name} is a {type(text).__name__}; expected a str")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"the {name} is no valid Unicode; expected UTF-8 text") from None
