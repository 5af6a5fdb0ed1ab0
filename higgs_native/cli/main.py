"""The program: its commands, signals, errors and exit codes."""

import os
import signal
import sys
import threading
from collections.abc import Sequence

import typer

from higgs_native.cli.info import info
from higgs_native.cli.quantize import quantize
from higgs_native.cli.read import read
from higgs_native.cli.serve import serve
from higgs_native.cli.speak import speak
from higgs_native.cli.voices import voices
from higgs_native.errors import exit_on_bad_input, exit_with_error
from higgs_native.ops import check_instruction_set


app = typer.Typer(
    help="Higgs Audio V2 text-to-speech.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


for command in (speak, read, serve, quantize, voices, info):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: with 0, 1 on an unexpected error, 2 on bad input, 143 on SIGTERM.

    An error is one line on standard error.

    Args:
        arguments: by default those of the process.
    """
    if threading.current_thread() is threading.main_thread():  # no other may set a handler
        # SIGTERM becomes an exception, as Ctrl-C is one, so that half-written files are removed.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with exit_on_bad_input():
            check_instruction_set()
            app(arguments)
    except Exception as error:
        if os.environ.get("HIGGS_NATIVE_TRACEBACK"):
            raise
        exit_with_error(f"{type(error).__name__}: {error} (HIGGS_NATIVE_TRACEBACK=1 shows where)", 1)
