"""Every tensor argument of every operator must be on the device of the others; the error names the one that isn't.

The wrong device is the CPU for a GPU's kernels, and `meta` elsewhere. The dispatcher sends a call with a meta tensor
to the fake implementation, so the CPU's kernels are called by their dispatch key as well.
"""

from typing import Any

import pytest
import torch

from tests.ops.examples import EXAMPLES


def tensor_arguments(name: str) -> list[tuple[str, int, int | None]]:
    """Name, position, and place in its list of each tensor argument."""
    found = []
    for position, (argument, value) in enumerate(zip(schema(name).arguments, EXAMPLES[name](), strict=False)):
        if isinstance(value, torch.Tensor):
            found.append((argument.name, position, None))
        elif isinstance(value, list):
            found += [
                (f"{argument.name}[{index}]", position, index)
                for index, part in enumerate(value)
                if isinstance(part, torch.Tensor)
            ]
    return found


def schema(name: str) -> torch.FunctionSchema:
    return operator(name)._schema


def operator(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.higgs_native, name).default


def moved(arguments: list[Any], position: int, index: int | None, device: str) -> list[Any]:
    """The arguments with one tensor on another device."""
    arguments = list(arguments)
    if index is None:
        arguments[position] = arguments[position].to(device)
    else:
        arguments[position] = [part.to(device) if i == index else part for i, part in enumerate(arguments[position])]
    return arguments


def test_examples_cover_every_tensor_argument():
    operators = {
        name.removeprefix("higgs_native::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("higgs_native::")
    }
    assert operators == set(EXAMPLES)
    for name in EXAMPLES:
        tensors = [argument.name for argument in schema(name).arguments if "Tensor" in str(argument.type)]
        assert tensors == list(dict.fromkeys(argument.split("[")[0] for argument, *_ in tensor_arguments(name))), name


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_valid(name):
    operator(name)(*EXAMPLES[name]())


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_tensor_on_a_wrong_device_is_named(name, device):
    arguments, wrong = EXAMPLES[name](), "cpu" if device == "cuda" else "meta"
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, device.upper()))
    for argument, position, index in tensor_arguments(name):
        changed = moved(arguments, position, index, wrong)
        for call in (operator(name), lambda *args: operator(name).redispatch(keys, *args)):
            with pytest.raises(RuntimeError) as error:
                call(*changed)
            here = "cuda:0" if device == "cuda" else "cpu"
            # torch adds a traceback of its own code behind the first line.
            assert str(error.value).splitlines()[0] == f"{name}: {argument} must be on {here}, got {wrong}"
