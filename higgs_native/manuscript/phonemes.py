"""Texts of voices that read phonemes: a checkpoint with a dictionary gets its prompts in phonemes.

Such a checkpoint's folder holds what `higgs_native.english.reader` reads, and `voices.json`, which is
`{"NAME": {"accent": "us"}, ...}`. The first voice there is the default one.
"""

import hashlib
import lzma
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError

from higgs_native.english.guess import PHONEMES
from higgs_native.english.pronunciation import PAUSES, VERBATIM
from higgs_native.english.reader import ACCENTS, DICTIONARY_FILE, GUESSER_FILE, Reader
from higgs_native.errors import CheckpointError, ConfigError, PromptError, one_line, short_repr
from higgs_native.prompt.markup import SPEAKER_TAG
from higgs_native.prompt.voices import Voice
from higgs_native.utils.files import read_json_object, read_small_file


VOICES_FILE = "voices.json"
_MAX_FILE = 64 << 20
_SYMBOLS = f"{PHONEMES}Tg"  # T: a flap; g: as typed, for ɡ
_WORD = re.compile(f"[^\\s{PAUSES}]+")


class PhonemeReader:
    """Turns texts into phonemes, each speaker's in the accent of the voice.

    Args:
        reader: knows the pronunciations.
        accents: by name of a voice; the first one is that of other voices.
        fingerprint: tells what it reads by from other dictionaries.
    """

    def __init__(self, reader: Reader, accents: Mapping[str, str], fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._reader = reader
        self._accents = dict(accents)
        self._default = next(iter(self._accents.values()))

    @classmethod
    def from_folder(cls, folder: Path) -> "PhonemeReader | None":
        """Return the reader of a checkpoint; None if it has no dictionary.

        Raises:
            CheckpointError: a file is missing or damaged.
            ConfigError: `voices.json` names no accents.
        """
        if not (folder / DICTIONARY_FILE).is_file():
            return None
        voices = read_json_object(folder / VOICES_FILE)
        given = {name: voice.get("accent") if isinstance(voice, dict) else None for name, voice in voices.items()}
        accents = {name: accent for name, accent in given.items() if accent in ACCENTS}
        if not given or len(accents) < len(given):
            expected = f'{{NAME: {{"accent": {" or ".join(ACCENTS)}}}, ...}}'
            raise ConfigError(f"{folder / VOICES_FILE} must be {expected}, got {short_repr(voices)}")
        try:
            files = [read_small_file(folder / name, _MAX_FILE) for name in (DICTIONARY_FILE, GUESSER_FILE)]
            digest = hashlib.sha256(b"".join(hashlib.sha256(file).digest() for file in files)).hexdigest()
            return cls(Reader(folder), accents, f"{digest} {sorted(accents.items())}")
        # RuntimeError: weights of other shapes.
        except (OSError, EOFError, lzma.LZMAError, SafetensorError, ValueError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"{folder} must hold a readable dictionary, got: {one_line(str(error))}") from None

    def prepared(self, text: str) -> str:
        """Return a text with each word of its phonemes in brackets: `[[a b.]]` becomes `[[a]] [[b]].`

        Raises:
            PromptError: the voice does not know a symbol.
        """
        return VERBATIM.sub(_checked, text)

    def spell(self, text: str, voices: Sequence[Voice] = ()) -> str:
        """Return the phonemes of a text, a line for each turn; tags of speakers stay.

        Args:
            text: English. Words that can't be read (see `unreadable`) are left out.
            voices: of SPEAKER0, SPEAKER1, ...

        Raises:
            PromptError: no word can be read, or phonemes are unknown.
        """
        parts = self._parts(text, voices)
        spelled = "\n".join(f"{tag} {phonemes}".strip() for tag, phonemes, _ in parts)
        if not any(phonemes for _, phonemes, _ in parts):
            raise PromptError(f"text must hold words that the voice can read, got {short_repr(text)}")
        return spelled

    def can_read(self, text: str) -> bool:
        """Return whether a text has a word that can be read."""
        return any(phonemes for _, phonemes, _ in self._parts(text, ()))

    def unreadable(self, text: str) -> list[str]:
        """Return the words of a text that can't be read, such as those of other scripts, each once."""
        return list(dict.fromkeys(word for _, _, missing in self._parts(text, ()) for word in missing))

    def _parts(self, text: str, voices: Sequence[Voice]) -> list[tuple[str, str, list[str]]]:
        """Return the tag, the phonemes and the unreadable words of each turn."""
        text = self.prepared(text)
        turns, tag = [], ""
        begins = [*SPEAKER_TAG.finditer(text), None]
        position = 0
        for match in begins:
            said = text[position : len(text) if match is None else match.start()]
            if said.strip() or tag:
                turns.append((tag, *self._reader.phonemes(said, self._accent(tag, voices))))
            if match is not None:
                tag, position = match[0], match.end()
        return turns

    def _accent(self, tag: str, voices: Sequence[Voice]) -> str:
        speaker = int(tag[len("[SPEAKER") : -1]) if tag else 0
        profile = voices[speaker].profile if speaker < len(voices) else None
        return self._default if profile is None else self._accents.get(profile, self._default)


def whole_phonemes(pieces: Sequence[str]) -> list[str]:
    """Return the pieces of a text, joined where it was cut within `[[...]]`."""
    joined: list[str] = []
    for piece in pieces:
        if joined and joined[-1].rfind("[[") > joined[-1].rfind("]]"):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _checked(match: re.Match[str]) -> str:
    """Return phonemes in brackets, word by word. Raises PromptError if one is unknown."""
    for word in _WORD.findall(match[1]):
        for symbol in word:
            if symbol not in _SYMBOLS:
                raise PromptError(
                    f"text must hold phonemes that the voice knows in [[...]] ({PHONEMES}), "
                    f"got {short_repr(symbol)} in {short_repr(match[0])}"
                )
    return _WORD.sub(lambda word: f"[[{word[0].replace('g', 'ɡ')}]]", match[1])
