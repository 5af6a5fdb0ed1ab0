"""The devices that operators are tested on.

The CUDA kernels run on a GPU if there is one. With HIGGS_NATIVE_EMULATE_CUDA=1 their emulation (csrc/cuda/emulation)
replaces the CPU kernels.
"""

import pytest
import torch

from higgs_native.ops._library import EMULATES_CUDA


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Without a GPU, half of the operator tests would be reported as skipped.
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

# The device whose operators are CUDA kernels in this process.
CUDA_DEVICE = "cpu" if EMULATES_CUDA else "cuda"
NEEDS_CUDA_KERNELS = pytest.mark.skipif(
    not EMULATES_CUDA and not torch.cuda.is_available(), reason="needs a CUDA device or its emulation"
)

# Marks tests of refused values, such as an index outside its table. CUDA kernels can't refuse values, since the host
# reads none from the GPU, so conftest.py skips these tests there.
CHECKS_VALUES = pytest.mark.checks_values


def value_case(*arguments):
    """A parametrized case of a refused value."""
    return pytest.param(*arguments, marks=CHECKS_VALUES)
