"""Conversations, and the prompts that they become.

A prompt is token ids with one placeholder for each reference recording, and the recordings in the order of their
placeholders. It exists in two layouts, those of the two public implementations:

- `boson`: every part is tokenised by itself; audio stands as `<|audio_bos|><|AUDIO|><|audio_eos|>` in a system or user
  message, as `<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>` in an assistant message.
- `transformers`: the text is rendered as by the chat template of its conversion script, then tokenised as a whole: a
  system message first, text trimmed, a message of role `scene` folded into the system message, and audio always as
  `<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>`. The template passes over what it has no place for (audio in a system
  or user message, text in an assistant message, a second text in the system message); here that is an error.

Special tokens written in a text become special tokens, as in both implementations: system messages need them. Texts of
end users go through `check_plain_text` first.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from higgs_native.errors import PromptError
from higgs_native.prompt.messages import AudioContent, ChatMLSample, Content, Message, TextContent, check_unicode
from higgs_native.prompt.voices import Voice


LAYOUTS = ("boson", "transformers")

SYSTEM_TEXT = "Generate audio following instruction."
MULTIPLE_SPEAKERS_SYSTEM_TEXT = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)

SPEAKER_TAG = re.compile(r"\[SPEAKER\d+\]")
"""Stands before the turns of a speaker."""

_AUDIO_IN = "<|audio_bos|><|AUDIO|><|audio_eos|>"
_AUDIO_OUT = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>"
_PLACEHOLDERS = ("<|AUDIO|>", "<|AUDIO_OUT|>")
_REPLY = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_FORCED_AUDIO = "<|audio_out_bos|>"
# Without these in the tokenizer a prompt would turn into plain text.
_STRUCTURE = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|recipient|>",
    "<|audio_bos|>",
    "<|audio_out_bos|>",
    "<|audio_eos|>",
    *_PLACEHOLDERS,
)


@dataclass(frozen=True)
class Prompt:
    """What the model reads.

    Attributes:
        input_ids: [1, S], int64, one placeholder id for each recording.
        audio: the recordings, in the order of their placeholders.
    """

    input_ids: torch.Tensor
    audio: list[AudioContent]


def build_prompt(
    conversation: ChatMLSample | Sequence[Message],
    tokenizer: Tokenizer,
    layout: str = "boson",
    force_audio_gen: bool = False,
) -> Prompt:
    """Turn a conversation into a prompt that ends where the assistant's reply begins.

    Args:
        conversation: the messages.
        tokenizer: holds the special tokens.
        layout: `boson` or `transformers` (see the module's text).
        force_audio_gen: end in `<|audio_out_bos|>`, so that audio comes next and not text. The transformers
            implementation always does.

    Raises:
        PromptError: the conversation is none, or has no place in the layout, or the tokenizer lacks a special token.
    """
    messages = conversation.messages if isinstance(conversation, ChatMLSample) else conversation
    if not isinstance(messages, Sequence):
        raise PromptError(
            f"the conversation is a {type(messages).__name__}; expected a list of Message(role, content)"
        )
    if not messages:
        raise PromptError("the conversation is empty; expected at least one message")
    for message in messages:
        if not isinstance(message, Message):
            raise PromptError(f"the conversation holds a {type(message).__name__}; expected Message(role, content)")
    for token in _STRUCTURE:
        if tokenizer.token_to_id(token) is None:
            raise PromptError(f"the tokenizer has no token {token}; expected the tokenizer of Higgs Audio V2")
    if layout == "boson":
        parts = list(_boson_parts(messages))
    elif layout == "transformers":
        parts = ["".join(_transformers_parts(messages))]
    else:
        raise PromptError(f"layout is {layout!r}; expected one of {LAYOUTS}")
    parts.append(_REPLY + _FORCED_AUDIO * force_audio_gen)
    ids = [token_id for part in parts for token_id in tokenizer.encode(part, add_special_tokens=False).ids]
    audio = [item for message in messages for item in message.contents() if isinstance(item, AudioContent)]
    placeholders = sum(ids.count(tokenizer.token_to_id(token)) for token in _PLACEHOLDERS)
    if placeholders != len(audio):
        raise PromptError(
            f"the prompt has {placeholders} audio placeholders for {len(audio)} recordings; "
            f"expected no {' or '.join(_PLACEHOLDERS)} in its texts"
        )
    return Prompt(torch.tensor([ids], dtype=torch.int64), audio)


def _boson_parts(messages: list[Message]) -> Iterable[str]:
    """The texts that are tokenised one by one."""
    following = [message.role for message in messages[1:]] + [None]
    for index, (message, next_role) in enumerate(zip(messages, following, strict=True)):
        header = f"<|start_header_id|>{message.role}<|end_header_id|>\n\n"
        yield header if index else "<|begin_of_text|>" + header
        if message.recipient:
            if message.role != "assistant":
                raise PromptError(f"a {message.role} message has a recipient; only assistant messages may have one")
            yield f"{message.recipient}<|recipient|>"
        for item in message.contents():
            if isinstance(item, TextContent):
                yield item.text
            elif message.role in ("system", "user"):
                yield _AUDIO_IN
            elif message.role == "assistant":
                yield _AUDIO_OUT
            else:
                raise PromptError(
                    f"a {message.role} message holds audio; expected a system, user or assistant message"
                )
        yield "<|eom_id|>" if message.role == next_role == "assistant" else "<|eot_id|>"


def _transformers_parts(messages: list[Message]) -> Iterable[str]:
    """The pieces of the rendered text."""
    if messages[0].role != "system":
        raise PromptError(f"the first message is of role {messages[0].role!r}; the transformers layout wants 'system'")
    for index, message in enumerate(messages):
        if message.recipient:
            raise PromptError("a message has a recipient; the transformers layout knows none")
        items = message.contents()
        is_text = [isinstance(item, TextContent) for item in items]
        if message.role == "scene":
            if index != 1:
                raise PromptError("a scene stands elsewhere than after the system message")
            yield f"\n\n<|scene_desc_start|>\n{_scene(items)}\n<|scene_desc_end|><|eot_id|>"
            continue
        header = f"<|start_header_id|>{message.role}<|end_header_id|>\n\n"
        if message.role == "assistant":
            if is_text != [False]:
                raise PromptError("the transformers layout wants exactly one recording in an assistant message")
            yield header + _AUDIO_OUT
        elif not all(is_text) or (message.role == "system" and len(items) != 1):
            raise PromptError(
                "the transformers layout wants exactly one text in a system message and only text in a user message; "
                "recordings stand in a scene or in an assistant message"
            )
        else:
            yield ("" if index else "<|begin_of_text|>") + header + "".join(item.text.strip() for item in items)
        if index or len(messages) == 1 or messages[1].role != "scene":
            yield "<|eot_id|>"


def _scene(items: list[Content]) -> str:
    """A scene's lines: an empty one after the first text, a recording on the line of the text before it."""
    lines = ""
    for index, item in enumerate(items):
        last = index == len(items) - 1
        if isinstance(item, AudioContent):
            lines += " " + _AUDIO_OUT + ("" if last else "\n")
        else:
            lines += item.text.strip()
            if not last and index == 0:
                lines += "\n\n"
            elif not last and isinstance(items[index + 1], TextContent):
                lines += "\n"
    return lines


def speech_messages(
    text: str, voices: Sequence[Voice] = (), scene: str | None = None, layout: str = "boson"
) -> list[Message]:
    """Return the conversation that asks for `text` to be spoken.

    Voices whose recording comes with its words are shown as earlier turns: the words from the user, the recording from
    the assistant. Where one of them is only described, or a recording comes without words, all stand in the scene, as
    `SPEAKER0: ...`, `SPEAKER1: ...`. Without voices, a text of several `[SPEAKER*]` tags gets alternating feminine and
    masculine speakers; any other text gets the voice that the model chooses.

    Args:
        text: what to say (normalized: see `prompt.normalize`), with `[SPEAKER0]`, `[SPEAKER1]`, ... before the turns
            of several speakers.
        voices: the voices of SPEAKER0, SPEAKER1, ...
        scene: where it is spoken, or how, for example `Audio is recorded from a quiet room.`
        layout: `boson` or `transformers`.
    """
    system_text, turns, speakers = SYSTEM_TEXT, [], []
    names = sorted({tag[1:-1] for tag in SPEAKER_TAG.findall(text)}, key=lambda name: int(name[len("SPEAKER") :]))
    if not voices and len(names) > 1:
        system_text = MULTIPLE_SPEAKERS_SYSTEM_TEXT
        for index, name in enumerate(names):
            speakers.append((f"{name}:", ("feminine", "masculine")[index % 2]))
    elif all(voice.reference_text is not None for voice in voices):
        for index, voice in enumerate(voices):
            tag = f"[SPEAKER{index}] " if len(voices) > 1 else ""
            turns += [Message("user", tag + voice.reference_text), Message("assistant", _recording(voice))]
    else:
        for index, voice in enumerate(voices):
            speakers.append((f"SPEAKER{index}:", _recording(voice) if voice.profile is None else voice.profile))
    system = _boson_system if layout == "boson" else _transformers_system
    return [*system(system_text, scene, speakers), *turns, Message("user", text)]


def spoken_turns(chunks: Iterable[tuple[str, torch.Tensor]]) -> list[Message]:
    """Return earlier chunks of a text as turns of the conversation: the context in which the next one is spoken.

    Args:
        chunks: texts, and the codes [codebooks, frames] that were generated for them.
    """
    return [
        message
        for text, codes in chunks
        for message in (Message("user", text), Message("assistant", AudioContent(codes=codes)))
    ]


def _recording(voice: Voice) -> AudioContent:
    if isinstance(voice.reference_audio, str | os.PathLike):
        return AudioContent(audio_url=os.fspath(voice.reference_audio))
    return AudioContent(raw_audio=voice.reference_audio)


def _boson_system(
    system_text: str, scene: str | None, speakers: list[tuple[str, str | AudioContent]]
) -> list[Message]:
    """One system message; its text is cut only by recordings, since each piece is tokenised by itself."""
    if not scene and not speakers:
        return [Message("system", system_text)]
    contents: list[str | AudioContent] = [f"{system_text}\n\n<|scene_desc_start|>\n{scene or ''}"]
    for index, (name, sound) in enumerate(speakers):
        line_break = "\n" if index else "\n\n" if scene else ""
        if isinstance(sound, AudioContent):
            contents[-1] += f"{line_break}{name} "
            contents += [sound, ""]
        else:
            contents[-1] += f"{line_break}{name} {sound}"
    contents[-1] += "\n<|scene_desc_end|>"
    return [Message("system", contents)]


def _transformers_system(
    system_text: str, scene: str | None, speakers: list[tuple[str, str | AudioContent]]
) -> list[Message]:
    """A system message and a scene; without a scene's text the first line is a speaker's, and an empty one follows."""
    contents: list[str | AudioContent] = [scene] if scene else []
    for name, sound in speakers:
        contents += [name, sound] if isinstance(sound, AudioContent) else [f"{name} {sound}"]
    return [Message("system", system_text), *([Message("scene", contents)] if contents else [])]


def check_plain_text(text: str, tokenizer: Tokenizer, name: str = "text") -> None:
    """Refuse a text in which a special token is written out: tokenised, it would change the prompt's structure.

    Args:
        text: what an end user wrote.
        tokenizer: knows its special tokens.
        name: what the text is, for the message.

    Raises:
        PromptError: the text holds a special token, or is no str, or no valid Unicode.
    """
    check_unicode(text, name)
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.special and token.content in text:
            raise PromptError(f"the {name} holds the special token {token.content}; expected plain text")
