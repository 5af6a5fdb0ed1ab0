"""Voices in a folder: recordings to clone, and descriptions in words.

A folder may hold, side by side:

- `NAME.wav` (or .flac, .ogg, .mp3), a recording, and `NAME.txt`, the words that are spoken in it;
- `config.json`: `{"NAME": {"audio_file": "FILE", "transcript": "WORDS"}, ...}`, which goes before `NAME.txt`;
- `profile.yaml`: under the key `profiles`, descriptions by name. They are called `profile:NAME`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from higgs_native.errors import AudioError, ConfigError, ParameterError, PromptError
from higgs_native.prompt.recordings import Recording
from higgs_native.utils.checks import check_string
from higgs_native.utils.files import read_json_object


VOICES_VARIABLE = "HIGGS_NATIVE_VOICES"

_RECORDINGS = (".wav", ".flac", ".ogg", ".mp3")
_PROFILE_PREFIX = "profile:"


@dataclass(frozen=True)
class Voice:
    """How one speaker should sound: like a recording, or as described.

    Attributes:
        reference_audio: an audio file, `(samples, sampling rate in Hz)`, or a `Recording`; None if `profile` is set.
        reference_text: the words spoken in it. Without them the recording stands in the scene, not in its own turn.
        profile: a description such as `male; british accent`, where there is no recording.

    Raises:
        PromptError: it holds neither a recording nor a description, or both, or words without a recording.
    """

    reference_audio: str | os.PathLike | tuple[np.ndarray, int] | Recording | None = None
    reference_text: str | None = None
    profile: str | None = None

    def __post_init__(self) -> None:
        if (self.reference_audio is None) == (self.profile is None):
            raise PromptError("a voice needs either reference audio or a profile")
        if self.profile is not None and self.reference_text is not None:
            raise PromptError("a voice has a reference text, but no reference audio")


def list_voices(folder: str | Path | None = None) -> dict[str, Voice]:
    """Return the voices in `folder` by name, sorted.

    Args:
        folder: the folder; by default the one that the environment variable HIGGS_NATIVE_VOICES names.

    Raises:
        PromptError: no folder is named or it does not exist, or a file in it can't be read.
    """
    folder = folder or os.environ.get(VOICES_VARIABLE)
    if not folder:
        raise PromptError(f"no folder of voices is given; name one, or set {VOICES_VARIABLE}")
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise PromptError(f"the folder of voices {folder} does not exist")
    voices = {}
    for path in folder.iterdir():
        if path.suffix.lower() in _RECORDINGS:
            words = path.with_suffix(".txt")
            voices[path.stem] = Voice(path, (_read(words).strip() or None) if words.is_file() else None)
    if (folder / "config.json").is_file():
        voices |= _configured_voices(folder)
    if (folder / "profile.yaml").is_file():
        profiles = _profiles(folder / "profile.yaml")
        voices |= {_PROFILE_PREFIX + name: Voice(profile=profile) for name, profile in profiles.items()}
    return dict(sorted(voices.items()))


def find_voice(name: str, folder: str | Path | None = None) -> Voice:
    """Return the voice called `name` in `folder` (as in `list_voices`).

    Raises:
        PromptError: there is no such voice, or no such folder.
    """
    voices = list_voices(folder)
    if name not in voices:
        available = ", ".join(voices) if voices else "none"
        raise PromptError(f"unknown voice {name!r}; available: {available}")
    return voices[name]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} is not readable as UTF-8 text: {error}") from None


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
            raise PromptError(f"{path}: expected an audio_file and a transcript for {name!r}")
        voices[name] = Voice(folder / file, (words or "").strip() or None)
    return voices


def _profiles(path: Path) -> dict[str, str]:
    try:
        # All scalars are texts: YAML would take a voice called `no`, or a description `2024`, for something else.
        contents = yaml.load(_read(path), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)  # where YAML's grammar is broken
        place, reason = (path, error) if mark is None else (f"{path}, line {mark.line + 1}", error.problem)
        reason = " ".join(str(reason).split())
        raise PromptError(f"{place}: no YAML: {reason}; expected quotes around a text with ': ' or ' #'") from None
    profiles = contents.get("profiles") if isinstance(contents, dict) else None
    if not isinstance(profiles, dict):
        raise PromptError(f"{path}: expected a line `profiles:` and below it, indented, lines NAME: DESCRIPTION")
    for name, description in profiles.items():
        if not name or not isinstance(description, str) or not description.strip():
            raise PromptError(f"{path}: expected a description in words for {name!r}")
    return {name: description.strip() for name, description in profiles.items()}


def choose_voices(
    voice: str | Voice | Sequence[str | Voice] | None = None,
    reference_audio: str | Path | tuple[np.ndarray, int] | Recording | None = None,
    reference_text: str | None = None,
    voices_folder: str | Path | None = None,
) -> list[Voice]:
    """Return the voices of SPEAKER0, SPEAKER1, ...; none where neither a voice nor reference audio is given.

    Args: as for `HiggsAudio.speak`.

    Raises:
        PromptError: a voice is unknown, both a voice and reference audio are given, or a text without reference audio.
        ParameterError: the voice or the text is of a wrong type.
    """
    check_string("reference_text", reference_text, optional=True)
    reference_text = (reference_text or "").strip() or None
    if reference_audio is not None:
        if voice is not None:
            raise PromptError("both a voice and reference audio are given; expected one of them")
        return [Voice(reference_audio, reference_text)]
    if reference_text is not None:
        raise PromptError("a reference text is given without reference audio")
    if voice is None:
        return []
    voices = voice.split(",") if isinstance(voice, str) else voice if isinstance(voice, Sequence) else [voice]
    for item in voices:
        if not isinstance(item, str | Voice):
            raise ParameterError(f"voice must be a name, a Voice, or a list of these, got a {type(item).__name__}")
    return [item if isinstance(item, Voice) else find_voice(item.strip(), voices_folder) for item in voices]


def read_voice(voice: Voice) -> Voice:
    """Return the voice with its reference audio as a `Recording`; a voice with a profile is returned as it is.

    Raises:
        AudioError: the reference audio can't be read or used.
    """
    if voice.profile is not None:
        return voice
    match voice.reference_audio:
        case Recording():
            return voice
        case (samples, sampling_rate):
            recording = Recording(samples, sampling_rate)
        case str() | os.PathLike() as path:
            recording = Recording.from_file(path)
        case other:
            raise AudioError(
                "reference audio must be a file's path, (samples, sampling rate) or a Recording, "
                f"got a {type(other).__name__}"
            )
    return replace(voice, reference_audio=recording)


def check_voice(voice: Voice) -> list[str]:
    """Return advice on a voice's reference audio, one phrase per flaw; none for a voice with a profile.

    Raises:
        AudioError: the reference audio can't be read or used.
    """
    if voice.profile is not None:
        return []
    return read_voice(voice).reference_audio.advice(voice.reference_text)
