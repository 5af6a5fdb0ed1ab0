"""`higgs-native info`: what is built in, and what this machine supports; or what an adapter is."""

from pathlib import Path
from typing import Annotated, Any

import typer

from higgs_native.cli.commands.quantize import size_text
from higgs_native.errors import one_line


def info(
    adapter: Annotated[
        Path | None, typer.Argument(help="Describe this adapter instead: a folder in PEFT's format (LoRA).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The adapter's base: a folder, or a name on the Hub. Default: as it names it.")
    ] = None,
) -> None:
    """Show what is built in, what this machine supports, and what will be used; or what an adapter is."""
    rows = _installation() if adapter is None else _adapter(adapter, model)
    for name, value in rows.items():
        print(f"{name + ':':<23}{value}")


def _adapter(folder: Path, model: str | None) -> dict[str, Any]:
    """Describe an adapter, and the memory that it takes beside the weights of its base."""
    import torch

    from higgs_native.checkpoint.adapter import Adapter
    from higgs_native.checkpoint.config import HiggsAudioConfig
    from higgs_native.checkpoint.files import resolve_folder
    from higgs_native.model.low_rank import PackedAdapter

    adapter = Adapter.from_pretrained(folder)
    factors = [factor for pair in adapter.factors.values() for factor in pair]
    targets = sorted({".".join(name.split(".")[-3:-1]) for name in adapter.factors})
    rows = {
        "adapter": one_line(str(folder)),
        "base": one_line(model or adapter.base_name or "not named"),
        "speakers": one_line(", ".join(adapter.speakers)) or "not named",
        "rank": len(adapter.factors[min(adapter.factors)][0]),
        "targets": f"{', '.join(targets)} ({len(adapter.factors)} matrices)",
        "parameters": f"{sum(factor.numel() for factor in factors):,}",
        "on disk": size_text(sum(factor.nbytes for factor in factors)),
    }
    # Its shapes decide how factors are packed. What is not there is fetched only if the caller names it.
    if model is None and not (adapter.base_name and Path(adapter.base_name).is_dir()):
        return rows | {"in memory": "depends on the base: give --model"}
    config = HiggsAudioConfig.from_pretrained(resolve_folder(model or adapter.base_name))
    adapter.check_fit(config, has_text_head=True, base=None)
    packed = PackedAdapter.pack("", adapter, config, torch.bfloat16, torch.device("cpu"))
    return rows | {"in memory": f"{size_text(packed.nbytes)} in bfloat16"}


def _installation() -> dict[str, Any]:
    """Describe what is built in, what this machine supports, and what will be used."""
    import torch

    from higgs_native import __version__
    from higgs_native._C import build_info, cpu_quota
    from higgs_native.ops.device import checked_device

    device = checked_device("auto")
    build = build_info()
    # As many as the CPU kernels use.
    threads = min(torch.get_num_threads(), cpu_quota("") or torch.get_num_threads())
    cpu = f"cpu, {build['cpu_instruction_set']} kernels, {threads} threads"
    cuda = "none" if not build["cuda"] else f"{build['cuda_version']} for {build['cuda_architectures']}"
    return {
        "higgs_native": __version__,
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
