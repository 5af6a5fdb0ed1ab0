"""Voices, and folders of them: recordings to clone, and profiles in words.

A folder may hold, side by side:

- `NAME.wav`, a recording, and `NAME.txt`, the words spoken in it. It may also be a .flac, .aiff, .ogg, .opus, .mp3,
  .m4a, .aac, .webm or .wma file; of several of one name, the first in this order is the voice;
- `NAME/`, a folder with several recordings of one voice, each with its words: `1.wav`, `1.txt`, `2.wav`, ...;
- `config.json`: `{"NAME": {"audio_file": "FILE", "transcript": "WORDS"}, ...}`, which overrides `NAME.txt`;
- `profile.yaml`: descriptions by name under the key `profiles`; these voices are called `profile:NAME`.

Hidden files, whose names begin with a dot, are no voices. `NAME.txt` and `profile.yaml` hold at most 256 KiB.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from higgs_native.errors import ConfigError, ParameterError, PromptError, short_repr
from higgs_native.prompt.markup import TIMING
from higgs_native.prompt.messages import AudioContent
from higgs_native.prompt.normalize import check_unicode, drop_invisible
from higgs_native.prompt.recordings import Recording, RecordingLike
from higgs_native.utils.checks import check_instance, check_string, check_strings, expanded_path
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
            around them, invisible characters (see `drop_invisible`) and tags of pauses and speeds are dropped.
        profile: a description such as `male; british accent`; None if `reference_audio` is set.
        more_recordings: of the same speaker, each a voice with reference audio and its words.

    Raises:
        PromptError: both or neither of `reference_audio` and `profile` are set, a profile has a reference text or
            recordings, or a text is no str or not valid Unicode.
        ParameterError: `more_recordings` are no voices with one recording each.
    """

    reference_audio: RecordingLike | None = None
    reference_text: str | None = None
    profile: str | None = None
    more_recordings: Sequence["Voice"] = ()

    def __post_init__(self) -> None:
        check_instance("more_recordings", self.more_recordings, Sequence)
        for voice in self.more_recordings:
            check_instance("each of more_recordings", voice, Voice)
            if len(voice.recordings) != 1:
                count = len(voice.recordings)
                raise ParameterError(f"each of more_recordings must be a voice with one recording, got {count}")
        object.__setattr__(self, "more_recordings", tuple(self.more_recordings))
        if (self.reference_audio is None) == (self.profile is None):
            got = "neither" if self.profile is None else "both"
            raise PromptError(f"a voice must have reference_audio or a profile, got {got}")
        if self.profile is not None and self.reference_text is not None:
            got = short_repr(self.reference_text)
            raise PromptError(f"reference_text of a voice with a profile must be None, got {got}")
        if self.profile is not None and self.more_recordings:
            count = len(self.more_recordings)
            raise PromptError(f"more_recordings of a voice with a profile must be empty, got {count}")
        if self.profile is not None:
            object.__setattr__(self, "profile", drop_invisible(self.profile, "profile"))
        elif self.reference_text is not None:
            words = drop_invisible(self.reference_text, "reference_text")
            words = " ".join(part.strip() for part in TIMING.split(words)).strip()
            object.__setattr__(self, "reference_text", words or None)

    @property
    def recordings(self) -> "tuple[Voice, ...]":
        """Its recordings, each as a voice with that one alone; none if it has a profile."""
        return () if self.profile is not None else (replace(self, more_recordings=()), *self.more_recordings)

    @property
    def words(self) -> str:
        """The words of its recordings, as far as they are known."""
        return " ".join(item.reference_text or "" for item in self.recordings).strip()

    @property
    def has_words(self) -> bool:
        """Whether it is recorded, and the words of each recording are known."""
        return self.profile is None and all(item.reference_text is not None for item in self.recordings)


def voice_of(recordings: Sequence[Voice]) -> Voice:
    """Return the voice of one or more recordings of the same speaker, each given as a voice."""
    return replace(recordings[0], more_recordings=recordings[1:])


def read_voice(voice: Voice) -> Voice:
    """Return the voice with its reference audio as `Recording`s; a voice with a profile is returned as it is.

    Raises:
        AudioError: the reference audio can't be read or used.
    """
    if all(isinstance(item.reference_audio, Recording) for item in voice.recordings):
        return voice
    return voice_of(
        [
            replace(item, reference_audio=Recording.read(item.reference_audio))
            for item in voice.recordings
            if item.reference_audio is not None
        ]
    )


def spelled_voice(voice: Voice, spell: Callable[[str], str]) -> Voice:
    """Return the voice with its reference texts written by `spell`."""
    if voice.reference_audio is None:
        return voice
    return voice_of(
        [
            item if item.reference_text is None else replace(item, reference_text=spell(item.reference_text))
            for item in voice.recordings
        ]
    )


def audio_content(voice: Voice) -> AudioContent:
    """Return the first recording of a voice as a part of a message."""
    if isinstance(voice.reference_audio, str | os.PathLike):
        return AudioContent(audio_url=os.fspath(voice.reference_audio))
    return AudioContent(raw_audio=voice.reference_audio)


def check_voice(voice: Voice) -> list[str]:
    """Return advice on a voice's recordings, one phrase per flaw; none for a voice with a profile.

    Of several recordings, each phrase names its own by its number.

    Raises:
        AudioError: the reference audio can't be read or used.
    """
    recordings = read_voice(voice).recordings
    return [
        f"recording {number}: {advice}" if len(recordings) > 1 else advice
        for number, item in enumerate(recordings, start=1)
        if isinstance(item.reference_audio, Recording)
        for advice in item.reference_audio.advice(item.reference_text)
    ]


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
    for within in _visible(folder, lambda path: path.is_dir() and os.access(path, os.R_OK | os.X_OK)):
        if recordings := _recordings(within):
            voices[_written(within.name)] = voice_of(list(recordings.values()))
    voices |= _recordings(folder)
    if (folder / "config.json").exists():
        voices |= _configured_voices(folder)
    if (folder / "profile.yaml").exists():
        profiles = _read_profiles(folder / "profile.yaml")
        voices |= {_PROFILE_PREFIX + name: Voice(profile=profile) for name, profile in profiles.items()}
    return dict(sorted(voices.items()))


def _recordings(folder: Path) -> dict[str, Voice]:
    """Return the recordings in a folder by name, each as a voice."""
    # The preferred one of a name comes last, and replaces the others.
    paths = sorted(
        _visible(folder, lambda path: path.suffix.lower() in _AUDIO_SUFFIXES and not path.is_dir()),
        key=lambda path: (-_AUDIO_SUFFIXES.index(path.suffix.lower()), path.name),
    )
    chosen = {path.stem: path for path in paths}
    voices = {}
    for stem, path in sorted(chosen.items()):
        words = path.with_suffix(".txt")
        voices[_written(stem)] = Voice(path, _read_text(words) if words.exists() else None)
    return voices


def _written(name: str) -> str:
    """Return the name of a file as it can be printed and typed: bytes that are no UTF-8 are written as \\xff."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _visible(folder: Path, is_wanted: Callable[[Path], bool]) -> list[Path]:
    """Return the visible files in a folder that are wanted."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".") and is_wanted(path)]
    except OSError as error:
        raise PromptError(f"the folder of voices can't be read, got {folder}: {error.strerror}") from None


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
