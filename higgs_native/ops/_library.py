"""Loads the compiled operators and registers the fake (shape-only) implementation of each."""

import os
from pathlib import Path

import torch

from higgs_native.errors import ParameterError


try:
    from higgs_native import _C
except ImportError as error:
    raise ImportError(
        f"higgs_native._C can't be imported ({error}); build and install it with `pip install .`, "
        "or build it into the source tree as CONTRIBUTING.md says"
    ) from error


# Tests set it to 1 to run the CUDA kernels, compiled for the CPU, instead of the CPU's kernels (csrc/cuda/emulation).
EMULATES_CUDA = os.environ.get("HIGGS_NATIVE_EMULATE_CUDA") == "1"


def _load() -> None:
    # In a checkout without compiled files this is the installed package's folder (see higgs_native/__init__.py).
    folder = Path(_C.__file__).parent
    cpu_library = folder / f"libhiggs_native_{'cuda_emulation' if EMULATES_CUDA else 'cpu'}.so"
    if not cpu_library.is_file():
        raise ImportError(f"{cpu_library} must be a file beside higgs_native._C; build and install it: pip install .")
    torch.ops.load_library(cpu_library)
    cuda_library = folder / "libhiggs_native_cuda.so"
    if cuda_library.is_file() and torch.cuda.is_available():
        torch.ops.load_library(cuda_library)


def check_instruction_set() -> None:
    """Raise ParameterError if HIGGS_NATIVE_ISA names no instruction set of this machine."""
    try:
        _C.build_info()
    except RuntimeError as error:
        raise ParameterError(str(error)) from None


def _mutates_only(*args, **kwargs) -> None:
    """The fake implementation of every operator: it returns nothing, since the caller allocates the outputs."""


def register_fakes(*names: str) -> None:
    """Let `torch.compile` and `torch.export` trace the operators `names`, which write into their first arguments."""
    for name in names:
        torch.library.register_fake(f"higgs_native::{name}", _mutates_only)


_load()
