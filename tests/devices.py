"""The devices that operators are tested on.

The CUDA kernels run on a GPU where there is one, and, with HIGGS_NATIVE_EMULATE_CUDA=1, in place of the CPU's on their
emulation (csrc/cuda/emulation).
"""

import pytest
import torch


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)]

# For tests that an operator refuses a value, such as an index outside its table: the CUDA kernels can't, since the
# host never reads a value on a GPU. They are skipped there.
CHECKS_VALUES = pytest.mark.checks_values
