"""Prompts of the `boson` convention, as `boson_multimodal` writes them.

Each part is tokenized by itself. Audio is `<|audio_bos|><|AUDIO|><|audio_eos|>` in a system or user message, and
`<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>` in an assistant message.
"""

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from higgs_native.errors import PromptError, short_repr
from higgs_native.prompt.conventions.chatml import chat_ids, chat_messages, check_text, control_tags
from higgs_native.prompt.markup import (
    AUDIO_IN,
    AUDIO_OUT,
    BEGIN_OF_TEXT,
    END_OF_MESSAGE,
    END_OF_TURN,
    RECIPIENT,
    SCENE_END,
    SCENE_START,
    header,
)
from higgs_native.prompt.messages import AudioContent, Message, TextContent
from higgs_native.prompt.normalize import clean_text, normalize_text
from higgs_native.prompt.voices import Voice


__all__ = [
    "check_text",
    "clean_text",
    "control_tags",
    "normalize_text",
    "prompt_ids",
    "render",
    "speech_messages",
    "system_messages",
]


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer, force_audio_gen: bool) -> list[int]:
    """Return the ids of a prompt; arguments and errors as for `chatml.chat_ids`."""
    return chat_ids(render(messages), messages, tokenizer, force_audio_gen)


def speech_messages(text: str, voices: Sequence[Voice], scene: str | None) -> list[Message]:
    """Return the conversation that asks for `text` to be spoken; see `prompt.chat.speech_messages`."""
    return chat_messages(text, voices, scene, system_messages)


def render(messages: Sequence[Message]) -> list[str]:
    """Return the texts of a conversation, to be tokenized one by one.

    Raises:
        PromptError: the convention can't express the conversation.
    """
    return list(_parts(messages))


def _parts(messages: Sequence[Message]) -> Iterator[str]:
    next_roles = [*(message.role for message in messages[1:]), None]
    for index, (message, next_role) in enumerate(zip(messages, next_roles, strict=True)):
        yield header(message.role) if index else BEGIN_OF_TEXT + header(message.role)
        if message.recipient:
            if message.role != "assistant":
                raise PromptError(
                    f"recipient of a {message.role} message must be None, got {short_repr(message.recipient)}"
                )
            yield message.recipient + RECIPIENT
        for item in message.contents():
            if isinstance(item, TextContent):
                yield item.text
            elif message.role in ("system", "user"):
                yield AUDIO_IN
            elif message.role == "assistant":
                yield AUDIO_OUT
            else:
                raise PromptError(
                    f"role of a message with audio must be system, user or assistant, got {short_repr(message.role)}"
                )
        yield END_OF_MESSAGE if message.role == next_role == "assistant" else END_OF_TURN


def system_messages(
    system_text: str, scene: str | None, speakers: Sequence[tuple[str, str | AudioContent]]
) -> list[Message]:
    """Return one system message with the scene in it.

    Only recordings split its text, since each part is tokenized by itself.

    Args:
        system_text: the instruction.
        scene: where or how the text is spoken, if it is described.
        speakers: for each, its label and its description or recording.
    """
    if not scene and not speakers:
        return [Message("system", system_text)]
    contents: list[str | AudioContent] = []
    text = f"{system_text}\n\n{SCENE_START}{scene or ''}"
    for index, (label, voice) in enumerate(speakers):
        line_break = "\n" if index else "\n\n" if scene else ""
        if isinstance(voice, AudioContent):
            contents += [f"{text}{line_break}{label} ", voice]
            text = ""
        else:
            text += f"{line_break}{label} {voice}"
    return [Message("system", [*contents, text + SCENE_END])]
