"""The program: its commands, errors and exit codes.

torch takes seconds to import, so commands import what they compute with only when they run. Help, shell completion and
errors of usage come at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from higgs_native import __version__
from higgs_native.cli.commands.info import info
from higgs_native.cli.commands.merge import merge
from higgs_native.cli.commands.quantize import quantize
from higgs_native.cli.commands.read import read
from higgs_native.cli.commands.serve import serve
from higgs_native.cli.commands.speak import speak
from higgs_native.cli.commands.train import train
from higgs_native.cli.commands.voices import voices
from higgs_native.cli.console import ending_by_signals, flush_output, prepare_streams, set_verbosity, showing_logs
from higgs_native.errors import ParameterError, exit_on_bad_input, exit_with_error
from higgs_native.utils.variables import TRACEBACK_VARIABLE


app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},  # narrower where the terminal is
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, help="Show what is loaded, from where and how fast; -vv: details."
        ),
    ] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only, no notices, no bars.")] = False,
) -> None:
    """Text-to-speech with Higgs Audio V2 and Higgs TTS 3."""
    if verbose and quiet:
        raise ParameterError("-v and -q must not be given together")
    set_verbosity(-1 if quiet else verbose)


command: Callable[..., None]
for command in (speak, read):
    # A text such as "-5 degrees" is no option; `TextArgument` refuses what looks like one.
    app.command(context_settings={"ignore_unknown_options": True})(command)
for command in (serve, quantize, train, merge, voices, info):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: with 0, 1 on an unexpected error, 2 on bad input, 128 + n on signal n.

    An error is one line on standard error.

    Args:
        arguments: by default those of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    prepare_streams()
    with ending_by_signals(), showing_logs():
        try:
            with exit_on_bad_input():
                status = app(arguments, standalone_mode=False)
                flush_output()
        except Exception as error:
            if hasattr(error, "format_message"):  # typer's errors, whose base has no public name in every release
                exit_with_error(f"{error.format_message()} (--help shows what there is)", 2)
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            exit_with_error(f"{type(error).__name__}: {error} ({TRACEBACK_VARIABLE}=1 shows where)", 1)
        sys.exit(status or 0)
