"""`higgs-native voices` and `higgs-native info`: lists for people."""

import os
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

import higgs_native
from higgs_native._C import build_info
from higgs_native.errors import AudioError
from higgs_native.ops.device import checked_device
from higgs_native.prompt.voices import VOICES_VARIABLE, check_voice, list_voices


def voices(
    folder: Annotated[
        Path | None, typer.Argument(help="The folder of voices.", show_default=f"${VOICES_VARIABLE}")
    ] = None,
) -> None:
    """List the voices in a folder: the name, and the recording's words or the description.

    Lines below a name say what is wrong with its recording, and what is expected.
    """
    listed = list_voices(folder)
    if not listed:
        place = folder or os.environ[VOICES_VARIABLE]
        print(f"{place} holds no voices: neither recordings nor config.json nor profile.yaml", file=sys.stderr)
    unusable = []
    for name, voice in listed.items():
        print(f"{name}\t{voice.profile or voice.reference_text or ''}")
        try:
            advice = check_voice(voice)
        except AudioError as error:
            advice = [f"it can't be used: {error}"]
            unusable.append(name)
        for line in advice:
            print(f"    {line}")
    if unusable:
        raise AudioError(f"{len(unusable)} of {len(listed)} voices can't be used: {', '.join(unusable)}")


def info() -> None:
    """Show what is built in, what this machine supports, and what will be used."""
    build, device = build_info(), checked_device("auto")
    cpu = f"cpu, {build['cpu_instruction_set']} kernels, {torch.get_num_threads()} threads"
    cuda = "none" if not build["cuda"] else f"{build['cuda_version']} for {build['cuda_architectures']}"
    rows = {
        "higgs_native": higgs_native.__version__,
        "built against torch": build["torch_built_against"],
        "built by": build["compiler"],
        "CPU kernels built in": ", ".join(build["cpu_instruction_sets"]),
        "CUDA kernels built in": cuda,
        "torch": torch.__version__,
        "this CPU runs": ", ".join(build["cpu_instruction_sets_supported"]),
        "this CPU has": build["cpu_features"],
        "GPUs": torch.cuda.device_count() or "none",
        "will be used": cpu if device.type == "cpu" else f"{device}, {torch.cuda.get_device_name(device)}",
    }
    for name, value in rows.items():
        print(f"{name + ':':<23}{value}")
