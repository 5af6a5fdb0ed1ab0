"""Voices in a folder: recordings to clone, and descriptions in words.

A folder may hold, side by side:

- `NAME.wav` (or .flac, .ogg, .mp3), a recording, and `NAME.txt`, the words that are spoken in it;
- `config.json`: `{"NAME": {"audio_file": "FILE", "transcript": "WORDS"}, ...}`, which goes before `NAME.txt`;
- `profile.yaml`: descriptions, each one line `NAME: DESCRIPTION`, indented below a line `profiles:`. They are called
  `profile:NAME`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_native.config import read_json_object
from higgs_native.errors import ConfigError, PromptError


VOICES_VARIABLE = "HIGGS_NATIVE_VOICES"

_RECORDINGS = (".wav", ".flac", ".ogg", ".mp3")
_PROFILE_PREFIX = "profile:"


@dataclass(frozen=True)
class Voice:
    """How one speaker should sound: like a recording, or as described.

    Attributes:
        reference_audio: a recording: an audio file, or `(samples, sampling rate in Hz)`; None where `profile` is set.
        reference_text: the words spoken in it. Without them the recording stands in the scene, not in its own turn.
        profile: a description such as `male; british accent`, where there is no recording.

    Raises:
        PromptError: it holds neither a recording nor a description, or both, or words without a recording.
    """

    reference_audio: Any = None
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
    """Read the one-line descriptions below `profiles:`, and refuse what else YAML can say there."""
    profiles = {}
    inside = False
    for number, line in enumerate(_read(path).splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if not line[0].isspace():
            inside = entry == "profiles:"
            continue
        if not inside:
            continue
        name, separator, description = (part.strip() for part in entry.partition(": "))
        quoted = len(description) > 1 and description[0] in "\"'" and description[-1] == description[0]
        if quoted:
            description = description[1:-1]
        if not separator or not name or not description or (description[0] in "|>&*[{\"'!" and not quoted):
            raise PromptError(f"{path}, line {number}: expected one line NAME: DESCRIPTION")
        profiles[name] = description if quoted else description.partition(" #")[0].rstrip()
    return profiles
