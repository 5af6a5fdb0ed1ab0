"""The audio output of commands: whole files, and raw audio while it is generated."""

import errno
import io
import os
import sys
from pathlib import Path

from higgs_native.audio.files.formats import find_format
from higgs_native.audio.files.writing import check_output_path
from higgs_native.audio.samples import pcm_samples
from higgs_native.cli.console import notice
from higgs_native.errors import AudioError, ParameterError
from higgs_native.streaming import SpeechStream
from higgs_native.utils.files import check_file_can_be_made


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


def check_stream_path(path: Path) -> None:
    """Raise ParameterError if raw audio can't be written to `path`: a file, a named pipe, or `-`."""
    if str(path) == "-":
        if sys.stdout is None:
            raise ParameterError("--stream must be a file or a named pipe, got -, and standard output is closed")
        try:
            sys.stdout.fileno()
        except OSError:  # as in a notebook
            raise ParameterError("--stream must be a file, got -, and standard output is none") from None
        return
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise ParameterError(f"--stream must be a file, a named pipe, or -, got {path}")
        if not path.exists():
            check_file_can_be_made(path)
        elif path.is_file():
            path.open("ab").close()  # its contents are kept until there is audio
        elif not os.access(path, os.W_OK):  # opening a pipe would wait for its reader
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ParameterError(f"{path} can't be written: {error.strerror}") from None


def _opened_stream(path: Path) -> io.RawIOBase:
    if str(path) == "-":
        return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    try:
        return path.open("wb", buffering=0)
    except OSError as error:
        raise ParameterError(f"{path} can't be written: {error.strerror}") from None


def write_stream(speech: SpeechStream, path: Path) -> None:
    """Write the chunks of `speech` as they come, as 16-bit PCM, to a file, or to standard output if `path` is `-`."""
    written, closed = 0, False
    with _opened_stream(path) as file:
        if sys.platform != "win32":
            os.set_blocking(file.fileno(), True)
        for chunk in speech:
            rest = memoryview(pcm_samples(chunk.samples).tobytes())
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except BrokenPipeError:
                notice("The reader has closed the pipe.")
                closed = True
                break
            except OSError as error:
                raise ParameterError(f"{path} can't be written: {error.strerror}") from None
            written += len(chunk.samples)
    if written == 0 and not closed:
        raise AudioError("the model made no audio to write")
    report = f"{path}: {written / speech.sampling_rate:.2f} s of audio"
    if speech.first_audio_seconds is not None:
        report += f", the first after {speech.first_audio_seconds:.2f} s"
    if speech.underrun_margin_seconds is not None:
        report += f", underrun margin {speech.underrun_margin_seconds:.2f} s (below zero, playback would pause)"
    notice(f"{report}, seed {speech.seed}")
