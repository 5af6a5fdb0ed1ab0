"""`higgs-native merge`: a checkpoint with an adapter in its weights."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_native.errors import one_line


def merge(
    source: Annotated[str, typer.Argument(help="The checkpoint: a folder, or a name on the Hub.")],
    adapter: Annotated[Path, typer.Argument(help="The adapter: a folder in PEFT's format (LoRA).")],
    target: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
) -> None:
    """Write a checkpoint with an adapter merged into its weights, in the layout of the checkpoint."""
    from higgs_native.checkpoint.adapter import Adapter
    from higgs_native.checkpoint.config import HiggsAudioConfig
    from higgs_native.checkpoint.files import resolve_folder
    from higgs_native.checkpoint.language_model import LanguageModelFiles
    from higgs_native.checkpoint.packed import check_target
    from higgs_native.checkpoint.rewriting import write_rewritten

    check_target(target)
    loaded = Adapter.from_pretrained(adapter)
    folder = resolve_folder(source)
    config = HiggsAudioConfig.from_pretrained(folder)
    loaded.check_base(LanguageModelFiles(folder, config), config)
    write_rewritten(folder, target, loaded.added)
    print(f"{one_line(str(target))}: {len(loaded.factors)} tensors changed")
