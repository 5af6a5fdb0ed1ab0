"""A model that speaks noise, and recordings to learn from."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from higgs_native.testing.random_checkpoint import write_demo_checkpoint


RATE = 24000


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_demo_checkpoint(folder)
    return folder


def write_recording(path: Path, seconds: float, seed: int, level: float = 0.3) -> None:
    """Noise that swells and fades like syllables."""
    count = round(seconds * RATE)
    envelope = np.sin(np.pi * 4 * np.arange(count) / RATE) ** 2
    noise = np.random.default_rng(seed).standard_normal(count)
    soundfile.write(path, (level * envelope * noise / 4).astype(np.float32), RATE)


@pytest.fixture
def recordings(tmp_path) -> Path:
    """A folder with 6 recordings and `train.jsonl`."""
    folder = tmp_path / "recordings"
    write_recordings(folder)
    return folder


def write_recordings(folder: Path) -> None:
    """Make a folder with 6 recordings and `train.jsonl`."""
    folder.mkdir()
    lines = []
    for index in range(6):
        write_recording(folder / f"{index}.wav", 0.4 + 0.12 * index, index)
        lines.append({"audio": f"{index}.wav", "text": f"Number {index}.", "speaker": "anna"})
    write_manifest(folder / "train.jsonl", lines)


def write_manifest(path: Path, lines: list) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
