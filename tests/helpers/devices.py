"""The devices that operators are tested on.

The CUDA kernels run on a GPU where there is one, and, with HIGGS_NATIVE_EMULATE_CUDA=1, in place of the CPU's on their
emulation (csrc/cuda/emulation).
"""

import pytest
import torch

from higgs_native.ops._library import EMULATES_CUDA


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)]

# Where CUDA kernels run in this process.
CUDA_DEVICE = "cpu" if EMULATES_CUDA else "cuda"
NEEDS_CUDA_KERNELS = pytest.mark.skipif(
    not EMULATES_CUDA and not torch.cuda.is_available(), reason="needs a CUDA device or its emulation"
)

# For tests that an operator refuses a value, such as an index outside its table: the CUDA kernels can't, since the
# host never reads a value on a GPU. They are skipped there (conftest.py).
CHECKS_VALUES = pytest.mark.checks_values


def value_case(*arguments):
    """A case of a parametrized test of refusals, for a value."""
    return pytest.param(*arguments, marks=CHECKS_VALUES)
