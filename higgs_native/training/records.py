"""The records of a run: a line of JSON per step, curves as a picture, and TensorBoard's files."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import soundfile

from higgs_native.utils.files import replacing


LOG_FILE, CURVES_FILE = "log.jsonl", "curves.png"


class Records:
    """The records of a run, in its folder. Without matplotlib or tensorboard, what they write is left out.

    Args:
        folder: of the run.
        first: the first step to come; records of it and of later steps, which a resumed run repeats, are dropped.
        is_written: whether this process writes.
    """

    def __init__(self, folder: Path, first: int, is_written: bool) -> None:
        self._folder = folder
        self._is_written = is_written
        self._tensorboard = None
        self._log = None
        if not is_written:
            return
        path = folder / LOG_FILE
        kept = [record for record in read_log(folder) if record["step"] < first]
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self._log = path.open("a", buffering=1)
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def write(self, kind: str, step: int, losses: dict[str, Any]) -> None:
        """Record the losses of a step: `train`, or `held out`."""
        if self._log is None:
            return
        self._log.write(json.dumps({"kind": kind, "step": step, **losses}) + "\n")
        if self._tensorboard is not None:
            for name, value in losses.items():
                values = {f"{name}/{index}": item for index, item in enumerate(value)} if name == "codebooks" else None
                for tag, number in (values or {name: value}).items():
                    self._tensorboard.add_scalar(f"{kind}/{tag}", number, step)

    def sounds(self, step: int, paths: list[Path]) -> None:
        """Record samples of speech."""
        if self._tensorboard is not None:
            for path in paths:
                samples, rate = soundfile.read(path, dtype="float32")
                self._tensorboard.add_audio(path.stem, samples[None], step, sample_rate=rate)

    def draw(self) -> None:
        """Draw the curves of all steps so far."""
        if importlib.util.find_spec("matplotlib") is None:
            return
        from matplotlib.figure import Figure

        records = read_log(self._folder)
        figure = Figure(figsize=(10, 4), layout="constrained")
        totals, codebooks = figure.subplots(1, 2)
        for kind in ("train", "held out"):
            points = [record for record in records if record["kind"] == kind]
            totals.plot([p["step"] for p in points], [p["total"] for p in points], label=kind)
        held = [record for record in records if record["kind"] == "held out"] or records
        for index in range(len(held[0]["codebooks"]) if held else 0):
            codebooks.plot([p["step"] for p in held], [p["codebooks"][index] for p in held], label=f"codebook {index}")
        for axes, title in ((totals, "loss"), (codebooks, "loss of each codebook")):
            axes.set(xlabel="step", title=title)
            axes.legend()
        with replacing(self._folder / CURVES_FILE) as path:
            figure.savefig(path, format="png", dpi=100)

    def close(self) -> None:
        """End the files."""
        if self._log is not None:
            self._log.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the records in the folder of a run; a line that a killed process left half written is left out."""
    path = folder / LOG_FILE
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    if lines and not lines[-1].endswith("}"):
        lines.pop()
    return [json.loads(line) for line in lines]
