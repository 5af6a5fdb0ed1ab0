"""Whole audio files: where they are written, and how they are titled."""

import sys
from pathlib import Path

from higgs_native.audio.files.formats import find_format
from higgs_native.audio.files.writing import check_output_path
from higgs_native.cli.console import notice
from higgs_native.errors import ParameterError


_MAX_TITLE = 80


def check_output(path: Path, format: str | None) -> None:
    """Raise ParameterError if audio of a format can't be written to `path`: a file, or `-` for standard output."""
    if str(path) != "-":
        check_output_path(path, format)
        return
    if format is not None:
        find_format(format)
    if sys.stdout is None:
        raise ParameterError("--out must be a file, got -, and standard output is closed")
    if sys.stdout.isatty():
        raise ParameterError("--out must be a file, or - with a pipe behind it, got -, which is the terminal")


def write_output(contents: bytes) -> None:
    """Write an audio file to standard output."""
    try:
        sys.stdout.buffer.write(contents)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        notice("The reader has closed the pipe.")
        sys.stdout = None  # Python would try to write the rest again at its end
    except OSError as error:
        raise ParameterError(f"standard output can't be written: {error.strerror}") from None


def shortened(text: str) -> str:
    """Return a text's beginning in one line, for a title."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_TITLE else line[: _MAX_TITLE - 1].rsplit(" ", 1)[0] + "…"
