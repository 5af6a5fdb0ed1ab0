"""`higgs-native train`: fine-tunes a checkpoint on recordings."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_native.cli.console import notice
from higgs_native.errors import ParameterError


def train(
    settings: Annotated[Path, typer.Argument(help="The settings of the run: a YAML file (see docs/training.md).")],
) -> None:
    """Train an adapter (LoRA), or parts of the model, on recordings.

    The same command resumes an interrupted run.
    """
    from higgs_native.training.settings import TrainingSettings

    chosen = TrainingSettings.read(settings)
    try:
        # Imported here: only this command needs the extra.
        from higgs_native.training.trainer import Trainer
    except ModuleNotFoundError as error:
        if error.name not in ("peft", "accelerate"):
            raise
        raise ParameterError(
            f"train must have the extra `train`, got no module {error.name}: pip install 'higgs-native[train]'"
        ) from None
    Trainer(chosen, notice).run()
