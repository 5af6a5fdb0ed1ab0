"""Every operator test runs on each device: tensors are made there unless a test says otherwise."""

from collections.abc import Iterator

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests.devices import DEVICES


class _DrawOnCPU(TorchFunctionMode):
    """Random tensors have the same values on each device: their generators, which are the CPU's, draw there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("generator") is None or "device" in kwargs:
            return func(*args, **kwargs)
        return func(*args, device="cpu", **kwargs).to(torch.get_default_device())


@pytest.fixture(params=DEVICES, autouse=True)
def device(request) -> Iterator[str]:
    if request.param == "cpu":
        yield "cpu"
        return
    with torch.device(request.param), _DrawOnCPU():
        yield request.param
