"""Loads the compiled operators and registers the fake (shape-only) implementation of each."""

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from higgs_native.errors import ParameterError
from higgs_native.utils.variables import EMULATE_CUDA_VARIABLE


try:
    from higgs_native import _C
except ImportError as error:
    raise ImportError(
        f"higgs_native._C can't be imported ({error}); build and install it with `pip install .`, "
        "or build it into the source tree as CONTRIBUTING.md says"
    ) from error


_LOGGER = logging.getLogger(__name__)
# Tests set it to 1 to run the CUDA kernels, compiled for the CPU, instead of the CPU's kernels (csrc/cuda/emulation).
EMULATES_CUDA = os.environ.get(EMULATE_CUDA_VARIABLE) == "1"


def _load() -> None:
    # In a checkout without compiled files this is the installed package's folder (see higgs_native/__init__.py).
    folder = Path(_C.__file__).parent
    suffix = ".dll" if sys.platform == "win32" else ".so"  # those of CMake's modules, also on macOS
    cpu_library = folder / f"libhiggs_native_{'cuda_emulation' if EMULATES_CUDA else 'cpu'}{suffix}"
    if not cpu_library.is_file():
        raise ImportError(f"{cpu_library} must be a file beside higgs_native._C; build and install it: pip install .")
    torch.ops.load_library(cpu_library)
    _LOGGER.debug("operators: %s", cpu_library)
    cuda_library = folder / f"libhiggs_native_cuda{suffix}"
    if cuda_library.is_file() and torch.cuda.is_available():
        torch.ops.load_library(cuda_library)
        _LOGGER.debug("operators: %s", cuda_library)


def check_instruction_set() -> None:
    """Raise ParameterError if HIGGS_NATIVE_ISA names no instruction set of this machine."""
    try:
        _C.build_info()
    except RuntimeError as error:
        raise ParameterError(str(error)) from None


def _check_devices(name: str, arguments: Iterable[tuple[str, Any]]) -> None:
    """Raise RuntimeError for meta tensors beside tensors of a device, whose calls the dispatcher also sends here."""
    tensors = []
    for argument, value in arguments:
        if isinstance(value, torch.Tensor):
            tensors.append((argument, value))
        elif isinstance(value, list | tuple):
            tensors += [
                (f"{argument}[{index}]", part) for index, part in enumerate(value) if isinstance(part, torch.Tensor)
            ]
    devices = [tensor.device for _, tensor in tensors if tensor.device.type != "meta"]
    for argument, tensor in tensors:
        # An empty tensor stands for scales that a matrix does not have.
        if devices and tensor.device != devices[0] and tensor.numel() > 0:
            raise RuntimeError(f"{name}: {argument} must be on {devices[0]}, got {tensor.device}")


def register_fakes(*names: str) -> None:
    """Let `torch.compile` and `torch.export` trace the operators `names`.

    A fake implementation only checks devices: outputs belong to the caller, so no shape has to be made.
    """
    for name in names:
        arguments = getattr(torch.ops.higgs_native, name).default._schema.arguments

        def fake(*args, name=name, arguments=arguments, **kwargs) -> None:
            named = [(argument.name, value) for argument, value in zip(arguments, args, strict=False)]
            _check_devices(name, [*named, *kwargs.items()])

        torch.library.register_fake(f"higgs_native::{name}", fake)


_load()
