"""The errors that users can mend. Each says in one line what is wrong and what would be right."""

import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


MAX_MESSAGE = 500
"""Maximum length of a message, in characters."""


class HiggsNativeError(Exception):
    """Base of the errors that this package raises on bad input. The message becomes `one_line`."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class ConfigError(HiggsNativeError, ValueError):
    """A configuration file is missing, unreadable, or describes another model."""


class CheckpointError(HiggsNativeError, ValueError):
    """A checkpoint's files are missing or damaged, or its tensors don't fit its configuration."""


class AudioError(HiggsNativeError, ValueError):
    """Audio that can't be read, or that can't serve as a reference."""


class PromptError(HiggsNativeError, ValueError):
    """A prompt that can't be built or that doesn't fit the model."""


class ParameterError(HiggsNativeError, ValueError):
    """A generation parameter outside its range."""


class GenerationError(HiggsNativeError, RuntimeError):
    """The model did not do what it was asked to, with any of the seeds that were tried."""


@contextmanager
def exit_on_bad_input(*others: type[Exception]) -> Iterator[None]:
    """End the program at an error that bad input causes, with one line on standard error and exit status 2.

        @exit_on_bad_input()
        def main() -> None:
            HiggsAudio.from_pretrained("no/such/model")

    Args:
        others: errors that bad input causes in this program, beside HiggsNativeError.
    """
    causes: tuple[type[Exception], ...] = (HiggsNativeError, *others)
    try:
        yield
    except causes as error:
        exit_with_error(error, 2)


def exit_with_error(error: Exception | str, status: int) -> NoReturn:
    """Print an error as one line on standard error, and exit with `status`."""
    print("error:", one_line(str(error)), file=sys.stderr)
    sys.exit(status)


def one_line(text: str, max_length: int = MAX_MESSAGE) -> str:
    """Return a text that is safe to print: names of files and values from files may hold anything.

    Line breaks become spaces, characters that don't print (control sequences, surrogates) escapes. The middle of a
    longer text is cut out, since messages end in what would be right.
    """
    if len(text) > max_length:
        half = (max_length - 3) // 2
        text = f"{text[:half]}...{text[-half:]}"
    line = " ".join(text.splitlines())
    if line.isprintable():
        return line
    escaped = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)
    return escaped if len(escaped) <= max_length else one_line(escaped, max_length)


def short_repr(value: object) -> str:
    """Return `repr(value)` for a message, shortened. It takes little time for values of any size."""
    return _ShortRepr().repr(value)


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxlong = self.maxother = 50

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value) if len(value) <= 20 else f"{len(value)} bytes"  # those are a file's contents

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write out integers of over 4,300 digits.
        return super().repr_int(value, level) if value.bit_length() < 1000 else f"{hex(value)[:12]}..."
