"""`higgs-native voices`: the voices in a folder."""

import os
from pathlib import Path
from typing import Annotated

import typer

from higgs_native.cli.console import notice
from higgs_native.errors import AudioError, one_line
from higgs_native.utils.variables import VOICES_VARIABLE


def voices(
    folder: Annotated[
        Path | None, typer.Argument(help="The folder of voices.", show_default=f"${VOICES_VARIABLE}")
    ] = None,
) -> None:
    """List the voices in a folder: the name, and the recording's words or the description.

    Indented lines report problems of the recording.
    """
    from higgs_native.prompt.voices import check_voice, list_voices

    listed = list_voices(folder)
    if not listed:
        source = folder or os.environ[VOICES_VARIABLE]
        notice(f"{source} holds no voices: neither recordings nor config.json nor profile.yaml")
    unusable = []
    for name, voice in listed.items():
        print(f"{one_line(name)}\t{one_line(voice.profile or voice.words)}")
        try:
            advice = check_voice(voice)
        except AudioError as error:
            advice = [f"it can't be used: {error}"]
            unusable.append(name)
        for line in advice:
            print(f"    {line}")
    if unusable:
        raise AudioError(f"{len(unusable)} of {len(listed)} voices can't be used: {', '.join(unusable)}")
