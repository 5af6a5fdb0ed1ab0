"""Measure what other processes on the machine cost: the same work idle and beside 1, 2, 4 and 6 of them.

    python -m benchmarks.tools.make_checkpoint --out /data/higgs-random --layers 8
    python -m benchmarks.bench_contention --model /data/higgs-random --json benchmarks/results/contention.json

Each other process multiplies matrices with torch on one thread. Idle and busy turns alternate. A fair share of the
cores is what a process with as many threads as there are cores would get if its threads never waited for each other:
its work takes 1 + processes / cores times as long.
"""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_frame import native_frame, transformers_frames, transformers_model
from benchmarks.measure import in_format, seconds, summary, write_json
from higgs_native import HiggsAudio
from higgs_native.checkpoint.files import resolve_folder
from higgs_native.convention import Convention
from higgs_native.model.transformer import LanguageModel


FORMATS = ("bfloat16", "int4")
PROCESSES = (0, 1, 2, 4, 6)
POSITION = 256
SENTENCE = "The sun rises in the east and sets in the west."
BUSY = "import torch; torch.set_num_threads(1); a = torch.rand(512, 512); print(flush=True)\nwhile True: a @ a"


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or a Hub name")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--processes", type=int, nargs="+", default=list(PROCESSES))
    parser.add_argument("--frames", type=int, default=10, help="frames of a turn at real size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = run(
        resolve_folder(args.model), args.formats, args.processes, args.frames, args.repeats, not args.no_transformers
    )
    if args.json:
        write_json(args.json, report)


def run(
    folder: Path,
    formats: Sequence[str],
    processes: Sequence[int],
    frames: int,
    repeats: int,
    with_transformers: bool,
) -> dict[str, Any]:
    """Time the embedded voice and the checkpoint's frames beside that many processes; print and return the figures."""
    works = {"embedded_voice": embedded_voice(), **frame_works(folder, formats, frames, with_transformers)}
    times: dict[str, dict[int, list[float]]] = {name: {count: [] for count in processes} for name in works}
    with busy_processes(max(processes)) as others:
        for work in works.values():
            work()  # warms up
        for _ in range(repeats):
            for count in processes:
                with running(others[:count]):
                    for name, work in works.items():
                        times[name][count].append(work())
    report: dict[str, Any] = {"frames": frames, "position": POSITION}
    for name, by_count in times.items():
        idle = statistics.median(by_count[processes[0]])
        report[name] = {
            str(count): {"value": summary(values, digits=5), "times_idle": round(statistics.median(values) / idle, 2)}
            for count, values in by_count.items()
        }
        unit = "real-time factor" if name == "embedded_voice" else "s per frame"
        print(
            f"{name:16} {idle:.4f} {unit}; beside other processes: "
            + ", ".join(f"{count}: {figures['times_idle']} times" for count, figures in report[name].items())
        )
    return report


def embedded_voice() -> Callable[[], float]:
    """A function that speaks a sentence and returns its real-time factor."""
    voice = HiggsAudio.from_pretrained(device="cpu")

    def speak() -> float:
        spoken = []
        time = seconds(lambda: spoken.append(voice.speak(SENTENCE, seed=1)))
        return time / (len(spoken[0].audio) / spoken[0].sampling_rate)

    return speak


def frame_works(
    folder: Path, formats: Sequence[str], frames: int, with_transformers: bool
) -> dict[str, Callable[[], float]]:
    """Functions that compute frames after `POSITION` and return the median seconds of one."""
    works: dict[str, Callable[[], float]] = {}
    generator = torch.Generator().manual_seed(0)
    for format in formats:
        model = LanguageModel.from_pretrained(folder, **in_format(format))
        codes = torch.randint(
            0, model.config.audio_stream_bos_id, (frames, model.config.num_codebooks), generator=generator
        )
        cache = model.new_cache(1, POSITION + frames)
        for tensor in (*cache.keys, *cache.values):
            tensor.normal_(generator=generator)
        works[format] = median_frame(
            lambda index, model=model, cache=cache, codes=codes: native_frame(
                model, cache, codes[index], POSITION + index
            ),
            frames,
        )
        if format == "bfloat16" and with_transformers and model.config.convention is Convention.TRANSFORMERS:
            reference = transformers_frames(transformers_model(model, folder), cache, codes, POSITION)
            works["transformers"] = median_frame(reference, frames)
    return works


def median_frame(run_frame: Callable[[int], object], frames: int) -> Callable[[], float]:
    """A function that computes all frames and returns the median seconds of one."""

    @torch.inference_mode()
    def run_frames() -> float:
        return statistics.median(seconds(lambda index=index: run_frame(index)) for index in range(frames))

    return run_frames


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that compute without end; they stand still until they are continued."""
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE))
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            process.stdout.readline()  # written after the import of torch
            os.kill(process.pid, signal.SIGSTOP)
        yield processes


@contextlib.contextmanager
def running(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Let the processes compute meanwhile."""
    for process in processes:
        os.kill(process.pid, signal.SIGCONT)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process.pid, signal.SIGSTOP)


if __name__ == "__main__":
    main()
