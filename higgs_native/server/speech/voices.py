"""The voices that clients name, upload, or send with a request."""

import base64
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path

from higgs_native.audio.files.decoding import decode_bytes
from higgs_native.audio.files.writing import writing_audio
from higgs_native.errors import AudioError, HiggsNativeError
from higgs_native.prompt.normalize import check_unicode
from higgs_native.prompt.recordings import Recording
from higgs_native.prompt.voices import Voice, check_voice, list_voices, voice_of
from higgs_native.server.settings import ServerSettings
from higgs_native.server.speech.schema import ApiError
from higgs_native.utils.files import locked, read_small_file, replacing


OPENAI_VOICES = {
    "alloy": "feminine",
    "ash": "masculine",
    "ballad": "masculine",
    "coral": "feminine",
    "echo": "masculine",
    "fable": "masculine",
    "onyx": "masculine",
    "nova": "feminine",
    "sage": "feminine",
    "shimmer": "feminine",
    "verse": "masculine",
    "marin": "feminine",
    "cedar": "masculine",
}
"""OpenAI's voices, described. A voice of such a name in the folder replaces the description."""

_PROFILE_PREFIX = "profile:"
# No leading dot, no slash: a name is a file's stem. No comma: it separates voices.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}")
_UPLOADED = re.compile(r"\d+\.(?:wav|txt)", re.ASCII)  # of several recordings of a voice
_FETCH_SECONDS = 20.0
_CACHED_RECORDINGS = 64


@dataclass(frozen=True)
class ListedVoice:
    """A voice as clients see it.

    Attributes:
        id: what requests name.
        kind: `recording`, `description`, `adapter`, or `alias`: one of OpenAI's names.
        description: of a voice in words, the words spoken in a recording, or an adapter's speakers; may be empty.
    """

    id: str
    kind: str
    description: str

    def as_json(self) -> dict[str, str]:
        described = {"id": self.id, "name": self.id, "object": "audio.voice"}
        return {**described, "kind": self.kind, "description": self.description}


