"""`higgs-native quantize`: a quantized checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from higgs_native.cli.options import DeviceOption
from higgs_native.errors import ParameterError, one_line
from higgs_native.utils.progress import shows_notices


def quantize(
    source: Annotated[str, typer.Argument(help="The checkpoint: a folder, or a name on the Hub.")],
    target: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    format: Annotated[
        str,
        typer.Option(
            help="fp8, int8, int4, or one format per part (attention, text_ffn, audio_ffn, heads): "
            "int4,heads=int8 is int4 for all parts but the heads. bfloat16 keeps the values, and loads as fast."
        ),
    ] = "int8",
    clip: Annotated[
        bool,
        typer.Option(
            help="Choose the scales of int8 and int4 for the minimum squared error, which clips the largest values."
        ),
    ] = True,
    calibrate: Annotated[
        bool,
        typer.Option(
            help="Let the model speak first, and round its weights for the inputs seen then (GPTQ): less error at the "
            "same size. Needs the memory of the whole model, and about a minute per layer on two cores."
        ),
    ] = False,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="The texts that --calibrate speaks: a file with one text per line, or - for standard input.",
            show_default="sentences in the package",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(help="Upload the result to this repository of the Hub (owner/name), created if missing."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository of --push-to-hub private.")] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Write a quantized checkpoint, which loads in a moment: its files are mapped into memory."""
    from higgs_native.calibration import DEFAULT_TEXTS, calibrated_model, check_calibration
    from higgs_native.checkpoint import publishing
    from higgs_native.checkpoint.files import resolve_folder
    from higgs_native.checkpoint.packed import check_target, write_packed
    from higgs_native.checkpoint.quantization import Quantization
    from higgs_native.cli.inputs import read_file
    from higgs_native.model.transformer import LanguageModel
    from higgs_native.ops.device import checked_device

    quantization = replace(Quantization.parse(format), clip=clip)
    if texts is not None and not calibrate:
        raise ParameterError(f"--texts must be given with --calibrate, got {texts} alone")
    if private and push_to_hub is None:
        raise ParameterError("--private must be given with --push-to-hub, got it alone")
    check_target(target)
    torch_device = checked_device(device)
    lines: list[str] = []
    if calibrate:
        lines = [line for line in read_file(str(texts or DEFAULT_TEXTS)).splitlines() if line.strip()]
        check_calibration(quantization, lines)
    if push_to_hub is not None:
        publishing.make_repository(push_to_hub, private)
    folder = resolve_folder(source)
    if calibrate:
        model = calibrated_model(folder, quantization, lines, torch_device, progress=shows_notices())
    else:
        model = LanguageModel.from_pretrained(folder, torch_device, quantization=quantization)
    write_packed(model.named_weights(), model.quantization, folder, target, calibrate)
    print(f"{one_line(str(target))}: {size_text(model.nbytes)} of weights")
    if push_to_hub is not None:
        print(publishing.push_to_hub(target, push_to_hub, private))


def size_text(nbytes: int) -> str:
    """Return a number of bytes in a fitting unit."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes / 1e3:.2f} kB"
