"""Every operator test runs on each device: tensors are made there unless a test says otherwise."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from higgs_native.ops import PackedWeight
from tests.helpers.devices import DEVICES


class _DrawOnCPU(TorchFunctionMode):
    """Random tensors have the same values on each device: their generators, which are the CPU's, draw there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("generator") is None or "device" in kwargs:
            return func(*args, **kwargs)
        return func(*args, device="cpu", **kwargs).to(torch.get_default_device())


def _moved(value: Any, device: str) -> Any:
    """The value with all tensors in it on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, PackedWeight):
        return PackedWeight(*(_moved(part, device) for part in value))
    if isinstance(value, dict):
        return {key: _moved(part, device) for key, part in value.items()}
    return value


@pytest.fixture(params=DEVICES, autouse=True)
def device(request) -> Iterator[str]:
    if request.param == "cpu":
        yield "cpu"
        return
    # Those that a test is parametrized with were made when its file was read.
    parameters = request.node.callspec.params
    for name, value in parameters.items():
        parameters[name] = _moved(value, request.param)
    with torch.device(request.param), _DrawOnCPU():
        yield request.param
