"""Folders of chunks: damaged and invented records. A chunk is loaded as it was stored, or is missing."""

import hashlib
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from higgs_native.long_form.chunk_store import Attempt, ChunkStore, SpokenChunk
from higgs_native.long_form.chunking import chunk_text
from tests.fuzz import mutations
from tests.fuzz.frame import run_cases


RATE = 24000
INPUTS = {"text": "One.", "seed": 1, "temperature": 0.5}
TEXT = chunk_text("One.", 20.0)[0]
SPEECH = np.linspace(-0.5, 0.5, 1920, dtype=np.float32)
CODES = torch.arange(16).view(8, 2)
ATTEMPTS = [Attempt(1, 0.08, ("silence",)), Attempt(2, 0.08, ())]
_NUMBERS = (-1, 0, 1, 2, 0.0, 1.0, 1e300, 2**70, float("nan"), float("inf"), True, None, "1")


def sealed(contents: dict) -> dict:
    """Return the contents of a .json file with the checksum that the store would write."""
    contents = {name: value for name, value in contents.items() if name != "checksum"}
    checksum = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    return contents | {"checksum": checksum}


def change_json(path: Path, generator: random.Random) -> None:
    """Change a field of a record, at any depth, and write the checksum that fits."""
    raw = json.loads(path.read_text())
    holder = raw
    while isinstance(holder, dict | list) and holder:
        key = generator.choice(list(holder)) if isinstance(holder, dict) else generator.randrange(len(holder))
        if not isinstance(holder[key], dict | list) or not holder[key] or generator.random() < 0.3:
            holder[key] = generator.choice(_NUMBERS) if generator.random() < 0.6 else mutations.value(generator)
            break
        holder = holder[key]
    if generator.random() < 0.2:
        raw[mutations.text(generator)] = mutations.value(generator)
    path.write_text(json.dumps(sealed(raw) if generator.random() < 0.8 else raw))


def change_wav(folder: Path, generator: random.Random) -> None:
    """Change the speech, and write the hash that fits."""
    data = mutations.mutated((folder / "00000.wav").read_bytes(), generator)
    (folder / "00000.wav").write_bytes(data)
    record = json.loads((folder / "00000.json").read_text()) | {"sha256": hashlib.sha256(data).hexdigest()}
    (folder / "00000.json").write_text(json.dumps(sealed(record)))


def change(folder: Path, generator: random.Random) -> None:
    path = folder / generator.choice(("run.json", "00000.json", "00000.wav"))
    match generator.randrange(10):
        case 0 | 1 | 2:
            path.write_bytes(mutations.mutated(path.read_bytes(), generator))
        case 3 | 4:
            change_wav(folder, generator)
        case 5:
            path.unlink()
            make = (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: None)
            generator.choice(make)(path)
        case _:
            change_json(folder / generator.choice(("run.json", "00000.json")), generator)


def check(chunk: SpokenChunk) -> None:
    assert chunk.text == TEXT
    assert chunk.sampling_rate == RATE
    assert chunk.pcm.dtype == np.int16
    assert chunk.codes.dtype == torch.int64
    assert chunk.codes.numel() == 0 or 0 <= int(chunk.codes.min()) <= int(chunk.codes.max()) < 2**15
    assert 0 <= chunk.seed < 2**64
    assert all(", ".join(attempt.failures).isprintable() for attempt in chunk.attempts)
    assert all(np.isfinite(attempt.duration) for attempt in chunk.attempts)
    assert np.isfinite(chunk.duration)


def case(generator: random.Random, folder: Path) -> None:
    parts = folder / "parts"
    store = ChunkStore(parts)
    store.claim(INPUTS)
    store.store(0, TEXT, SPEECH, RATE, CODES, 1, ATTEMPTS)
    whole = store.load(0, TEXT, 0.3, RATE)
    check(whole)
    change(parts, generator)
    store = ChunkStore(parts)
    store.claim(INPUTS)
    assert store.num_records <= 1
    chunk = store.load(0, TEXT, 0.3, RATE)
    if chunk is not None:
        check(chunk)
    assert store.load(0, replace(TEXT, text="Two."), 0.3, RATE) is None
    store.remove()


def test_chunk_stores(tmp_path, record_property):
    run_cases("chunk stores", 0.1, case, tmp_path, record_property)
