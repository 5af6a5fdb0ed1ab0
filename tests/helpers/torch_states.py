"""States of torch that the program around the package may have set, as context managers by name."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


@contextmanager
def _setting(get: Callable[[], Any], set: Callable[[Any], None], value: Any) -> Iterator[None]:
    before = get()
    set(value)
    try:
        yield
    finally:
        set(before)


def _default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    return _setting(torch.get_default_dtype, torch.set_default_dtype, dtype)


def _convolution_precision(precision: str) -> AbstractContextManager[None]:
    settings = torch.backends.mkldnn.conv
    return _setting(
        lambda: settings.fp32_precision, lambda value: setattr(settings, "fp32_precision", value), precision
    )


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default dtype bfloat16": lambda: _default_dtype(torch.bfloat16),
    "default dtype float64": lambda: _default_dtype(torch.float64),
    "default device meta": lambda: _setting(lambda: None, torch.set_default_device, "meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "matrix operators in bfloat16": lambda: _setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "convolutions in bfloat16": lambda: _convolution_precision("bf16"),
    "inference mode": torch.inference_mode,
    "gradients": lambda: torch.set_grad_enabled(True),
    "no gradients": lambda: torch.set_grad_enabled(False),
}
