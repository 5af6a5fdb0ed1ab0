"""Conversations, and their rendering to prompts.

A prompt is token ids with one placeholder per recording, and the recordings in the order of their placeholders. How it
is written depends on the convention: see `prompt.boson` and `prompt.transformers`.

Special tokens written in a text become special tokens, as in both implementations, since system messages need them.
Texts of end users go through `check_plain_text` first.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from higgs_native.convention import Convention
from higgs_native.errors import PromptError, short_repr
from higgs_native.prompt import boson, transformers
from higgs_native.prompt.markup import AUDIO_OUT_BOS, AUDIO_PLACEHOLDERS, REQUIRED_TOKENS, SPEAKER_TAG, header
from higgs_native.prompt.messages import AudioContent, ChatMLSample, Message, check_unicode
from higgs_native.prompt.voices import Voice
from higgs_native.utils.checks import check_flag, check_instance, check_string


SYSTEM_TEXT = "Generate audio following instruction."
MULTIPLE_SPEAKERS_SYSTEM_TEXT = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)

# All that depends on the convention: `render` and `system_messages` of each module.
_CONVENTIONS = {Convention.BOSON: boson, Convention.TRANSFORMERS: transformers}


@dataclass(frozen=True)
class Prompt:
    """The input of the model.

    Attributes:
        input_ids: [1, S], int64, one placeholder id per recording.
        audio: the recordings, in the order of their placeholders.
    """

    input_ids: torch.Tensor
    audio: list[AudioContent]


def build_prompt(
    conversation: ChatMLSample | Sequence[Message],
    tokenizer: Tokenizer,
    convention: Convention | str = Convention.BOSON,
    force_audio_gen: bool = False,
) -> Prompt:
    """Turn a conversation into a prompt that ends where the assistant's reply begins.

    Args:
        conversation: the messages.
        tokenizer: holds the special tokens.
        convention: `boson` or `transformers`.
        force_audio_gen: append `<|audio_out_bos|>`, so that the reply begins with audio. The transformers
            implementation always does.

    Raises:
        ParameterError: the convention is unknown, or an argument or a role is of a wrong type.
        PromptError: the conversation is no list of messages, the convention can't express it, or the tokenizer lacks a
            special token.
    """
    rendering = _CONVENTIONS[Convention.parse(convention)]
    check_instance("tokenizer", tokenizer, Tokenizer)
    check_flag("force_audio_gen", force_audio_gen)
    messages = checked_messages(conversation)
    for token in REQUIRED_TOKENS:
        if tokenizer.token_to_id(token) is None:
            raise PromptError(f"tokenizer must be that of Higgs Audio V2, got one without the token {token}")
    parts = [*rendering.render(messages), header("assistant") + AUDIO_OUT_BOS * force_audio_gen]
    ids = [token_id for part in parts for token_id in tokenizer.encode(part, add_special_tokens=False).ids]
    audio = [item for message in messages for item in message.contents() if isinstance(item, AudioContent)]
    placeholder_ids = {tokenizer.token_to_id(token) for token in AUDIO_PLACEHOLDERS}
    placeholders = sum(token_id in placeholder_ids for token_id in ids)
    if placeholders != len(audio):
        raise PromptError(
            f"texts must hold no {' or '.join(AUDIO_PLACEHOLDERS)}, "
            f"got {placeholders} audio placeholders for {len(audio)} recordings"
        )
    return Prompt(torch.tensor([ids], dtype=torch.int64, device="cpu"), audio)


def checked_messages(conversation: ChatMLSample | Sequence[Message]) -> Sequence[Message]:
    """Return the messages of a conversation.

    Raises:
        ParameterError: a role or a recipient is no string.
        PromptError: the conversation is no list of messages, or an empty one.
    """
    messages = conversation.messages if isinstance(conversation, ChatMLSample) else conversation
    if not isinstance(messages, Sequence):
        raise PromptError(f"conversation must be a list of Message(role, content), got {short_repr(messages)}")
    if not messages:
        raise PromptError("conversation must hold at least one message, got none")
    for message in messages:
        if not isinstance(message, Message):
            raise PromptError(f"conversation must hold Message(role, content) only, got {short_repr(message)}")
        check_string("role", message.role)
        check_string("recipient", message.recipient, optional=True)
    return messages


def speech_messages(
    text: str,
    voices: Sequence[Voice] = (),
    scene: str | None = None,
    convention: Convention | str = Convention.BOSON,
) -> list[Message]:
    """Return the conversation that asks for `text` to be spoken.

    If all voices have reference audio and its words, they become earlier turns: the words from the user, the recording
    from the assistant. Otherwise all voices are listed in the scene, as `SPEAKER0: ...`, `SPEAKER1: ...`. Without
    voices, a text with several `[SPEAKER*]` tags gets alternating feminine and masculine speakers; for any other text
    the model chooses the voice.

    Args:
        text: what to say, normalized (see `prompt.normalize`); `[SPEAKER0]`, `[SPEAKER1]`, ... mark the turns of
            several speakers.
        voices: the voices of SPEAKER0, SPEAKER1, ...
        scene: where or how it is spoken, for example `Audio is recorded from a quiet room.`
        convention: `boson` or `transformers`.

    Raises:
        ParameterError: the convention is unknown.
    """
    rendering = _CONVENTIONS[Convention.parse(convention)]
    system_text = SYSTEM_TEXT
    turns: list[Message] = []
    speakers: list[tuple[str, str | AudioContent]] = []
    names = sorted({tag[1:-1] for tag in SPEAKER_TAG.findall(text)}, key=lambda name: int(name[len("SPEAKER") :]))
    if not voices and len(names) > 1:
        system_text = MULTIPLE_SPEAKERS_SYSTEM_TEXT
        for index, name in enumerate(names):
            speakers.append((f"{name}:", ("feminine", "masculine")[index % 2]))
    elif all(voice.reference_text is not None for voice in voices):
        for index, voice in enumerate(voices):
            tag = f"[SPEAKER{index}] " if len(voices) > 1 else ""
            turns += [Message("user", f"{tag}{voice.reference_text}"), Message("assistant", _audio_content(voice))]
    else:
        for index, voice in enumerate(voices):
            speakers.append((f"SPEAKER{index}:", _audio_content(voice) if voice.profile is None else voice.profile))
    return [*rendering.system_messages(system_text, scene, speakers), *turns, Message("user", text)]


def spoken_turns(chunks: Iterable[tuple[str, torch.Tensor]]) -> list[Message]:
    """Return earlier chunks of a text as turns of the conversation, the context of the next chunk.

    Args:
        chunks: texts, and the codes [codebooks, frames] that were generated for them.
    """
    return [
        message
        for text, codes in chunks
        for message in (Message("user", text), Message("assistant", AudioContent(codes=codes)))
    ]


def _audio_content(voice: Voice) -> AudioContent:
    if isinstance(voice.reference_audio, str | os.PathLike):
        return AudioContent(audio_url=os.fspath(voice.reference_audio))
    return AudioContent(raw_audio=voice.reference_audio)


def check_plain_text(text: str, tokenizer: Tokenizer, name: str = "text") -> None:
    """Refuse a text with a special token in it, which would change the structure of the prompt.

    Args:
        text: what an end user wrote.
        tokenizer: knows its special tokens.
        name: what errors call the text.

    Raises:
        PromptError: the text holds a special token, is no str, or is not valid Unicode.
    """
    check_unicode(text, name)
    check_instance("tokenizer", tokenizer, Tokenizer)
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.special and token.content in text:
            raise PromptError(f"{name} must be plain text, got the special token {token.content}")
