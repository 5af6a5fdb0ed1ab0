"""Load both libraries of operators without a GPU, and fail unless every operator has a kernel in each.

python tests/helpers/load_libraries.py FOLDER STUB

FOLDER holds the libraries. STUB, the build's libtorch_cuda.so, stands in for the one that a torch without CUDA lacks.
"""

import ctypes
import sys
from pathlib import Path

import torch


def main() -> None:
    folder, stub = (Path(argument) for argument in sys.argv[1:])
    if not (Path(torch.__file__).parent / "lib" / "libtorch_cuda.so").exists():
        ctypes.CDLL(str(stub.resolve()), ctypes.RTLD_GLOBAL)
    backends = {"CPU": "libhiggs_native_cpu.so", "CUDA": "libhiggs_native_cuda.so"}
    for library in backends.values():
        torch.ops.load_library(folder / library)
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("higgs_native::")]
    missing = [
        f"{name} on {backend}"
        for name in names
        for backend in backends
        if not torch._C._dispatch_has_kernel_for_dispatch_key(name, backend)
    ]
    if missing or not names:
        sys.exit(f"torch {torch.__version__}: {len(names)} operators, without a kernel: {', '.join(missing)}")
    print(f"torch {torch.__version__}: {len(names)} operators, each with kernels for {' and '.join(backends)}")


if __name__ == "__main__":
    main()
