"""The trial that decides whether a GPU's products of warpgroups are used."""

import pytest
import torch

from higgs_native.ops._library import EMULATES_CUDA


pytestmark = pytest.mark.skipif(not EMULATES_CUDA, reason="needs the emulation of CUDA in this process")


def test_products_of_warpgroups_have_the_bits_of_those_of_warps():
    equal = torch.zeros(1, dtype=torch.int32)
    assert torch.ops.higgs_native_emulation.compare_products(equal) == equal.item() == 128 * (64 + 128 + 192)
