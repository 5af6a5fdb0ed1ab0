"""Prompts of the `higgs_tts_3` convention: blocks of text and audio, each begun by a token, without roles.

    <|tts|> <|ref_text|> words <|ref_audio|> recording
    <|text|> earlier text <|audio|> its audio
    <|text|> text <|audio|>

There is no space or line break between the parts. A system message holds a voice: a recording, and before it its words
if they are known; more recordings of it are earlier turns. The user's messages hold texts, and the assistant's the
audio of earlier ones. The model was trained on such turns, but no published server writes them: their form is
unverified. Each text is tokenized by itself and not normalized.

Control tags such as `<|emotion:amusement|>` or `<|prosody:pause|>` are tokens, and a part of the text. The tokenizer
says which ones there are.
"""

import re
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from higgs_native.checkpoint.config import AUDIO_PLACEHOLDER
from higgs_native.errors import PromptError, short_repr
from higgs_native.prompt.conventions.chatml import recorded_turns
from higgs_native.prompt.markup import CONTROL_TAG, SPEAKER_TAG
from higgs_native.prompt.messages import AudioContent, Message, TextContent
from higgs_native.prompt.normalize import check_unicode, drop_invisible, is_speakable, nothing_to_say
from higgs_native.prompt.voices import Voice, audio_content


_TTS, _TEXT, _AUDIO, _REF_TEXT, _REF_AUDIO = "<|tts|>", "<|text|>", "<|audio|>", "<|ref_text|>", "<|ref_audio|>"
# Older tokenizers have no `<|ref_text|>`: the words of a recording are then left out.
_REQUIRED_TOKENS = (_TTS, _TEXT, _AUDIO, _REF_AUDIO)
_CATEGORIES = ("emotion", "style", "sfx", "prosody")
_KNOWN_TAG = re.compile(rf"<\|(?:{'|'.join(_CATEGORIES)}):\w+\|>")
# Tags of Higgs Audio V2 and their counterparts: an effect is followed by its sound, as the model was trained.
_SOUND_EFFECTS = {
    "[laugh]": "<|sfx:laughter|>Haha",
    "[cough]": "<|sfx:cough|>Ahem",
    "[humming start]": "<|sfx:humming|>Hmm",
    "[humming end]": "",
    "[sing start]": "<|style:singing|>",
    "[sing end]": "",
}
_WITHOUT_COUNTERPART = ("[applause]", "[cheering]", "[music]", "[music start]", "[music end]")


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer, force_audio_gen: bool) -> list[int]:
    """Return the ids of a prompt, with one placeholder per recording; it always ends where audio begins.

    Raises:
        PromptError: the convention can't express the conversation, or the tokenizer lacks a token.
    """
    known = {token: tokenizer.token_to_id(token) for token in _REQUIRED_TOKENS}
    found = {token: token_id for token, token_id in known.items() if token_id is not None}
    for token in _REQUIRED_TOKENS:
        if token not in found:
            raise PromptError(f"tokenizer must be that of Higgs TTS 3, got one without the token {token}")
    ids = [found[_TTS]]
    for part in _parts(messages, has_words=tokenizer.token_to_id(_REF_TEXT) is not None):
        if isinstance(part, AudioContent):
            ids.append(AUDIO_PLACEHOLDER)
        else:
            ids += tokenizer.encode(part, add_special_tokens=False).ids
    return [*ids, found[_AUDIO]]


def _parts(messages: Sequence[Message], has_words: bool) -> Iterator[str | AudioContent]:
    """Yield the texts, each to be tokenized by itself, and the recordings."""
    if messages[-1].role != "user":
        raise PromptError(f"role of the last message must be 'user', got {short_repr(messages[-1].role)}")
    for message in messages:
        if message.recipient:
            raise PromptError(
                f"recipient must be None in the higgs_tts_3 convention, got {short_repr(message.recipient)}"
            )
        # Texts and recordings.
        items = [item.text if isinstance(item, TextContent) else item for item in message.contents()]
        kinds = ["text" if isinstance(item, str) else "audio" for item in items]
        if message.role == "system" and kinds in (["audio"], ["text", "audio"]):
            if len(items) == 2 and has_words:
                yield from (_REF_TEXT, items[0])
            yield from (_REF_AUDIO, items[-1])
        elif message.role == "user" and kinds == ["text"]:
            yield from (_TEXT, items[0])
        elif message.role == "assistant" and kinds == ["audio"]:
            yield from (_AUDIO, items[0])
        else:
            raise PromptError(
                "a message must be of role user with a text, assistant with a recording, or system with a recording "
                f"and maybe its words before it, got role {short_repr(message.role)} with "
                f"{', '.join(kinds) or 'nothing'}"
            )


