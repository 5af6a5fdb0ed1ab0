"""Memory for weights."""

import ctypes
import mmap
import sys

import torch


_HUGE_PAGE = 2 << 20


def empty_weight(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised tensor that the operating system may back with huge pages.

    A frame streams gigabytes of weights; with pages of 4 KiB the processor spends a part of that time looking up where
    they are.
    """
    weight = torch.empty(shape, dtype=dtype, device=device)
    if device.type == "cpu" and sys.platform == "linux" and weight.nbytes >= 2 * _HUGE_PAGE:
        begin = -(-weight.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        end = (weight.data_ptr() + weight.nbytes) // _HUGE_PAGE * _HUGE_PAGE
        # Advice only: where the kernel refuses it, pages stay small.
        _madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)
    return weight


_madvise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
