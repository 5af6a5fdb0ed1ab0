"""Pages of the KV cache: how many sequences hold each, and which hold a prefix that later prompts can share.

A page has `PAGE_SIZE` positions. A full page of a prompt has a key: the hash of the adapter, and of all token ids and
delayed codes up to the end of the page. So an equal key means an equal prefix, and prompts with the same prefix share
pages: keys and values of a position depend on the adapter and the rows up to it, not on the batch that computed them.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from higgs_native.model.kv_cache import PAGE_SIZE


def page_keys(rows: Sequence[int | tuple[int, ...]], adapter: str = "") -> list[bytes]:
    """Return the keys of the full pages of a prompt.

    Args:
        rows: token ids, and the delayed codes of frames.
        adapter: the fingerprint of the adapter of all rows; empty for none.
    """
    digest = hashlib.sha256(adapter.encode())
    keys = []
    for count, row in enumerate(rows, 1):
        kind, codes = (b"t", (row,)) if isinstance(row, int) else (b"a", row)
        digest.update(kind + array("i", codes).tobytes())
        if count % PAGE_SIZE == 0:
            keys.append(digest.digest())
    return keys


class PagePool:
    """The pages of a cache. A page is free, held by sequences, or unused: held by none, but found by its key.

    Args:
        num_pages: pages 0 to `num_pages` - 1.
        max_unused: the maximum number of unused pages; beyond it the least recently used one becomes free.
    """

    def __init__(self, num_pages: int, max_unused: int) -> None:
        self.num_pages = num_pages
        self._max_unused = max_unused
        self._free = list(range(num_pages))[::-1]  # the last one freed is taken first: its memory is in use already
        self._num_holders = [0] * num_pages
        self._pages: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """The number of pages that `take` can give."""
        return len(self._free) + len(self._unused)

    @property
    def held(self) -> int:
        """The number of pages that sequences hold."""
        return self.num_pages - self.available

    @property
    def max_unused(self) -> int:
        """The maximum number of unused pages; setting a lower one frees pages at once."""
        return self._max_unused

    @max_unused.setter
    def max_unused(self, max_unused: int) -> None:
        self._max_unused = max_unused
        self._free_unused(max_unused)

    def take(self, count: int) -> list[int]:
        """Give `count` pages, at most `available`, to a sequence."""
        self._free_unused(self.available - count if count > len(self._free) else len(self._unused))
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._num_holders[page] = 1
        return pages

    def num_known(self, keys: Sequence[bytes]) -> int:
        """Return the number of leading keys whose pages are known."""
        return next((index for index, key in enumerate(keys) if key not in self._pages), len(keys))

    def num_unused(self, keys: Sequence[bytes]) -> int:
        """Return how many of the pages of `keys`, all known, are unused, and so counted as available."""
        return sum(self._pages[key] in self._unused for key in keys)

    def share(self, keys: Sequence[bytes]) -> list[int]:
        """Give the known pages of `keys` to one more sequence."""
        pages = [self._pages[key] for key in keys]
        for page in pages:
            self._num_holders[page] += 1
            self._unused.pop(page, None)
        return pages

    def know(self, key: bytes, page: int) -> None:
        """Register a computed page by its key, so that later prompts find it, unless another page has the key."""
        if key not in self._pages:
            self._pages[key] = page
            self._keys[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Take pages back from a sequence."""
        # The first page is released last, so it is freed last: without it, the others are not found.
        for page in reversed(pages):
            self._num_holders[page] -= 1
            if self._num_holders[page]:
                continue
            if page in self._keys:
                self._unused[page] = None
            else:
                self._free.append(page)
        self._free_unused(self._max_unused)

    def forget(self) -> None:
        """Free all unused pages."""
        self._free_unused(0)

    def _free_unused(self, keep: int) -> None:
        while len(self._unused) > keep:
            page, _ = self._unused.popitem(last=False)
            del self._pages[self._keys.pop(page)]
            self._free.append(page)
