"""Measure how long a checkpoint takes to load, and its first frame after it.

    python -m benchmarks.tools.make_checkpoint --out /data/higgs-random --layers 8
    python -m benchmarks.bench_load --model /data/higgs-random --json benchmarks/results/load.json

Each format is loaded from the checkpoint, which packs and rounds the weights, and from the packed file that
`higgs-native quantize` writes. Beside them, in the same turns, the stored tensors are mapped and copied, which is what
reading every weight into memory of the process costs at least. The files are in the system's file cache. Everything
runs in one process, so the time to import torch is not in it.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import in_format, seconds, summary, write_json
from higgs_native.checkpoint.files import TensorFiles, resolve_folder
from higgs_native.checkpoint.packed import write_packed
from higgs_native.model.batch import Batch
from higgs_native.model.transformer import LanguageModel


FORMATS = ("bfloat16", "int8", "int4")


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or a Hub name")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = run(resolve_folder(args.model), args.formats, args.repeats)
    if args.json:
        write_json(args.json, report)


def run(folder: Path, formats: Sequence[str], repeats: int) -> dict[str, Any]:
    """Load each format in turn; print and return the figures."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        packed = {format: Path(temporary) / format for format in formats}
        for format, target in packed.items():
            model = LanguageModel.from_pretrained(folder, **in_format(format))
            write_packed(model.named_weights(), model.quantization, folder, target)
            report["model"] = {"layers": model.config.num_hidden_layers, "hidden_size": model.config.hidden_size}
            del model
        times: dict[str, list[float]] = {"copy_s": []}
        for turn in range(repeats + 1):  # the first turn warms up
            times["copy_s"].append(seconds(lambda: copy_all(folder)))
            for format in formats:
                for name, value in time_format(folder, packed[format], format).items():
                    times.setdefault(f"{format}_{name}", []).append(value)
            if not turn:
                times = {name: [] for name in times}
    report |= {name: summary(values) for name, values in times.items()}
    copied = report["copy_s"]["median"]
    for format in formats:
        loaded, mapped, frame = (
            report[f"{format}_{name}"]["median"] for name in ("load_s", "packed_load_s", "packed_first_frame_s")
        )
        report[f"{format}_load_over_copy"] = round(loaded / copied, 2)
        print(
            f"{format:9}: {loaded:6.2f} s, {loaded / copied:.1f} times as long as copying the file; "
            f"packed {mapped:.2f} s, and {frame:.2f} s to the first frame"
        )
    return report


def copy_all(folder: Path) -> None:
    files = TensorFiles(folder)
    copies = [files.get(name).clone() for name in files.names()]
    del copies


def time_format(folder: Path, packed: Path, format: str) -> dict[str, float]:
    """Time both ways to load, and the first frame of the packed one."""
    models: list[LanguageModel] = []

    def keep(make: Callable[[], LanguageModel]) -> Callable[[], None]:
        return lambda: models.append(make())

    load_seconds = seconds(keep(lambda: LanguageModel.from_pretrained(folder, **in_format(format))))
    models.clear()
    packed_seconds = seconds(keep(lambda: LanguageModel.from_pretrained(packed)))
    frame_seconds = seconds(lambda: first_frame(models[0]))
    models[0].verify()
    return {"load_s": load_seconds, "packed_load_s": packed_seconds, "packed_first_frame_s": frame_seconds}


@torch.inference_mode()
def first_frame(model: LanguageModel) -> None:
    none, zero = torch.empty(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    codes = torch.zeros(1, model.config.num_codebooks, dtype=torch.int32)
    batch = Batch(token_ids=none, codes=codes, slots=zero, positions=zero, text_positions=none)
    model.audio_logits(model.forward(batch, model.new_cache(1, 64)))


if __name__ == "__main__":
    main()
