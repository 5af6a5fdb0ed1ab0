"""Voices, and folders of them: recordings to clone, and profiles in words.

A folder may hold, side by side:

- `NAME.wav`, a recording, and `NAME.txt`, the words spoken in it. It may also be a .flac, .aiff, .ogg, .opus, .mp3,
  .m4a, .aac, .webm or .wma file; of several of one name, the first in this order is the voice;
- `config.json`: `{"NAME": {"audio_file": "FILE", "transcript": "WORDS"}, ...}`, which overrides `NAME.txt`;
- `profile.yaml`: descriptions by name under the key `profiles`; these voices are called `profile:NAME`.

Hidden files, whose names begin with a dot, are no voices. `NAME.txt` and `profile.yaml` hold at most 256 KiB.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from higgs_native.errors import ConfigError, ParameterError, PromptError, short_repr
from higgs_native.prompt.markup import PAUSE
from higgs_native.prompt.messages import AudioContent
from higgs_native.prompt.normalize import check_unicode, drop_invisible
from higgs_native.prompt.recordings import Recording, RecordingLike
from higgs_native.utils.checks import check_string, check_strings, expanded_path
from higgs_native.utils.files import read_json_object, read_small_file
from higgs_native.utils.variables import VOICES_VARIABLE


_MAX_TEXT_BYTES = 256 << 10  # YAML of this size takes up to 10 s
_AUDIO_SUFFIXES = (".wav", ".flac", ".aiff", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".webm", ".wma")
_PROFILE_PREFIX = "profile:"


@dataclass(frozen=True)
class Voice:
    """A speaker's voice: that of a recording, or one described in words.

    Attributes:
        reference_audio: a recording in any form that `Recording.read` takes; None if `profile` is set.
        reference_text: the words spoken in it. Without them the recording is part of the scene, not a turn. Space
            around them, invisible characters (see `drop_invisible`) and tags of pauses are dropped.
        profile: a description such as `male; british accent`; None if `reference_audio` is set.

    Raises:
        PromptError: both or neither of `reference_audio` and `profile` are set, a profile has a reference text, or a
            text is no str or not valid Unicode.
    """

    reference_audio: RecordingLike | None = None
    reference_text: str | None = None
    profile: str | None = None

    def __post_init__(self) -> None:
        if (self.reference_audio is None) == (self.profile is None):
            got = "neither" if self.profile is None else "both"
            raise PromptError(f"a voice must have reference_audio or a profile, got {got}")
        if self.profile is not None and self.reference_text is not None:
            got = short_repr(self.reference_text)
            raise PromptError(f"reference_text of a voice with a profile must be None, got {got}")
        if self.profile is not None:
            object.__setattr__(self, "profile", drop_invisible(self.profile, "profile"))
        elif self.reference_text is not None:
            words = drop_invisible(self.reference_text, "reference_text")
            words = " ".join(part.strip() for part in PAUSE.split(words)).strip()
            object.__setattr__(self, "reference_text", words or None)


def read_voice(voice: Voice) -> Voice:
    """Return the voice with its reference audio as a `Recording`; a voice with a profile is returned as it is.

    Raises:
        AudioError: the reference audio can't be read or used.
    """
    if voice.reference_audio is None or isinstance(voice.reference_audio, Recording):
        return voice
    return replace(voice, reference_audio=Recording.read(voice.reference_audio))


def audio_content(voice: Voice) -> AudioContent:
    """Return the reference audio of a voice as a part of a message."""
    if isinstance(voice.reference_audio, str | os.PathLike):
        return AudioContent(audio_url=os.fspath(voice.reference_audio))
    return AudioContent(raw_audio=voice.reference_audio)


def check_voice(voice: Voice) -> list[str]:
    """Return advice on a voice's reference audio, one phrase per flaw; none for a voice with a profile.

    Raises:
        AudioError: the reference audio can't be read or used.
    """
    recording = read_voice(voice).reference_audio
    return recording.advice(voice.reference_text) if isinstance(recording, Recording) else []


def choose_voices(
    voice: str | Voice | Sequence[str | Voice] | None = None,
    reference_audio: RecordingLike | None = None,
    reference_text: str | None = None,
    voices_folder: str | Path | None = None,
    trained: Sequence[str] = (),
) -> list[Voice]:
    """Return the voices of SPEAKER0, SPEAKER1, ...; none if neither a voice nor reference audio is given.

    Args:
        voice, reference_audio, reference_text, voices_folder: as for `HiggsAudio.speak`.
        trained: see `find_voice`.

    Raises:
        PromptError: a voice is unknown, a voice and reference audio are both given, or a reference text without
            reference audio.
        ParameterError: the voice or the reference text is of a wrong type.
    """
    check_string("reference_text", reference_text, optional=True)
    if reference_audio is not None:
        if voice is not None:
            got = short_repr(voice) if isinstance(voice, str) else type(voice).__name__  # not its recording
            raise PromptError(f"voice must be None if reference_audio is given, got {got}")
        return [Voice(reference_audio, reference_text)]
    if reference_text is not None and reference_text.strip():
        raise PromptError(f"reference_text must be None without reference_audio, got {short_repr(reference_text)}")
    if voice is None:
        return []
    voices = voice.split(",") if isinstance(voice, str) else voice if isinstance(voice, Sequence) else [voice]
    for item in voices:
        if not isinstance(item, str | Voice):
            raise ParameterError(f"voice must be a name, a Voice, or a list of these, got {type(item).__name__}")
    return [item if isinstance(item, Voice) else find_voice(item.strip(), voices_folder, trained) for item in voices]


def find_voice(name: str, folder: str | Path | None = None, trained: Sequence[str] = ()) -> Voice:
    """Return the voice called `name` in `folder` (see `list_voices`), or else that of the checkpoint.

    Args:
        name: of the voice.
        folder: see `list_voices`; its voices come first.
        trained: names of the voices that the checkpoint was trained on; each is its own description.

    Raises:
        PromptError: there is no such voice, or no such folder.
    """
    check_string("voice", name)
    check_strings("trained", trained)
    if name in trained and folder is None and not os.environ.get(VOICES_VARIABLE):
        return Voice(profile=name)
    voices = {description: Voice(profile=description) for description in trained} | list_voices(folder)
    if name not in voices:
        raise PromptError(
            f"voice must be in the folder of voices ({', '.join(voices) or 'empty'}), got {short_repr(name)}"
        )
    return voices[name]


def list_voices(folder: str | Path | None = None) -> dict[str, Voice]:
    """Return the voices in `folder` by name, sorted.

    Args:
        folder: by default the folder that the environment variable HIGGS_NATIVE_VOICES names.

    Raises:
        PromptError: no folder is given or it does not exist, or a file in it can't be read.
    """
    written = expanded_path("the folder of voices", os.environ.get(VOICES_VARIABLE, "") if folder is None else folder)
    if not written:
        raise PromptError(f"the folder of voices must be given, or named by {VOICES_VARIABLE}, got neither")
    folder = Path(written)
    if not os.path.isdir(folder):  # unlike Path.is_dir, it takes names of any length
        raise PromptError(f"the folder of voices must exist, got {folder}")
    voices = {}
    for path in _audio_files(folder):
        words = path.with_suffix(".txt")
        # A name that is not UTF-8 can't be printed or typed: its bytes are written as \\xff.
        name = os.fsencode(path.stem).decode(errors="backslashreplace")
        voices[name] = Voice(path, _read_text(words) if words.exists() else None)
    if (folder / "config.json").exists():
        voices |= _configured_voices(folder)
    if (folder / "profile.yaml").exists():
        profiles = _read_profiles(folder / "profile.yaml")
        voices |= {_PROFILE_PREFIX + name: Voice(profile=profile) for name, profile in profiles.items()}
    return dict(sorted(voices.items()))


def _audio_files(folder: Path) -> list[Path]:
    """Return the visible audio files, sorted, the preferred one of a name last."""
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in _AUDIO_SUFFIXES]
    except OSError as error:
        raise PromptError(f"the folder of voices can't be read, got {folder}: {error.strerror}") from None
    visible = (path for path in files if not path.name.startswith("."))
    return sorted(visible, key=lambda path: (-_AUDIO_SUFFIXES.index(path.suffix.lower()), path.name))


def _configured_voices(folder: Path) -> dict[str, Voice]:
    path = folder / "config.json"
    try:
        entries = read_json_object(path)
    except ConfigError as error:
        raise PromptError(str(error)) from None
    voices = {}
    for name, entry in entries.items():
        file, words = (entry.get("audio_file"), entry.get("transcript")) if isinstance(entry, dict) else (None, None)
        if not isinstance(file, str) or not isinstance(words, str | None):
            expected = '{"audio_file": FILE, "transcript": WORDS}'
            raise PromptError(f"{path}: entry {short_repr(name)} must be {expected}, got {short_repr(entry)}")
        check_unicode(words or "", f"{path}: transcript of {short_repr(name)}")
        voices[name] = Voice(folder / file, words)
    return voices


def _read_profiles(path: Path) -> dict[str, str]:
    """Return the descriptions in a `profile.yaml`, by name."""
    try:
        # BaseLoader keeps all scalars as text. Others turn a voice called `no` or a description `2024` into values.
        contents = yaml.load(_read_text(path), Loader=yaml.BaseLoader)
    # ValueError, OverflowError: PyYAML takes any hexadecimal number for the code of a character.
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)  # set by errors of the grammar
        location, reason = (
            (path, error) if mark is None else (f"{path}, line {mark.line + 1}", getattr(error, "problem", error))
        )
        reason = " ".join(str(reason).split())
        raise PromptError(f"{location} can't be read as YAML: {reason}; texts with ': ' or ' #' need quotes") from None
    profiles = contents.get("profiles") if isinstance(contents, dict) else None
    if not isinstance(profiles, dict):
        raise PromptError(
            f"{path} must hold `profiles:` and below it, indented, lines NAME: DESCRIPTION, got {short_repr(contents)}"
        )
    for name, description in profiles.items():
        if not name or not isinstance(description, str) or not description.strip():
            got = f"{short_repr(name)}: {short_repr(description)}"
            raise PromptError(f"{path}: profiles must be NAME: DESCRIPTION, got {got}")
        check_unicode(description, f"{path}: profile {short_repr(name)}")
    return {name: description.strip() for name, description in profiles.items()}


def _read_text(path: Path) -> str:
    try:
        return read_small_file(path, _MAX_TEXT_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise PromptError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} can't be read as UTF-8 text: {error}") from None
