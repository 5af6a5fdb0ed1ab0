"""Keys and values of prompts' beginnings, kept for the next prompt that begins alike.

A voice is such a beginning: the system text, the reference's words, and its audio. Prompts are cut into blocks of 16
positions. A block goes by a hash of all that its prompt has up to the block's end, token ids and delayed codes: where
it is found again, the beginning is the same. What is computed after it is then the same, too: the CPU's kernels give a
row the same bits, whatever rows are computed beside it.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

import torch

from higgs_native.errors import ParameterError
from higgs_native.model.kv_cache import KVCache


BLOCK = 16
"""Positions of a block. A beginning that is shorter is not worth its keeping."""
DEFAULT_MAX_BYTES = 256 << 20
"""At real size in bfloat16, 2,340 positions: some seven voices with ten seconds of reference audio each."""


@dataclass(frozen=True)
class PromptBlock:
    """Some positions of a prompt.

    Attributes:
        key: of all rows from the prompt's beginning to the block's end.
        positions: where it stands in the sequence.
        text_positions: where its text rows stand among the sequence's text rows.
    """

    key: bytes
    positions: slice
    text_positions: slice


def prompt_blocks(rows: Sequence[int | torch.Tensor]) -> list[PromptBlock]:
    """The whole blocks of a prompt: token ids, and delayed frames [codebooks], int32."""
    text_before = list(accumulate((isinstance(row, int) for row in rows), initial=0))
    frames = [row for row in rows if not isinstance(row, int)]
    frames = iter(torch.stack(frames).cpu().numpy() if frames else ())
    digest = hashlib.sha256()
    blocks = []
    for index, row in enumerate(rows, 1):
        digest.update(b"t" + row.to_bytes(4, "little") if isinstance(row, int) else b"a" + next(frames).tobytes())
        if index % BLOCK == 0:
            begin = index - BLOCK
            text = slice(text_before[begin], text_before[index])
            blocks.append(PromptBlock(digest.digest(), slice(begin, index), text))
    return blocks


class PrefixCache:
    """Blocks of keys and values, the least recently used of which go first. Safe to use from several threads.

    Args:
        max_bytes: how much memory they may take, together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._blocks: OrderedDict[bytes, list[torch.Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        self._nbytes = 0
        self.max_bytes = max_bytes

    @property
    def max_bytes(self) -> int:
        """How much memory the blocks may take; what is too much for a new limit goes at once.

        Raises:
            ParameterError: the limit is negative.
        """
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ParameterError(f"max_bytes of the prefix cache must be at least 0, got {max_bytes}")
        with self._lock:
            self._max_bytes = max_bytes
            self._evict()

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self._nbytes

    def clear(self) -> None:
        """Forget all blocks."""
        with self._lock:
            self._blocks.clear()
            self._nbytes = 0

    def restore(self, blocks: Sequence[PromptBlock], cache: KVCache, slot: int) -> int:
        """Copy the longest known beginning of `blocks` into a sequence of `cache`; return how many blocks it has."""
        with self._lock:
            found = list(takewhile(lambda tensors: tensors is not None, (self._blocks.get(b.key) for b in blocks)))
            self._use(blocks[: len(found)])
        if found:
            # Outside of the lock: the tensors are never written again.
            last = blocks[len(found) - 1]
            places = cache.views(slot, slice(0, last.positions.stop), slice(0, last.text_positions.stop))
            for place, *parts in zip(places, *found, strict=True):
                torch.cat(parts, dim=1, out=place)
        return len(found)

    def keep(self, blocks: Sequence[PromptBlock], cache: KVCache, slot: int) -> None:
        """Take in what is unknown of `blocks`, which a sequence of `cache` holds, as far as there is room."""
        with self._lock:
            known = {block.key: _nbytes(self._blocks[block.key]) for block in blocks if block.key in self._blocks}
        total, copies = 0, {}
        for block in blocks:
            places = [] if block.key in known else cache.views(slot, block.positions, block.text_positions)
            total += known.get(block.key, 0) + _nbytes(places)
            if total > self._max_bytes:
                break
            if places:
                copies[block.key] = [place.clone() for place in places]
        with self._lock:
            for key, tensors in copies.items():
                if key not in self._blocks:  # another thread may have been here
                    self._blocks[key] = tensors
                    self._nbytes += _nbytes(tensors)
            self._use(blocks)
            self._evict()

    def _use(self, blocks: Sequence[PromptBlock]) -> None:
        """Mark blocks as used, the first last: it must be evicted after the others, which are found through it."""
        for block in reversed(blocks):
            if block.key in self._blocks:
                self._blocks.move_to_end(block.key)

    def _evict(self) -> None:
        while self._nbytes > self._max_bytes:
            _, tensors = self._blocks.popitem(last=False)
            self._nbytes -= _nbytes(tensors)


def _nbytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
