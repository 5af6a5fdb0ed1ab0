"""Shards of rendered speech: folders that are complete as soon as they have their name.

`shards/00012` holds `speech.flac` (its utterances one after another, 24 kHz, 16 bits), `utterances.jsonl` (one line
for each: what `utterances.jsonl` of the whole says of it, its first sample and its number of samples) and
`features.npz` (F0, phase and alignment, with the index at which each utterance begins).
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from recipe.folder import whole_folder
from recipe.teacher import SAMPLING_RATE, Rendered


UTTERANCES = 64
"""Utterances of a shard: what a renderer that is killed loses is at most this."""


def shard_path(folder: Path, number: int) -> Path:
    return folder / "shards" / f"{number:05}"


def finished_shards(folder: Path) -> list[int]:
    """The numbers of the complete shards, in order."""
    return sorted(int(path.name) for path in (folder / "shards").glob("[0-9]" * 5))


def write_shard(path: Path, utterances: list[dict[str, object]], rendered: Iterable[Rendered]) -> float:
    """Write a shard.

    Returns:
        Its length in seconds.
    """
    import soundfile

    lines, audio, arrays = [], [], {"f0": [], "phase": [], "ends": []}
    starts = {name: [0] for name in arrays}
    start = 0
    for utterance, speech in zip(utterances, rendered, strict=True):
        samples = (speech.audio * 32767).round().clip(-32768, 32767).astype(np.int16)
        lines.append(json.dumps({**utterance, "start": start, "samples": len(samples)}, ensure_ascii=False))
        audio.append(samples)
        start += len(samples)
        for name, dtype in (("f0", np.float16), ("phase", np.float32), ("ends", np.uint16)):
            values = getattr(speech, name).astype(dtype)
            arrays[name].append(values)
            starts[name].append(starts[name][-1] + len(values))
    with whole_folder(path) as partial:
        soundfile.write(partial / "speech.flac", np.concatenate(audio), SAMPLING_RATE, subtype="PCM_16")
        (partial / "utterances.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        np.savez_compressed(
            partial / "features.npz",
            **{name: np.concatenate(values) for name, values in arrays.items()},
            **{f"{name}_starts": np.array(values, np.int64) for name, values in starts.items()},
        )
    return start / SAMPLING_RATE


def read_utterances(path: Path) -> list[dict[str, object]]:
    """The lines of a shard."""
    return [json.loads(line) for line in (path / "utterances.jsonl").read_text(encoding="utf-8").splitlines()]


def read_audio(path: Path) -> np.ndarray:
    """All speech of a shard: int16 [samples]."""
    import soundfile

    return soundfile.read(path / "speech.flac", dtype="int16")[0]


def read_features(path: Path) -> list[dict[str, np.ndarray]]:
    """F0, phase and ends of phonemes, for each utterance of a shard."""
    with np.load(path / "features.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    count = len(arrays["f0_starts"]) - 1
    return [
        {
            name: arrays[name][arrays[f"{name}_starts"][number] : arrays[f"{name}_starts"][number + 1]]
            for name in ("f0", "phase", "ends")
        }
        for number in range(count)
    ]


def seconds_of(path: Path) -> float:
    return sum(int(utterance["samples"]) for utterance in read_utterances(path)) / SAMPLING_RATE
