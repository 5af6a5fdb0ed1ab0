"""The errors that users can mend. Each says in one line what is wrong and what would be right."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class HiggsNativeError(Exception):
    """Base of the errors that this package raises on bad input."""


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
    try:
        yield
    except (HiggsNativeError, *others) as error:
        exit_with_error(error, 2)


def exit_with_error(error: Exception | str, status: int) -> NoReturn:
    """Print an error as one line on standard error, and exit with `status`."""
    print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
    sys.exit(status)
