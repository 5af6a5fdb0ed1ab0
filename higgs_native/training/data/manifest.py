"""Manifests: files of lines of JSON, each a recording with its words, or a conversation as Boson writes it.

    {"audio": "clips/1.wav", "text": "The sun rises in the east.", "speaker": "anna"}
    {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": {"type": "audio", ...}}]}

Names of files are relative to the manifest's folder. A line of the first form may also have `ref_audio`, `ref_text`
(the words spoken in it), `scene` and `language`, and `codes`, a file of codes, in place of `audio`. Other keys are
ignored.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from higgs_native.audio.files.reading import is_data_url
from higgs_native.convention import Convention
from higgs_native.errors import ConfigError, HiggsNativeError, PromptError, short_repr
from higgs_native.manuscript.phonemes import PhonemeReader
from higgs_native.prompt.chat import check_plain_text, speech_messages
from higgs_native.prompt.messages import AudioContent, Content, Message, TextContent
from higgs_native.prompt.normalize import normalize_text
from higgs_native.prompt.recordings import Recording, read_recording
from higgs_native.prompt.voices import Voice
from higgs_native.utils.fields import Fields
from higgs_native.utils.files import read_small_file


_MAX_BYTES = 1 << 30

Spelling = Callable[[str, Sequence[Voice]], str]
"""Writes a text as the model reads it, given the voices of its speakers."""


@dataclass(frozen=True)
class Clip:
    """A recording of a manifest, which is read when it is needed.

    Attributes:
        audio: the file, and the part of it.
        codes: a file of its codes, in place of `audio`; or None.
        text: the words spoken in it, if they are known.
    """

    audio: AudioContent | None = None
    codes: Path | None = None
    text: str | None = None

    def read(self) -> Recording:
        """Read the recording, which is there if `codes` is None."""
        assert self.audio is not None
        return read_recording(self.audio)


@dataclass(frozen=True)
class Entry:
    """A line of a manifest.

    Attributes:
        location: the manifest and the line's number, for messages.
        messages: the conversation; the raw audio of its recordings is a `Clip`.
        start_index: the replies from this message on are learned.
        text: the words of the last reply, if they are known.
        speaker: the name of the speaker that is learned, if there is one.
    """

    location: str
    messages: list[Message]
    start_index: int
    text: str | None = None
    speaker: str | None = None

    @property
    def last_reply(self) -> int:
        """The index of the last reply of the assistant."""
        return max(index for index, message in enumerate(self.messages) if message.role == "assistant")

    def clips(self) -> list[Clip]:
        """Return the recordings, in the order of their placeholders."""
        contents = (item for message in self.messages for item in message.contents())
        return [item.raw_audio for item in contents if isinstance(item, AudioContent)]


@contextmanager
def located(location: str) -> Iterator[None]:
    """Name the line of the manifest in the errors that it causes."""
    try:
        yield
    except HiggsNativeError as error:
        message = str(error)
        raise type(error)(message if message.startswith(location) else f"{location}: {message}") from None


def read_manifest(
    path: Path, tokenizer: Tokenizer, convention: Convention, phonemes: PhonemeReader | None = None
) -> list[Entry]:
    """Read a manifest without its recordings.

    Args:
        path: the manifest.
        tokenizer: knows the special tokens, which texts must not hold.
        convention: the one that the model was trained with.
        phonemes: writes texts of the user as the model reads them; None: it reads words.

    Raises:
        ConfigError: the file can't be read, or holds no line; or a line is no JSON object, or a value of it is missing
            or wrong.
        PromptError: a text is empty, holds special tokens, or has no word that the model can read.
    """
    spell: Spelling = phonemes.spell if phonemes else lambda text, voices: text
    try:
        lines = read_small_file(path, _MAX_BYTES).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8, got another encoding at byte {error.start}") from None
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        location = f"{path}, line {number}"
        try:
            fields = Fields(json.loads(line), location)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{location} must be JSON, got {short_repr(line)}: {error}") from None
        with located(location):
            read = _read_conversation if "messages" in fields else _read_clip
            entries.append(read(fields, location, path.parent, tokenizer, convention, spell))
    if not entries:
        raise ConfigError(f"{path} must hold a line per recording, got none")
    return entries


def _read_clip(
    fields: Fields, location: str, folder: Path, tokenizer: Tokenizer, convention: Convention, spell: Spelling
) -> Entry:
    for name in ("audio", "codes", "speaker", "ref_audio", "ref_text", "scene", "language"):
        fields.text(name, "")
    text = fields.text("text")
    if not text.strip():
        raise PromptError(f"text must be the words spoken in the recording, got {short_repr(text)}")
    given = [name for name in ("audio", "codes") if fields.text(name, "")]
    if len(given) != 1:
        raise ConfigError(f"{location} must have audio or codes, got {' and '.join(given) or 'neither'}")
    speaker, ref_audio, ref_text = (fields.text(name, "") for name in ("speaker", "ref_audio", "ref_text"))
    if ref_text and not ref_audio:
        raise ConfigError(f"{location}: ref_text must be given with ref_audio, got it alone")
    normalized, scene = normalize_text(text), fields.text("scene", "")
    for name, value in (("text", normalized), ("scene", scene), ("speaker", speaker), ("ref_text", ref_text)):
        check_plain_text(value, tokenizer, name)
    voices = [Voice(profile=speaker)] if speaker else []
    if ref_audio:
        clip = Clip(AudioContent(str(folder / ref_audio)), text=ref_text or None)
        unread: Any = clip  # recordings are read when they are encoded
        voices = [Voice(unread, spell(ref_text, ()) if ref_text else None)]
    target = Clip(
        AudioContent(str(folder / fields.text("audio"))) if "audio" in given else None,
        folder / fields.text("codes") if "codes" in given else None,
        text,
    )
    messages = speech_messages(spell(normalized, voices), voices, scene or None, convention)
    messages.append(Message("assistant", AudioContent(raw_audio=target)))
    return Entry(location, messages, len(messages) - 1, normalized, speaker or None)


def _read_conversation(
    fields: Fields, location: str, folder: Path, tokenizer: Tokenizer, convention: Convention, spell: Spelling
) -> Entry:
    raw = fields.value("messages")
    fields.require("messages", isinstance(raw, list) and len(raw) > 0, "a list of messages", raw)
    messages = []
    for index, item in enumerate(raw):
        message = Fields(item, f"{location}: message {index}")
        content = message.value("content")
        items = content if isinstance(content, list) else [content]
        contents = [_content(part, f"{location}: message {index}", folder) for part in items]
        role = message.text("role")
        if role == "user":
            contents = [TextContent(spell(c.text, ())) if isinstance(c, TextContent) else c for c in contents]
        messages.append(Message(role, contents, message.text("recipient", "") or None))
    has_reply = any(message.role == "assistant" for message in messages)
    fields.require("messages", has_reply, "a conversation with a reply of the assistant", raw)
    # Boson's samples learn all replies if there is no start_index.
    start_index = fields.integer("start_index", 0)
    speaker = fields.value("speaker", None)
    entry = Entry(location, messages, start_index, speaker=speaker if isinstance(speaker, str) else None)
    fields.require("start_index", 0 <= start_index <= entry.last_reply, f"from 0 to {entry.last_reply}", start_index)
    return entry


def _content(raw: Any, source: str, folder: Path) -> Content:
    """Return a text, or a recording as a `Clip`."""
    if isinstance(raw, str):
        return TextContent(raw)
    fields = Fields(raw, f"{source}: content")
    kind = fields.text("type")
    fields.require("type", kind in ("text", "audio"), "'text' or 'audio'", kind)
    if kind == "text":
        return TextContent(fields.text("text"))
    url = fields.text("audio_url", "")
    if url not in ("", "placeholder") and not is_data_url(url):
        url = str(folder / url)
    audio = AudioContent(
        url,
        fields.value("raw_audio", None),
        fields.number("offset", None),
        fields.number("duration", None),
    )
    if url in ("", "placeholder") and audio.raw_audio is None:
        raise ConfigError(f"{source}: audio content must have audio_url or raw_audio, got neither")
    return AudioContent(raw_audio=Clip(audio))