class VoiceStore:
    """The voices of a folder, of the checkpoint and of adapters, and OpenAI's names. Its methods may block.

    Args:
        settings: name the folder, and what `ref_audio` may refer to.
        trained: the voices of the checkpoint; each name is its own description.
        adapters: returns the speakers of each adapter by its name; called at each request.

    Raises:
        PromptError: the folder can't be read.
    """

    def __init__(
        self,
        settings: ServerSettings,
        trained: Sequence[str] = (),
        adapters: Callable[[], Mapping[str, Sequence[str]]] = dict,
    ) -> None:
        self._settings = settings
        self._folder = settings.voices_folder
        self._adapters = adapters
        self._described = {name: name for name in trained} | _aliases(trained)
        # Reading and analyzing a recording takes longer than its speech's first chunk. Keyed by the file's version.
        self._read = lru_cache(_CACHED_RECORDINGS)(lambda path, version: Recording.read(path))
        self._in_folder()

    def listed(self) -> list[ListedVoice]:
        """Return all voices, adapters and those of the folder first."""
        found = {
            name: ListedVoice(name, "adapter", ", ".join(speakers)) for name, speakers in self._adapters().items()
        }
        for name, voice in self._in_folder().items():
            kind = "recording" if voice.profile is None else "description"
            found.setdefault(name, ListedVoice(name, kind, voice.profile or voice.words))
        for name, description in self._described.items():
            found.setdefault(name, ListedVoice(name, "alias" if name in OPENAI_VOICES else "description", description))
        return list(found.values())

    def find(self, name: str, adapter: str | None = None) -> Voice:
        """Return a voice, its recordings read; an adapter's speakers come first.

        Raises:
            ApiError: there is no such voice.
            AudioError: a recording can't be used.
        """
        if adapter is not None and name in self._adapters()[adapter]:
            return Voice(profile=name)
        in_folder = self._in_folder()
        voice = in_folder.get(name) or in_folder.get(_PROFILE_PREFIX + name)
        if voice is None:
            if name not in self._described:
                names = ", ".join([*self._adapters(), *in_folder, *self._described])
                raise ApiError(400, f"voice must be one of {names:.300}, got {name!r:.80}", "voice_not_found", "voice")
            return Voice(profile=self._described[name])
        if voice.profile is not None:
            return voice
        return voice_of([self._with_recording(item, name) for item in voice.recordings])

    def _with_recording(self, voice: Voice, name: str) -> Voice:
        assert isinstance(voice.reference_audio, str | os.PathLike)  # voices in folders are files
        path = Path(voice.reference_audio)
        try:
            status = path.stat()
        except OSError as error:
            raise AudioError(f"voice must have a recording that can be read, got {name!r}: {error.strerror}") from None
        return replace(voice, reference_audio=self._read(path, (status.st_mtime_ns, status.st_size)))

    def check(self, files: Sequence[bytes], words: Sequence[str]) -> tuple[Voice, list[str]]:
        """Read the recordings in files, and return their voice with advice on them.

        Args:
            files: the contents of one or more audio files.
            words: spoken in each; may be empty. Those of a single file may be left out.

        Raises:
            ApiError: there are not as many words as files.
            AudioError: a recording can't be used.
            PromptError: the words are not valid Unicode.
        """
        voice = _voice_of_files(files, words, "audio_sample")
        return voice, check_voice(voice)

    def add(self, name: str, files: Sequence[bytes], words: Sequence[str]) -> tuple[ListedVoice, list[str]]:
        """Keep uploaded recordings as a voice. Return it with advice on the recordings.

        Args:
            name: the new voice's.
            files, words: as for `check`.

        Raises:
            ApiError: uploads are not allowed, the name is taken or not allowed, there are too many voices, or as for
                `check`.
            AudioError: a recording can't be used.
            PromptError: the words are not valid Unicode.
        """
        if self._folder is None:
            raise ApiError(403, "voices must be kept in a folder, and the server has none", "uploads_disabled")
        if not _NAME.fullmatch(name) or name.endswith((" ", ".")):
            expected = "1 to 64 letters, digits, spaces, '_', '.' and '-', without a dot or space at an end"
            raise ApiError(400, f"name must be {expected}, got {name!r:.80}", "invalid_value", "name")
        voice, advice = self.check(files, [" ".join(text.split()) for text in words])
        with locked(self._folder, waits=True):  # against other processes, too
            in_folder = self._in_folder()
            taken = in_folder.keys() | self._adapters().keys() | (self._described.keys() - OPENAI_VOICES.keys())
            if name in taken or (voice.more_recordings and (self._folder / name).exists()):
                raise ApiError(409, f"name must be new, got {name!r}, which exists", "voice_exists", "name")
            if len(in_folder) >= self._settings.max_uploaded_voices:
                limit = self._settings.max_uploaded_voices
                raise ApiError(403, f"voices in the folder must be at most {limit}, got one more", "too_many_voices")
            if voice.more_recordings:
                with replacing(self._folder / name) as temporary:
                    temporary.mkdir()
                    for number, item in enumerate(voice.recordings, start=1):
                        _write(item, temporary / f"{number}.wav")
            else:
                _write(voice, self._audio_file(name))
        return ListedVoice(name, "recording", voice.words), advice

    def remove(self, name: str) -> None:
        """Delete an uploaded voice.

        Raises:
            ApiError: there is no such voice, or it was not uploaded.
        """
        with nullcontext() if self._folder is None else locked(self._folder, waits=True):
            if name not in {voice.id for voice in self.listed()}:
                raise ApiError(404, f"voice must exist, got {name!r:.80}", "voice_not_found", "voice")
            if not _NAME.fullmatch(name) or self._folder is None or not self._is_upload(name):
                raise ApiError(403, f"voice must be an uploaded one, got {name!r:.80}", "voice_is_fixed", "voice")
            if not self._audio_file(name).is_file():
                deleted = self._folder / f".{name}.deleted"  # hidden: requests never see a part of it
                (self._folder / name).rename(deleted)
                shutil.rmtree(deleted)
                return
            self._audio_file(name).unlink()
            _words_file(self._audio_file(name)).unlink(missing_ok=True)

    def reference(self, ref_audio: Sequence[str | bytes], words: Sequence[str]) -> Voice:
        """Return the voice of the recordings that came with a request.

        Args:
            ref_audio: one or more: the contents of a file, or text: base64, a data URL, or a URL that the settings
                allow.
            words: spoken in each; those of a single one may be left out.

        Raises:
            ApiError: there are not as many words, or a recording names something that the settings don't allow.
            AudioError: a recording can't be used.
        """
        files = [data if isinstance(data, bytes) else self._fetched(data) for data in ref_audio]
        return _voice_of_files(files, words, "ref_audio")

    def _in_folder(self) -> dict[str, Voice]:
        return {} if self._folder is None else list_voices(self._folder)

    def _audio_file(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.wav"

    def _is_upload(self, name: str) -> bool:
        """Return whether a voice has the files of an uploaded one, and no others."""
        if self._audio_file(name).is_file():
            return True
        folder = self._audio_file(name).with_suffix("")
        return folder.is_dir() and all(_UPLOADED.fullmatch(path.name) and path.is_file() for path in folder.iterdir())

    def _fetched(self, text: str) -> bytes:
        scheme, separator, _ = text[:4096].partition(":")
        scheme = scheme.lower() if separator else ""
        if scheme in ("http", "https"):
            return self._from_url(text)
        if scheme == "file":
            return self._from_file(urllib.parse.unquote(urllib.parse.urlsplit(text).path))
        if scheme == "data":
            header, _, text = text.partition(",")
            if not header.endswith(";base64"):
                raise AudioError(f"ref_audio must be a data URL in base64, got {header!r:.80}")
        elif scheme:
            raise AudioError(f"ref_audio must be base64 or a data URL, got {text!r:.80}")
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except ValueError:
            raise AudioError("ref_audio must be base64, got other characters or a wrong length") from None

    def _from_url(self, url: str) -> bytes:
        if not url.startswith(self._settings.reference_urls):
            raise _not_allowed(url)
        if ".." in urllib.parse.unquote(url):
            raise _not_allowed(url)
        try:
            with _OPENER.open(url, timeout=_FETCH_SECONDS) as response:
                data = response.read(self._settings.max_body_bytes + 1)
        except (OSError, HTTPException, ValueError) as error:
            raise AudioError(f"ref_audio must be a URL that can be fetched, got {url!r:.100}: {error}") from None
        if len(data) > self._settings.max_body_bytes:
            raise AudioError(f"ref_audio must be at most {self._settings.max_body_bytes} bytes, got more")
        return data

    def _from_file(self, name: str) -> bytes:
        try:
            path = Path(name).resolve()
            allowed = any(path.is_relative_to(folder.resolve()) for folder in self._settings.reference_folders)
            if not allowed:
                raise _not_allowed(name)
            if path.stat().st_size > self._settings.max_body_bytes:
                raise AudioError(f"ref_audio must be at most {self._settings.max_body_bytes} bytes, got more")
            return read_small_file(path, self._settings.max_body_bytes)  # never from a pipe, which may have no end
        except (OSError, ValueError) as error:
            if isinstance(error, HiggsNativeError):
                raise
            raise AudioError(f"ref_audio must be a file that can be read, got {name!r:.100}") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to an address that the operator does not allow."""

    def redirect_request(self, *arguments: object) -> None:
        return None


# Without proxies, handlers of files and of FTP: `build_opener` adds those.
_OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.HTTPHandler(),
    urllib.request.HTTPSHandler(),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(),
    _NoRedirects(),
):
    _OPENER.add_handler(_handler)


def _aliases(trained: Sequence[str]) -> dict[str, str]:
    """Return a description that the checkpoint knows for each of OpenAI's voices."""
    return {
        name: description if not trained or description in trained else trained[index % len(trained)]
        for index, (name, description) in enumerate(OPENAI_VOICES.items())
    }


def _not_allowed(reference: str) -> ApiError:
    message = f"ref_audio must be a recording or a URL that the server allows, got {reference!r:.80}"
    return ApiError(403, message, "reference_not_allowed", "ref_audio")


def _voice_of_files(files: Sequence[bytes], words: Sequence[str], name: str) -> Voice:
    """Return the voice of recordings, given the contents of their files; `name` is the field that holds these."""
    if len(words) != len(files) and (len(files) > 1 or len(words) > 1):
        message = f"ref_text must be given for each {name} if there are several, got {len(words)} for {len(files)}"
        raise ApiError(400, message, "invalid_value", "ref_text")
    for text in words:
        check_unicode(text, "ref_text")
    texts = [text.strip() or None for text in words] or [None]
    return voice_of([Voice(_read_bytes(data, name), text) for data, text in zip(files, texts, strict=True)])


def _write(voice: Voice, path: Path) -> None:
    """Write a recording and its words.

    The words come first: without them, a voice that is read between the two is another one. Decoded and encoded again,
    the file holds nothing but samples.
    """
    assert isinstance(voice.reference_audio, Recording)
    if voice.reference_text is not None:
        with replacing(_words_file(path)) as temporary:
            temporary.write_text(voice.reference_text, encoding="utf-8")
    with writing_audio(path, voice.reference_audio.sampling_rate) as file:
        file.write(voice.reference_audio.samples)


def _words_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}.txt")


def _read_bytes(data: bytes, name: str) -> Recording:
    """Read a recording from a file's contents. No format that may name other files or addresses is among them."""
    return Recording(*decode_bytes(data, 0, None, name), name)
