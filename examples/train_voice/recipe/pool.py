"""A pool of speech that training draws clips from: some shards in memory, which are exchanged bit by bit."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from recipe.codes import codes_folder, codes_path, finished_codes, read_codes, read_frames
from recipe.frames import HOP_LENGTH, PHASE_HOP
from recipe.screen import rejected
from recipe.shards import read_utterances, shard_path


@dataclass
class Clips:
    """Clips of one length.

    Attributes:
        audio: float32 [batch, samples].
        codes: int64 [batch, codebooks, frames].
        f0, phase: float32 [batch, frames], at the middles of frames.
        fine_phase: float32 [batch, samples / 6], in cycles; NaN where nothing is voiced.
    """

    audio: torch.Tensor
    codes: torch.Tensor
    f0: torch.Tensor
    phase: torch.Tensor
    fine_phase: torch.Tensor

    def to(self, device: torch.device) -> "Clips":
        return Clips(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


class Pool:
    """Shards in memory.

    Args:
        folder: of the recipe.
        pitch: whether the codes hold it.
        held_out: take the held-out utterances, and only them; else the others.
        size: shards in memory; a tenth of an hour of speech each.
        seed: of what is drawn.
    """

    def __init__(self, folder: Path, pitch: bool, held_out: bool, size: int, seed: int) -> None:
        self._folder, self._codes = folder, codes_folder(folder, pitch)
        self._held_out, self._size = held_out, size
        self._gains = json.loads((folder / "gains.json").read_text(encoding="utf-8"))
        self._rejected = rejected(folder)
        self._random = random.Random(seed)
        self._shards: list[dict[str, torch.Tensor]] = []
        self._queue: list[int] = []
        self._known: set[int] = set()
        numbers = self._numbers()
        if not numbers:
            raise SystemExit(f"{self._codes} must hold the codes of some shards: run recipe.codes")
        for _ in range(min(size, len(numbers))):
            self.exchange()

    def _numbers(self) -> list[int]:
        return [int(path.stem) for path in finished_codes(self._codes, every_cut=False)]

    def exchange(self) -> None:
        """Take in the next shard, in place of the oldest if the pool is full; first those that came since."""
        new = sorted(set(self._numbers()) - self._known)
        self._known.update(new)
        self._random.shuffle(new)
        self._queue += new
        if not self._queue:
            self._queue = sorted(self._known)
            self._random.shuffle(self._queue)
        shard = self._load(self._queue.pop())
        if len(shard["audio"]) < HOP_LENGTH:
            return
        self._shards = [*self._shards[-(self._size - 1) :], shard] if self._size > 1 else [shard]

    def _load(self, number: int) -> dict[str, torch.Tensor]:
        codes, starts = read_codes(codes_path(self._codes, number))
        parts: dict[str, list[np.ndarray]] = {name: [] for name in ("audio", "codes", "f0", "phase", "fine_phase")}
        chosen = [
            index
            for index, utterance in enumerate(read_utterances(shard_path(self._folder, number)))
            if bool(utterance["held_out"]) == self._held_out and utterance["id"] not in self._rejected
        ]
        for index, frames in zip(chosen, read_frames(self._folder, number, self._gains, chosen), strict=True):
            parts["audio"].append((frames.audio * 32767).round().astype(np.int16))
            parts["codes"].append(codes[:, starts[index] : starts[index + 1]])
            parts["f0"].append(frames.f0)
            parts["phase"].append(frames.phase)
            parts["fine_phase"].append(frames.fine_phase % 1.0)
        if not parts["audio"]:
            return {"audio": torch.zeros(0)}
        return {name: torch.from_numpy(np.concatenate(values, -1)) for name, values in parts.items()}

    def draw(self, batch: int, frames: int) -> Clips:
        """Draw clips, each from anywhere in any shard of the pool, at the beginning of a frame."""
        clips = []
        long_enough = [shard for shard in self._shards if len(shard["f0"]) >= frames]
        lengths = [len(shard["f0"]) for shard in long_enough]
        for shard in self._random.choices(long_enough, lengths, k=batch):
            start = self._random.randrange(len(shard["f0"]) - frames + 1)
            end = start + frames
            fine = HOP_LENGTH // PHASE_HOP
            clips.append(
                (
                    shard["audio"][start * HOP_LENGTH : end * HOP_LENGTH].float() / 32767,
                    shard["codes"][:, start:end].long(),
                    shard["f0"][start:end],
                    shard["phase"][start:end],
                    shard["fine_phase"][start * fine : end * fine],
                )
            )
        return Clips(*map(torch.stack, zip(*clips, strict=True)))