def speech_messages(text: str, voices: Sequence[Voice], scene: str | None) -> list[Message]:
    """Return the conversation that asks for `text` to be spoken.

    Args:
        text: what to say, with control tags.
        voices: none, or one with reference audio.
        scene: None or empty.

    Raises:
        PromptError: there is a scene, a described voice, or more than one voice.
    """
    if scene:
        raise PromptError(f"scene must be None with Higgs TTS 3, which takes control tags, got {short_repr(scene)}")
    if len(voices) > 1:
        raise PromptError(f"voice must be one with Higgs TTS 3, got {len(voices)}")
    opening = []
    for voice in voices:
        if voice.profile is not None:
            raise PromptError(
                f"voice must be a recording with Higgs TTS 3, got the description {short_repr(voice.profile)}"
            )
        words = [] if voice.reference_text is None else [voice.reference_text]
        opening.append(Message("system", [*words, audio_content(voice)]))
        if any(item.reference_text is None for item in voice.more_recordings):
            raise PromptError(
                "reference_text must be given for all recordings after the first one, got one without it"
            )
        opening += recorded_turns(voice.more_recordings)
    return [*opening, Message("user", text)]


def clean_text(text: str) -> str:
    """Return a text without invisible characters, with control tags in place of the sound effects of Higgs Audio V2.

    Raises:
        PromptError: an effect has no counterpart, there are speakers' tags, or the text is no str or no valid Unicode.
    """
    cleaned = drop_invisible(text, "text")
    for written in _WITHOUT_COUNTERPART:
        if written in cleaned:
            raise PromptError(
                f"text must hold sound effects that Higgs TTS 3 has ({', '.join(_SOUND_EFFECTS)}, or its own tags), "
                f"got {written}"
            )
    if tag := SPEAKER_TAG.search(cleaned):
        raise PromptError(f"text must have one speaker with Higgs TTS 3, got {tag[0]}")
    for written, replacement in _SOUND_EFFECTS.items():
        cleaned = cleaned.replace(written, replacement)
    return cleaned


def normalize_text(text: str) -> str:
    """Return `clean_text` of a text that holds something to say.

    Raises:
        PromptError: no letter or digit is left to say, or as for `clean_text`.
    """
    cleaned = clean_text(text)
    if not is_speakable(cleaned):
        raise nothing_to_say(text)
    return cleaned


def control_tags(tokenizer: Tokenizer) -> list[str]:
    """Return the control tags that a tokenizer knows, sorted."""
    added = (token.content for token in tokenizer.get_added_tokens_decoder().values())
    return sorted(content for content in added if _KNOWN_TAG.fullmatch(content))


def check_text(text: str, tokenizer: Tokenizer, name: str = "text") -> None:
    """Refuse a text with a tag or a token in it that is no control tag: it would be read aloud, or be structure.

    Raises:
        PromptError: the text holds such a tag or token, is no str, or is not valid Unicode.
    """
    check_unicode(text, name)
    tags = control_tags(tokenizer)
    for found in CONTROL_TAG.findall(text):
        if found not in tags:
            raise PromptError(f"{name} must hold tags that the model knows, got {found}; they are {_listed(tags)}")
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.content in text and token.content not in tags:
            raise PromptError(f"{name} must be text and control tags, got the special token {token.content}")


def _listed(tags: Sequence[str]) -> str:
    """Return the tags, by category: emotion (...), ..."""
    by_category = {
        category: [tag[len(category) + 3 : -2] for tag in tags if tag.startswith(f"<|{category}:")]
        for category in _CATEGORIES
    }
    return ", ".join(f"{category}: {' '.join(names)}" for category, names in by_category.items() if names)
