"""Inputs of the commands: texts, voices, the engine."""

import os
import re
import sys
import warnings
from pathlib import Path

from higgs_native.audio.quality import VoiceWarning
from higgs_native.cli.options import MODEL_NAME
from higgs_native.errors import PromptError, one_line
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.voices import Voice, check_voice, choose_voices, read_voice


# A text that looks like this is taken for the name of a missing file: nobody writes it to have it spoken.
_FILE_NAME = re.compile(r"\S+\.(?:txt|text|md|rst|html?|xml|json|srt|epub|pdf|docx?|odt|rtf)|(?:~|\.{0,2})/\S+")


def checked_voices(
    voice: str | None, reference_audio: Path | None, reference_text: str | None, voices_folder: Path | None
) -> list[Voice]:
    """Read the chosen voices, and print advice on poor recordings before weights are loaded."""
    chosen = [read_voice(item) for item in choose_voices(voice, reference_audio, reference_text, voices_folder)]
    for item in chosen:
        for advice in check_voice(item):
            print(one_line(f"warning: {item.reference_audio.name}: {advice}"), file=sys.stderr)
    warnings.filterwarnings("ignore", category=VoiceWarning)  # said above
    return chosen


def load_engine(
    model: str | None, audio_tokenizer: str | None, device: str, dtype: str, quantization: str | None
) -> HiggsAudio:
    if model is None:
        print(
            "No --model is given: the embedded demonstration voice speaks, which knows about 1,500 English words.\n"
            f"For the published model: --model {MODEL_NAME}",
            file=sys.stderr,
        )
    return HiggsAudio.from_pretrained(
        model, device=device, dtype=dtype, audio_tokenizer=audio_tokenizer, quantization=quantization
    )


def read_text(text: str) -> str:
    """The text to speak: `text` itself, or the contents of the file that it names, or of standard input."""
    if text == "-" or os.path.exists(text):
        return read_file(text)
    if _FILE_NAME.fullmatch(text):
        raise PromptError(f"text must be a text, an existing text file, or -, got the name of a missing file: {text}")
    return text


def read_file(name: str) -> str:
    """The contents of a text file, or of standard input for `-`."""
    try:
        # A pipe can be read, too.
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        name = "standard input" if name == "-" else name
        decoded = data.decode("utf-8-sig")
    except OSError as error:
        raise PromptError(f"text must be plain UTF-8, got {name}, which can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"text must be plain UTF-8, got {name}, which is not UTF-8 at byte {error.start}") from None
    if "\0" in decoded:  # UTF-16 of plain letters is valid UTF-8
        raise PromptError(f"text must be plain UTF-8, got {name}, which holds zero bytes, so it is UTF-16 or no text")
    return decoded
