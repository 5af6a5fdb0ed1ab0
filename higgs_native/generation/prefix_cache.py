"""Prefix cache: keys and values of prompt prefixes, reused by later prompts.

A voice is such a prefix: system text, reference text and reference audio. Prompts are cut into blocks of 16 positions.
The key of a block hashes all token ids and delayed codes up to its end, so an equal key means an equal prefix.
Restored rows give the same bits as computed ones, since a row does not depend on its batch.
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
"""Positions per block. Shorter prefixes are not cached."""
DEFAULT_MAX_BYTES = 256 << 20
"""2,340 positions of the published size in bfloat16: about seven voices with ten seconds of reference audio each."""


@dataclass(frozen=True)
class PromptBlock:
    """A block of `BLOCK` consecutive positions of a prompt.

    Attributes:
        key: hash of all rows up to the end of the block.
        positions: its positions in the sequence.
        text_positions: positions of its text rows, counting text rows alone.
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
    """An LRU cache of blocks of keys and values. Thread-safe.

    Args:
        max_bytes: the maximum memory of all blocks; 0 turns the cache off.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self._blocks: OrderedDict[bytes, list[torch.Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        self._nbytes = 0
        self.max_bytes = max_bytes

    @property
    def max_bytes(self) -> int:
        """The maximum memory of all blocks; setting a lower one evicts blocks at once.

        Raises:
            ParameterError: the limit is negative.
        """
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ParameterError(f"max_bytes must be at least 0, got {max_bytes}")
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
        """Copy the longest cached prefix of `blocks` into a slot of `cache`; return its number of blocks."""
        with self._lock:
            found = list(takewhile(lambda tensors: tensors is not None, (self._blocks.get(b.key) for b in blocks)))
            self._use(blocks[: len(found)])
        if found:
            # Outside of the lock: the tensors are never written again.
            last = blocks[len(found) - 1]
            views = cache.views(slot, slice(0, last.positions.stop), slice(0, last.text_positions.stop))
            for view, *parts in zip(views, *found, strict=True):
                torch.cat(parts, dim=1, out=view)
        return len(found)

    def keep(self, blocks: Sequence[PromptBlock], cache: KVCache, slot: int) -> None:
        """Copy the blocks that are not cached yet from a slot of `cache`, up to `max_bytes`."""
        with self._lock:
            known = {block.key: _nbytes(self._blocks[block.key]) for block in blocks if block.key in self._blocks}
        total, copies = 0, {}
        for block in blocks:
            views = [] if block.key in known else cache.views(slot, block.positions, block.text_positions)
            total += known.get(block.key, 0) + _nbytes(views)
            if total > self._max_bytes:
                break
            if views:
                copies[block.key] = [view.clone() for view in views]
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
