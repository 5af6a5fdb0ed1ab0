"""Compiles and binds row_kernels.cpp: what lies between the matrix products of a training step on a CPU."""

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch


_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)


def can_compile() -> bool:
    return shutil.which("g++") is not None


@cache
def _library() -> ctypes.CDLL:
    """Compile, which takes three seconds; a kept file would have to be checked against source and processor."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row_kernels.so"
        subprocess.run(["g++", *_FLAGS, str(_SOURCE), "-o", str(path)], check=True)
        return ctypes.CDLL(str(path))


def run(name: str, *arguments: torch.Tensor | int | float | None) -> None:
    """Call a kernel; tensors go as pointers to their first element. Columns of rows may be cut off."""
    values = []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            assert argument.is_contiguous() or (argument.dim() == 2 and argument.stride(1) == 1), name
            values.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, float):
            values.append(ctypes.c_float(argument))
        else:
            values.append(ctypes.c_void_p(None) if argument is None else ctypes.c_int64(argument))
    getattr(_library(), name)(*values)
