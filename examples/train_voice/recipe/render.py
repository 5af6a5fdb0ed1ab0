"""Let the teacher speak the utterances, shard by shard, at the lowest priority.

    python -m recipe.render

Ends after `--hours` of speech. `--first-shard` leaves out texts that a voice was trained on before. It may be killed
at any time: the same command goes on, and only the shards that were being made are made again.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

from recipe.folder import add_folder_option, only_one, use_packages, yield_to_others
from recipe.shards import UTTERANCES, finished_shards, seconds_of, shard_path, write_shard
from recipe.teacher import Rendered, Teacher


_teacher: Teacher | None = None
_parent = 0


def _start(folder: Path, parent: int) -> None:
    global _teacher, _parent
    yield_to_others()
    use_packages(folder)
    _parent = parent
    _teacher = Teacher(folder / "materials")


def _read(folder: Path, number: int) -> list[dict[str, object]]:
    with (folder / "utterances.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, number * UTTERANCES, (number + 1) * UTTERANCES)]


def _make(task: tuple[Path, int]) -> tuple[int, float, float]:
    """Make a shard; its number, its length and the CPU time that it took, in seconds."""
    folder, number = task
    began = time.process_time()
    utterances = _read(folder, number)

    def speak() -> Iterator[Rendered]:
        for utterance in utterances:
            if os.getppid() != _parent:
                os._exit(1)  # the renderer was killed, and another may have been started
            yield _teacher.render(str(utterance["phonemes"]), str(utterance["voice"]), float(utterance["speed"]))

    seconds = write_shard(shard_path(folder, number), utterances, speak())
    return number, seconds, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--hours", type=float, default=60, help="of speech in all; default: %(default)s")
    parser.add_argument("--first-shard", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    folder = options.folder
    with only_one(folder, "render"):
        yield_to_others()
        use_packages(folder)
        with (folder / "utterances.jsonl").open(encoding="utf-8") as lines:
            shards = sum(1 for _ in lines) // UTTERANCES
        done = finished_shards(folder)
        total = sum(seconds_of(shard_path(folder, number)) for number in done)
        print(f"{len(done)} shards are there: {total / 3600:.2f} h", flush=True)
        pending = [(folder, number) for number in range(options.first_shard, shards) if number not in set(done)]
        began, made, worked = time.monotonic(), 0.0, 0.0
        context = multiprocessing.get_context("spawn")
        with context.Pool(options.processes, _start, (folder, os.getpid())) as pool:
            results = pool.imap_unordered(_make, pending)
            while total < 3600 * options.hours and (result := next(results, None)) is not None:
                number, seconds, cpu = result
                total, made, worked = total + seconds, made + seconds, worked + cpu
                rate = made / (time.monotonic() - began)
                print(
                    f"{time.strftime('%H:%M:%S')} shard {number}: {total / 3600:.2f} of {options.hours:g} h, "
                    f"{worked / made:.3f} CPU s per second, {rate:.2f} s of speech per second, "
                    f"{max(0.0, 3600 * options.hours - total) / rate / 3600:.1f} h to go",
                    flush=True,
                )
            pool.terminate()


if __name__ == "__main__":
    main()
