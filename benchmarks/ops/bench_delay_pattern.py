"""Time building and reverting the delay pattern on the CPU or the GPU, beside plain PyTorch.

python -m benchmarks.ops.bench_delay_pattern [--device cuda] [--json FILE]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import summary, write_json
from higgs_native import ops, reference


BOS, EOS, CODEBOOKS = 1024, 1025, 8


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, nargs="+", default=[250, 7500])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [row for frames in args.frames for row in bench(frames, torch.device(args.device), args.repeats)]
    if args.json:
        write_json(args.json, {"operator": "delay_pattern", "device": args.device, "runs": rows})


def bench(frames: int, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Time building and reverting `frames` frames: microseconds per call, its launch included."""
    codes = torch.randint(0, BOS, (CODEBOOKS, frames), dtype=torch.int32, device=device)
    delayed = codes.new_empty(CODEBOOKS, frames + CODEBOOKS + 1)
    reverted = codes.new_empty(CODEBOOKS, frames + 2)
    directions = {
        "build": lambda module: module.delay_pattern_build(delayed, codes, BOS, EOS),
        "revert": lambda module: module.delay_pattern_revert(reverted, delayed),
    }
    rows = []
    for direction, call in directions.items():
        row: dict[str, Any] = {"direction": direction, "frames": frames}
        for name, module in (("native", ops), ("pytorch", reference)):
            row[name] = summary(times(lambda call=call, module=module: call(module), device, repeats))
            print(f"{direction} {frames} frames on {device.type}: {name:8} {row[name]['median']:9.2f} us")
        rows.append(row)
    return rows


def times(call: Callable[[], None], device: torch.device, repeats: int) -> list[float]:
    """Microseconds of each of `repeats` calls; a call starts when the one before has finished."""

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    measured = []
    for _ in range(repeats + 10):  # ten are a warm-up
        finish()
        start = time.perf_counter()
        call()
        finish()
        measured.append(1e6 * (time.perf_counter() - start))
    return measured[10:]


if __name__ == "__main__":
    main()
