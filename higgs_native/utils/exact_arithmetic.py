"""Arithmetic as torch does it by default and with its full accuracy, whatever the program around it does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter

import torch


# Settings of the process, which `torch.set_float32_matmul_precision`, among others, changes.
_SETTINGS = tuple(
    (attrgetter(path)(torch.backends), name, value)
    for path, name, value in (
        ("cuda.matmul", "fp32_precision", "ieee"),
        ("mkldnn.matmul", "fp32_precision", "ieee"),
        ("mkldnn.conv", "fp32_precision", "ieee"),
        ("cudnn.conv", "fp32_precision", "ieee"),
        ("cudnn", "enabled", True),
        ("cudnn", "benchmark", False),
        ("cudnn", "deterministic", True),
    )
)
# One thread at a time, so that none restores the settings while another one computes.
_LOCK = threading.RLock()


def settle_trigonometry() -> None:
    """Compute a cosine and a sine in this thread alone, before threads share larger ones.

    oneMKL 2024.2, which torch brings, chooses a function's kernel at its first call. If several threads make that call
    at once, one of them may compute its part with a kernel of low accuracy: errors up to 1.5e-4 in the table of
    positions, in 7 of 24 processes on two idle cores, and in one of 2,000 on busy ones. The same seed then gives other
    codes.
    """
    one = torch.ones(1, dtype=torch.float32, device="cpu")
    one.cos()
    one.sin()


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """No autocast, no TF32 or bfloat16 in matrix operators of float32, deterministic cuDNN. Threads take turns."""
    with _LOCK, no_autocast():
        before = [getattr(module, name) for module, name, _ in _SETTINGS]
        try:
            for module, name, value in _SETTINGS:
                setattr(module, name, value)
            yield
        finally:
            for (module, name, _), value in zip(_SETTINGS, before, strict=True):
                setattr(module, name, value)


@contextmanager
def no_autocast() -> Iterator[None]:
    """No autocast on any device that tensors of this package are on."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
