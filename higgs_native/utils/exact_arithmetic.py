"""Arithmetic as torch does it by default, whatever the program around it has set."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


# Settings of the process, which `torch.set_float32_matmul_precision`, among others, changes.
_SETTINGS = (
    (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    (torch.backends.mkldnn.matmul, "fp32_precision", "ieee"),
    (torch.backends.mkldnn.conv, "fp32_precision", "ieee"),
    (torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    (torch.backends.cudnn, "enabled", True),
    (torch.backends.cudnn, "benchmark", False),
    (torch.backends.cudnn, "deterministic", True),
)
# One thread at a time, so that none restores the settings while another one computes.
_LOCK = threading.RLock()


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """No autocast, no TF32 or bfloat16 in products of float32, deterministic cuDNN. Threads take turns."""
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
