"""The messages of a conversation: texts and recordings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from higgs_native.errors import PromptError, short_repr
from higgs_native.prompt.normalize import check_unicode


@dataclass
class TextContent:
    """Text in a message."""

    text: str
    type: str = "text"


@dataclass
class AudioContent:
    """A recording in a message.

    Attributes:
        audio_url: an audio file, or a `data:` URL; None, "" or "placeholder" if `raw_audio` holds the recording.
        raw_audio: a recording in any form that `Recording.read` takes. A str holds base64, and is never a path.
        offset: begin of the part that is used, in seconds.
        duration: maximum length of that part, in seconds; None for all.
        row_id: unused; data sets number their rows with it.
        codes: the recording's codes [codebooks, frames], integers, if they are known; the recording itself is then not
            read.
    """

    audio_url: str | None = None
    raw_audio: Any = field(default=None, repr=False)
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
        role: `system`, `user` or `assistant`; in the transformers convention also `scene`.
        content: a text, a recording, or a list of both.
        recipient: addressee of an assistant message (boson convention only).
    """

    role: str
    content: str | Content | Sequence[str | Content]
    recipient: str | None = None

    def contents(self) -> list[Content]:
        """Return the content as a list.

        Raises:
            PromptError: an item is neither text nor audio, or a text is no str or not valid Unicode.
        """
        given = self.content if isinstance(self.content, list | tuple) else [self.content]
        contents: list[Content] = []
        for item in given:
            content = TextContent(item) if isinstance(item, str) else item
            if not isinstance(content, TextContent | AudioContent):
                expected = "str, TextContent or AudioContent"
                raise PromptError(f"content of a {self.role} message must be {expected}, got {short_repr(content)}")
            if isinstance(content, TextContent):
                check_unicode(content.text, f"text of a {self.role} message")
            contents.append(content)
        return contents


@dataclass
class ChatMLSample:
    """A conversation whose reply is generated.

    `start_index`, `misc` and `speaker` are kept, but unused.
    """

    messages: list[Message]
    start_index: int | None = None
    misc: dict | None = None
    speaker: str | None = None
