"""Memory of weights: allocated with huge pages, and returned to the system after use."""

import ctypes
import math
import mmap
import os
import sys

import torch


_HUGE_PAGE = 2 << 20


def empty_weight(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return an uninitialized tensor that the operating system may back with huge pages.

    A frame streams gigabytes of weights; with 4 KiB pages, address translation takes part of that time.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if sys.platform != "linux" or device.type != "cpu" or num_bytes < 2 * _HUGE_PAGE:
        return torch.empty(shape, dtype=dtype, device=device)
    # A separate mapping, larger than needed for alignment: pages that are never touched take no memory.
    mapping = mmap.mmap(-1, num_bytes + 2 * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(mapping, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % _HUGE_PAGE :]
    # The last page becomes a huge page if more than half of it is used.
    whole_pages = (num_bytes + _HUGE_PAGE // 2) // _HUGE_PAGE * _HUGE_PAGE
    _advise(memory[:whole_pages], _HUGE_PAGE, "MADV_HUGEPAGE")
    return memory[:num_bytes].view(dtype).view(shape)


def release_mapped(part: torch.Tensor) -> None:
    """Release the pages of a memory-mapped tensor after its last use.

    They stay in the system's file cache, but no longer count as memory of this process.
    """
    _advise(part, mmap.PAGESIZE, "MADV_DONTNEED")


def release_freed() -> None:
    """Return memory to the system that the allocator keeps for later: hundreds of megabytes after loading."""
    if _libc is not None and hasattr(_libc, "malloc_trim"):  # glibc only
        _libc.malloc_trim(0)


def physical_memory() -> int:
    """Return the bytes of memory of this machine."""
    if sys.platform != "win32":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kilobytes = ctypes.c_ulonglong()
    ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
    return kilobytes.value << 10


def _advise(tensor: torch.Tensor, page: int, advice: str) -> None:
    """Advise the system about the whole pages inside `tensor`, if it takes such advice."""
    if _libc is None or tensor.device.type != "cpu" or not hasattr(mmap, advice):
        return
    begin = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if end > begin:
        _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), getattr(mmap, advice))


# Windows has neither function.
_libc = None if sys.platform == "win32" else ctypes.CDLL(None)
