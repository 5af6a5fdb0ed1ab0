"""Memory that weights are packed into, and memory-mapped files that they come from."""

import ctypes
import math
import mmap

import torch


_HUGE_PAGE = 2 << 20


def empty_weight(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised tensor that the operating system may back with huge pages, from its beginning on.

    A frame streams gigabytes of weights; with pages of 4 KiB the processor spends a part of that time looking up where
    they are.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or num_bytes < 2 * _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    # Of its own: what is left before and after it is never touched, and so takes no memory.
    mapping = mmap.mmap(-1, num_bytes + 2 * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(mapping, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % _HUGE_PAGE :]
    # The last page is a huge one if more than half of it is filled.
    whole_pages = (num_bytes + _HUGE_PAGE // 2) // _HUGE_PAGE * _HUGE_PAGE
    _advise(memory[:whole_pages], _HUGE_PAGE, "MADV_HUGEPAGE")
    return memory[:num_bytes].view(dtype).view(shape)


def release_mapped(part: torch.Tensor) -> None:
    """Give back the pages of a memory-mapped tensor that has been read for the last time.

    They stay in the system's file cache, but no longer count as memory of this process.
    """
    _advise(part, mmap.PAGESIZE, "MADV_DONTNEED")


def release_freed() -> None:
    """Give back what was freed but kept for allocations to come: after loading, hundreds of megabytes."""
    if hasattr(_libc, "malloc_trim"):  # of glibc
        _libc.malloc_trim(0)


def _advise(tensor: torch.Tensor, page: int, advice: str) -> None:
    """Advise the system about the whole pages inside `tensor`; where it can't take advice, nothing happens."""
    if tensor.device.type != "cpu" or not hasattr(mmap, advice):
        return
    begin = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if end > begin:
        _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), getattr(mmap, advice))


_libc = ctypes.CDLL(None)
