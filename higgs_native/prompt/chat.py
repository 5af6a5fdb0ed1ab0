"""Conversations, and their rendering to prompts.

A prompt is token ids with one placeholder per recording, and the recordings in the order of their placeholders. How it
is written depends on the convention: see `prompt.conventions`.

Special tokens written in a text become special tokens, as in both implementations, since system messages need them.
Texts of end users go through `check_plain_text` first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import regex
import torch
from tokenizers import Tokenizer

from higgs_native.convention import Convention
from higgs_native.errors import PromptError, short_repr
from higgs_native.prompt.conventions import boson, higgs_tts_3, transformers
from higgs_native.prompt.markup import TIMING
from higgs_native.prompt.messages import AudioContent, ChatMLSample, Message
from higgs_native.prompt.sentences import split_sentences
from higgs_native.prompt.voices import Voice
from higgs_native.utils.checks import check_flag, check_instance, check_string


# All that depends on the convention: `prompt_ids`, `speech_messages`, `clean_text`, `normalize_text`, `check_text` and
# `control_tags` of each module.
_CONVENTIONS = {
    Convention.BOSON: boson,
    Convention.TRANSFORMERS: transformers,
    Convention.HIGGS_TTS_3: higgs_tts_3,
}


# A sentence ends here whatever its marks: a blank line, a pause, or another speed.
_SENTENCE_BREAK = regex.compile(rf"(\n\s*\n|{TIMING.pattern})", regex.IGNORECASE)


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
        convention: `boson`, `transformers` or `higgs_tts_3`.
        force_audio_gen: append `<|audio_out_bos|>`, so that the reply begins with audio. The transformers
            implementation always does; with Higgs TTS 3 every reply is audio.

    Raises:
        ParameterError: the convention is unknown, or an argument or a role is of a wrong type.
        PromptError: the conversation is no list of messages, the convention can't express it, or the tokenizer lacks a
            special token.
    """
    rendering = _CONVENTIONS[Convention.parse(convention)]
    check_instance("tokenizer", tokenizer, Tokenizer)
    check_flag("force_audio_gen", force_audio_gen)
    messages = checked_messages(conversation)
    ids = rendering.prompt_ids(messages, tokenizer, force_audio_gen)
    audio = [item for message in messages for item in message.contents() if isinstance(item, AudioContent)]
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

    If all voices have reference audio and its words, each recording becomes an earlier turn: the words from the user,
    the recording from the assistant. Otherwise all voices are listed in the scene, as `SPEAKER0: ...`,
    `SPEAKER1: ...`, and each has one recording at most. Without voices, a text with several `[SPEAKER*]` tags gets
    alternating feminine and masculine speakers; for any other text the model chooses the voice.

    Args:
        text: what to say, normalized (see `prompt.normalize`); `[SPEAKER0]`, `[SPEAKER1]`, ... mark the turns of
            several speakers.
        voices: the voices of SPEAKER0, SPEAKER1, ...
        scene: where or how it is spoken, for example `Audio is recorded from a quiet room.`
        convention: `boson`, `transformers` or `higgs_tts_3`. With the last there is one voice at most, which is a
            recording, and no scene.

    Raises:
        ParameterError: the convention is unknown.
        PromptError: the convention can't express the voices or the scene.
    """
    return _CONVENTIONS[Convention.parse(convention)].speech_messages(text, voices, scene)


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


def clean_text(text: str, convention: Convention) -> str:
    """Return a text as it is written in a prompt, also one without anything to say.

    Raises:
        PromptError: the text is no str, not valid Unicode, or holds what the model can't express.
    """
    return _CONVENTIONS[convention].clean_text(text)


def normalized_text(text: str, convention: Convention) -> str:
    """Return a text as it is written in a prompt: by `normalize_text`, or with Higgs TTS 3 almost as it is.

    Raises:
        PromptError: no letter or digit is left to say, or as for `clean_text`.
    """
    return _CONVENTIONS[convention].normalize_text(text)


def check_plain_text(
    text: str, tokenizer: Tokenizer, name: str = "text", convention: Convention = Convention.BOSON
) -> None:
    """Refuse a text with a special token in it, which would change the structure of the prompt.

    With Higgs TTS 3, control tags are a part of the text.

    Args:
        text: what an end user wrote.
        tokenizer: knows its special tokens.
        name: what errors call the text.
        convention: of the prompt.

    Raises:
        PromptError: the text holds a special token, is no str, or is not valid Unicode.
    """
    _CONVENTIONS[convention].check_text(text, tokenizer, name)


def tagged_text(
    text: str, tokenizer: Tokenizer, convention: Convention, emotion: str | None = None, style: str | None = None
) -> str:
    """Return a text with control tags for an emotion and a style at the start of each sentence (Higgs TTS 3).

    Where the end of a sentence is unsure, as after an abbreviation, the next one gets none: a tag within a sentence
    would change the voice there.

    Raises:
        PromptError: the model knows no such emotion or style.
    """
    tags = _CONVENTIONS[convention].control_tags(tokenizer)
    added = ""
    for category, value in (("emotion", emotion), ("style", style)):
        names = [tag.removeprefix(f"<|{category}:")[:-2] for tag in tags if tag.startswith(f"<|{category}:")]
        if value is not None and value not in names:
            expected = f"one of {', '.join(names)}" if names else "None for this model"
            raise PromptError(f"{category} must be {expected}, got {short_repr(value)}")
        added += "" if value is None else f"<|{category}:{value}|>"
    if not added:
        return text
    sentences = (sentence for part in _SENTENCE_BREAK.split(text) for sentence in split_sentences(part))
    return "".join(_tagged(sentence, added) for sentence in sentences)


def _tagged(sentence: str, tags: str) -> str:
    """Put tags before the first character of a sentence, if it is spoken."""
    words = sentence.lstrip()
    if not words or _SENTENCE_BREAK.fullmatch(words):
        return sentence
    return sentence[: len(sentence) - len(words)] + tags + words
