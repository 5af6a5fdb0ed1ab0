"""Which samples are learned in which pass: a function of the seed and the epoch alone."""

from collections.abc import Sequence

import torch


WINDOW = 256
"""Shuffled samples that are packed together. Packs of a larger window fill better, and mix samples less."""


def held_out(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the samples to learn, and those held out: at least one each, if there are two and a share is held out."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    number = min(max(round(share * count), 1), count - 1) if share else 0
    return sorted(order[number:]), sorted(order[:number])


def packs(lengths: Sequence[int], max_rows: int, seed: int, epoch: int) -> list[list[int]]:
    """Return samples in packs of at most `max_rows` rows, in the order of an epoch.

    Args:
        lengths: rows of each sample, each at most `max_rows`.
        max_rows: of a pack.
        seed, epoch: choose the order.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    packed: list[list[int]] = []
    for begin in range(0, len(shuffled), WINDOW):
        packed += pack_by_length(shuffled[begin : begin + WINDOW], lengths, max_rows)
    return [packed[index] for index in torch.randperm(len(packed), generator=generator).tolist()]


def pack_by_length(samples: Sequence[int], lengths: Sequence[int], max_rows: int) -> list[list[int]]:
    """Put samples, the longest first, each into the first pack that has room for it."""
    packed: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(samples, key=lambda sample: -lengths[sample]):
        index = next((index for index, rows in enumerate(room) if rows >= lengths[sample]), len(packed))
        if index == len(packed):
            packed.append([])
            room.append(max_rows)
        packed[index].append(sample)
        room[index] -= lengths[sample]
    return packed
