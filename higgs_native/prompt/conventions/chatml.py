"""The chats of Higgs Audio V2, as far as both of its conventions write them alike."""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from higgs_native.errors import PromptError
from higgs_native.prompt.markup import AUDIO_OUT_BOS, AUDIO_PLACEHOLDERS, REQUIRED_TOKENS, SPEAKER_TAG, header
from higgs_native.prompt.messages import AudioContent, Message, check_unicode
from higgs_native.prompt.voices import Voice, audio_content
from higgs_native.utils.checks import check_instance


SYSTEM_TEXT = "Generate audio following instruction."
MULTIPLE_SPEAKERS_SYSTEM_TEXT = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)

SystemMessages = Callable[[str, str | None, Sequence[tuple[str, str | AudioContent]]], list[Message]]


def chat_ids(
    parts: Sequence[str], messages: Sequence[Message], tokenizer: Tokenizer, force_audio_gen: bool
) -> list[int]:
    """Return the ids of a chat, with one placeholder per recording.

    Args:
        parts: the texts of the messages, to be tokenized one by one.
        messages: the messages.
        tokenizer: holds the special tokens.
        force_audio_gen: append `<|audio_out_bos|>`, so that the reply begins with audio.

    Raises:
        PromptError: the tokenizer lacks a special token, or texts hold placeholders.
    """
    for token in REQUIRED_TOKENS:
        if tokenizer.token_to_id(token) is None:
            raise PromptError(f"tokenizer must be that of Higgs Audio V2, got one without the token {token}")
    parts = [*parts, header("assistant") + AUDIO_OUT_BOS * force_audio_gen]
    ids = [token_id for part in parts for token_id in tokenizer.encode(part, add_special_tokens=False).ids]
    recordings = sum(isinstance(item, AudioContent) for message in messages for item in message.contents())
    placeholder_ids = [tokenizer.token_to_id(token) for token in AUDIO_PLACEHOLDERS]
    placeholders = sum(token_id in placeholder_ids for token_id in ids)
    if placeholders != recordings:
        raise PromptError(
            f"texts must hold no {' or '.join(AUDIO_PLACEHOLDERS)}, "
            f"got {placeholders} audio placeholders for {recordings} recordings"
        )
    return ids


def chat_messages(
    text: str, voices: Sequence[Voice], scene: str | None, system_messages: SystemMessages
) -> list[Message]:
    """Return the conversation that asks for `text` to be spoken; see `prompt.chat.speech_messages`.

    Args:
        text, voices, scene: as there.
        system_messages: returns the system messages, given the instruction, the scene, and the speakers' labels with
            their descriptions or recordings.
    """
    system_text = SYSTEM_TEXT
    turns: list[Message] = []
    speakers: list[tuple[str, str | AudioContent]] = []
    names = sorted({tag[1:-1] for tag in SPEAKER_TAG.findall(text)}, key=lambda name: int(name[len("SPEAKER") :]))
    if not voices and len(names) > 1:
        system_text = MULTIPLE_SPEAKERS_SYSTEM_TEXT
        for index, name in enumerate(names):
            speakers.append((f"{name}:", ("feminine", "masculine")[index % 2]))
    elif all(voice.has_words for voice in voices):
        for index, voice in enumerate(voices):
            tag = f"[SPEAKER{index}] " if len(voices) > 1 else ""
            turns += recorded_turns(voice.recordings, tag)
    elif any(voice.more_recordings for voice in voices):
        raise PromptError("reference_text must be given for all recordings if a voice has several, got one without it")
    else:
        for index, voice in enumerate(voices):
            speakers.append((f"SPEAKER{index}:", audio_content(voice) if voice.profile is None else voice.profile))
    return [*system_messages(system_text, scene, speakers), *turns, Message("user", text)]


def recorded_turns(recordings: Sequence[Voice], tag: str = "") -> list[Message]:
    """Return recordings as earlier turns of the conversation: the words, and the audio."""
    return [
        message
        for item in recordings
        for message in (Message("user", tag + (item.reference_text or "")), Message("assistant", audio_content(item)))
    ]


def check_text(text: str, tokenizer: Tokenizer, name: str = "text") -> None:
    """Refuse a text with a special token in it, which would change the structure of the prompt.

    Raises:
        PromptError: the text holds a special token, is no str, or is not valid Unicode.
    """
    check_unicode(text, name)
    check_instance("tokenizer", tokenizer, Tokenizer)
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.special and token.content in text:
            raise PromptError(f"{name} must be plain text, got the special token {token.content}")


def control_tags(tokenizer: Tokenizer) -> list[str]:
    """Return the tags that change how a text is spoken: Higgs Audio V2 has none."""
    return []
