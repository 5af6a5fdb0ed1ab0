"""Where the recipe keeps what it makes, and how it writes there."""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path


DEFAULT = Path("~/.cache/higgs_native/train_voice").expanduser()


def add_folder_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=DEFAULT, help="where everything is kept; default: %(default)s")


def use_packages(folder: Path) -> None:
    """Let what `recipe.materials` installed be imported, behind what the environment has."""
    sys.path.append(str(folder / "packages"))


def yield_to_others() -> None:
    """Give this process the lowest priority there is."""
    os.nice(19 - os.nice(0))
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    partial.rename(path)


def write_json(path: Path, contents: object) -> None:
    write_text(path, json.dumps(contents, ensure_ascii=False, indent=1) + "\n")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name `path` once it is complete and on disk.

    What earlier attempts left behind is thrown away. If another process was faster, its folder stays.
    """
    for left in path.parent.glob(f"{path.name}.*partial"):
        shutil.rmtree(left, ignore_errors=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    yield partial
    for file in partial.iterdir():
        _sync(file)
    _sync(partial)
    if path.exists():
        shutil.rmtree(partial)
        return
    partial.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_one(folder: Path, step: str) -> Iterator[None]:
    """Hold the lock of a step, which its end releases, however it ends.

    Raises:
        SystemExit: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{step}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(f"{step} runs already in {folder}") from None
        yield
