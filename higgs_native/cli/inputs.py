"""Inputs of the commands: texts, voices, the engine."""

import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

from higgs_native.audio.quality import VoiceWarning
from higgs_native.checkpoint.adapter import Adapter
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.files import resolve_folder
from higgs_native.cli.console import notice
from higgs_native.cli.options import MODEL_NAME
from higgs_native.errors import ParameterError, PromptError, short_repr
from higgs_native.generation.conventions import behavior_of
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.pipeline import EMBEDDED_VOICE, HiggsAudio, read_trained_voices
from higgs_native.prompt.recordings import Recording
from higgs_native.prompt.voices import Voice, check_voice, choose_voices, read_voice, voice_of


_MAX_TEXT_BYTES = 64 << 20
# A text that looks like this is taken for the name of a missing file: nobody writes it to have it spoken.
_FILE_NAME = re.compile(r"\S+\.(?:txt|text|md|rst|html?|xml|json|srt|epub|pdf|docx?|odt|rtf)|(?:~|\.{0,2})/\S+")


def checked_voices(
    voice: str | None,
    reference_audio: Sequence[Path] | None,
    reference_text: Sequence[str] | None,
    voices_folder: Path | None,
    model: str | None,
    speakers: Sequence[str] = (),
) -> list[Voice]:
    """Read the chosen voices, and print advice on poor recordings before weights are loaded.

    Several recordings are those of one speaker, each with its text. `speakers` are those of an adapter, which are
    voices, too.
    """
    audio, texts = reference_audio or (), reference_text or ()
    if (len(audio) > 1 or len(texts) > 1) and len(audio) != len(texts):
        raise ParameterError(
            f"--reference-text must be given once per --reference-audio, got {len(texts)} for {len(audio)}"
        )
    folder = EMBEDDED_VOICE if model is None else Path(os.path.expanduser(model))
    # A checkpoint that is on the Hub has none: it was not written by a recipe of this package.
    trained = read_trained_voices(folder) if (folder / "config.json").is_file() else ()
    names = choose_voices(
        voice, next(iter(audio), None), next(iter(texts), None), voices_folder, (*speakers, *trained)
    )
    if audio:
        names = [voice_of([*names, *map(Voice, audio[1:], texts[1:])])]
    chosen = [read_voice(item) for item in names]
    for item in (item for voice in chosen for item in voice.recordings):
        if isinstance(item.reference_audio, Recording):
            for advice in check_voice(item):
                notice(f"warning: {item.reference_audio.name}: {advice}")
    warnings.filterwarnings("ignore", category=VoiceWarning)  # said above
    return chosen


def parsed_adapters(options: list[str] | None) -> dict[str, Path]:
    """Return the folders of adapters, given as NAME=FOLDER, by their names."""
    folders: dict[str, Path] = {}
    for option in options or ():
        name, separator, folder = option.partition("=")
        if not separator or not name.strip() or not folder:
            raise ParameterError(f"--adapter must be NAME=FOLDER, got {short_repr(option)}")
        if name in folders:
            raise ParameterError(f"--adapter must have a new name each, got {short_repr(name)} twice")
        folders[name] = Path(folder)
    return folders


@dataclass(frozen=True)
class ChosenAdapter:
    """The adapter that speaks, and who speaks.

    Attributes:
        name: of the adapter; None: none.
        voice: the option --voice, if it does not name the adapter.
        speakers: of the adapter.
    """

    name: str | None
    voice: str | None
    speakers: tuple[str, ...]

    @classmethod
    def of(cls, voice: str | None, folders: Mapping[str, Path]) -> Self:
        """Choose the one that --voice names, or the only one."""
        if voice not in folders and len(folders) > 1:
            raise ParameterError(f"--voice must be one of the adapters {', '.join(folders)}, got {short_repr(voice)}")
        name = voice if voice in folders else next(iter(folders), None)
        speakers = () if name is None else Adapter.from_pretrained(folders[name]).speakers
        return cls(name, None if voice == name else voice, speakers)


def sampling_params(model: str | None, **options: Any) -> SamplingParams:
    """Return the sampling parameters: the options that are given, and the defaults of the model for the others.

    The model is fetched if it is on the Hub, but no weights are loaded.
    """
    folder = EMBEDDED_VOICE if model is None else resolve_folder(model)
    defaults = behavior_of(HiggsAudioConfig.from_pretrained(folder).convention).default_sampling
    given: Any = {name: value for name, value in options.items() if value is not None}
    return SamplingParams.of(None, given, defaults)


def load_engine(
    model: str | None,
    audio_tokenizer: str | None,
    device: str,
    dtype: str,
    quantization: str | None,
    adapters: Mapping[str, Path] | None = None,
) -> HiggsAudio:
    notice_embedded_voice(model)
    return HiggsAudio.from_pretrained(
        model,
        device=device,
        dtype=dtype,
        audio_tokenizer=audio_tokenizer,
        quantization=quantization,
        adapters=adapters,
    )


def notice_unreadable(engine: HiggsAudio, text: str) -> None:
    """Name the words of a text that the voice can't read."""
    if words := engine.unreadable_words(text):
        notice(f"warning: the voice can't read, and leaves out: {', '.join(words)}")


def notice_embedded_voice(model: str | None) -> None:
    """Tell who speaks if no model is given."""
    if model is None:
        notice("No --model is given: the embedded demonstration voice speaks. It reads English only.")
        notice(f"For the published model: --model {MODEL_NAME}")


def read_text(text: str) -> str:
    """The text to speak: `text` itself, or the contents of the file that it names, or of standard input.

    A word that happens to be the name of a folder is spoken.
    """
    is_folder = os.path.isdir(text)
    if text == "-" or (os.path.exists(text) and not is_folder):
        return read_file(text)
    if not _FILE_NAME.fullmatch(text):
        return text
    if is_folder:
        raise PromptError(f"text must be a text, an existing text file, or -, got the folder {text}")
    raise PromptError(f"text must be a text, an existing text file, or -, got the name of a missing file: {text}")


def read_file(name: str) -> str:
    """The contents of a text file, or of standard input for `-`."""
    if name == "-" and sys.stdin is None:
        raise PromptError("text must be given, got -, and standard input is closed")
    try:
        # A pipe can be read, too. Some, and some devices, never end.
        with nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as file:
            name = "standard input" if name == "-" else name
            data = file.read(_MAX_TEXT_BYTES + 1)
        if len(data) > _MAX_TEXT_BYTES:
            raise PromptError(f"text must be at most {_MAX_TEXT_BYTES >> 20} MiB, got more from {name}")
        decoded = data.decode("utf-8-sig")
    except OSError as error:
        raise PromptError(f"text must be plain UTF-8, got {name}, which can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"text must be plain UTF-8, got {name}, which is not UTF-8 at byte {error.start}") from None
    if "\0" in decoded:  # UTF-16 of plain letters is valid UTF-8
        raise PromptError(f"text must be plain UTF-8, got {name}, which holds zero bytes, so it is UTF-16 or no text")
    return decoded
