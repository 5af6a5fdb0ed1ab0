"""Prompts of the `transformers` convention, as the chat template of its conversion script renders them.

The text is tokenized as a whole. A system message comes first, texts are stripped, and a message of role `scene` is
folded into the system message. Audio is always `<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>`. The template drops what
it can't render: audio in a system or user message, text in an assistant message, a second text in the system message.
Here these are errors.
"""

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from higgs_native.errors import PromptError, short_repr
from higgs_native.prompt.conventions.chatml import chat_ids, chat_messages, check_text, control_tags
from higgs_native.prompt.markup import AUDIO_OUT, BEGIN_OF_TEXT, END_OF_TURN, SCENE_END, SCENE_START, header
from higgs_native.prompt.messages import AudioContent, Content, Message, TextContent
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
    """Return the text of a conversation, to be tokenized as a whole.

    Raises:
        PromptError: the convention can't express the conversation.
    """
    return ["".join(_parts(messages))]


def _parts(messages: Sequence[Message]) -> Iterator[str]:
    if messages[0].role != "system":
        raise PromptError(f"role of the first message must be 'system', got {short_repr(messages[0].role)}")
    for index, message in enumerate(messages):
        if message.recipient:
            raise PromptError(
                f"recipient must be None in the transformers convention, got {short_repr(message.recipient)}"
            )
        items = message.contents()
        if message.role == "scene":
            if index != 1:
                raise PromptError(f"a scene must be message 1, after the system message, got message {index}")
            yield f"\n\n{SCENE_START}{_scene_lines(items)}{SCENE_END}{END_OF_TURN}"
            continue
        _check_contents(message.role, items)
        if message.role == "assistant":
            yield header(message.role) + AUDIO_OUT
        else:
            begin = "" if index else BEGIN_OF_TEXT
            yield (
                begin
                + header(message.role)
                + "".join(item.text.strip() for item in items if isinstance(item, TextContent))
            )
        if index or len(messages) == 1 or messages[1].role != "scene":
            yield END_OF_TURN


def _check_contents(role: str, items: list[Content]) -> None:
    """Raise PromptError if the template would drop an item of a message."""
    kinds = ["text" if isinstance(item, TextContent) else "audio" for item in items]
    if role == "assistant":
        expected, fits = "exactly one recording", kinds == ["audio"]
    elif role == "system":
        expected, fits = "exactly one text", kinds == ["text"]
    else:
        expected, fits = "only text", "audio" not in kinds
    if not fits:
        raise PromptError(
            f"{role} message must hold {expected} in the transformers convention, got {', '.join(kinds) or 'nothing'}"
        )


def _scene_lines(items: list[Content]) -> str:
    """Return the lines of a scene: an empty line after the first text, a recording in the line of its label."""
    lines = ""
    for index, item in enumerate(items):
        last = index == len(items) - 1
        if isinstance(item, AudioContent):
            lines += " " + AUDIO_OUT + ("" if last else "\n")
        else:
            lines += item.text.strip()
            if not last and index == 0:
                lines += "\n\n"
            elif not last and isinstance(items[index + 1], TextContent):
                lines += "\n"
    return lines


def system_messages(
    system_text: str, scene: str | None, speakers: Sequence[tuple[str, str | AudioContent]]
) -> list[Message]:
    """Return a system message and, if there is anything to describe, a scene; arguments as in `boson`.

    The template puts an empty line after the first text of the scene, which without `scene` is a speaker's.
    """
    contents: list[str | AudioContent] = [scene] if scene else []
    for label, voice in speakers:
        contents += [label, voice] if isinstance(voice, AudioContent) else [f"{label} {voice}"]
    return [Message("system", system_text), *([Message("scene", contents)] if contents else [])]
