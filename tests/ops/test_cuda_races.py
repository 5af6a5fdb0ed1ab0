"""The emulation of CUDA finds the races of kernels (csrc/cuda/emulation/races.h): it is shown one fault of each kind.

That the operators have none, all other tests show while they run emulated: a race is an error of its operator.
"""

import re

import pytest
import torch

from higgs_native.ops import PackedWeight, linear, pack_linear
from higgs_native.ops._library import EMULATES_CUDA
from tests.ops.tensors import random


pytestmark = pytest.mark.skipif(not EMULATES_CUDA, reason="needs the emulation of CUDA in this process")

# Names in csrc/cuda/emulation/faults.cu, and what is said of them.
NOT_ORDERED_IN_BLOCK = r"memory at 0x\w+ by thread \d+ of block \(0, 0, 0\) is not ordered by a barrier with a"
NOT_ORDERED_BETWEEN_BLOCKS = r"global memory .* is not ordered by fences and an atomic with a \w+ by .* of block"
UNWRITTEN = r"a read of shared memory .* of block \(1, 0, 0\) finds what no thread of the block has written"
FAULTS = {
    "missing barrier": f"a read of shared {NOT_ORDERED_IN_BLOCK} write by thread",
    "missing second barrier": f"a write of shared {NOT_ORDERED_IN_BLOCK} read by thread",
    "missing barrier of global memory": f"a read of global {NOT_ORDERED_IN_BLOCK} write by thread",
    "missing warp barrier": f"a read of shared {NOT_ORDERED_IN_BLOCK} write by thread",
    "warp barrier for block": f"a read of shared {NOT_ORDERED_IN_BLOCK} write by thread",
    "same value": f"a write of shared {NOT_ORDERED_IN_BLOCK} write by thread",
    "same byte": f"a write of global {NOT_ORDERED_IN_BLOCK} write by thread",
    "atomic and write": f"a(n atomic| write) of global {NOT_ORDERED_IN_BLOCK}(n atomic| write) by thread",
    "missing barrier of copies": f"a read of shared {NOT_ORDERED_IN_BLOCK} write by thread",
    "copies of a later group": f"a write of shared {NOT_ORDERED_IN_BLOCK} read by thread",
    "unwritten shared": UNWRITTEN,
    "unwritten dynamic shared": UNWRITTEN,
    "overlapping blocks": f"a write of {NOT_ORDERED_BETWEEN_BLOCKS}",
    "block reads another": f"a read of {NOT_ORDERED_BETWEEN_BLOCKS}",
    "last block: no fence before": f"a read of {NOT_ORDERED_BETWEEN_BLOCKS}",
    "last block: one fence before": f"a read of {NOT_ORDERED_BETWEEN_BLOCKS}",
    "last block: no fence behind": f"a read of {NOT_ORDERED_BETWEEN_BLOCKS}",
    "last block: no barrier before": f"a read of {NOT_ORDERED_BETWEEN_BLOCKS}",
    "last block: no fence of one thread": f"a read of {NOT_ORDERED_BETWEEN_BLOCKS}",
    "read before wait": "a read of global .* does not wait for fault, launched 1 earlier, that wrote there",
    "read before wait of the first launch": "a read of global .* does not wait for what torch may have launched",
    "first launch that lets the next begin before it waits": "does not wait for what torch may have launched",
    "write before wait": "a write of global .* does not wait for fault, launched 1 earlier",
    "weights of a launch that lets the next begin early": "does not wait for fault, launched 2 earlier,",
    "weights without a fence": "does not wait for fault, launched 1 earlier, that wrote there",
    "launch between that does not wait": "does not wait for fault, launched 2 earlier, that wrote there",
    "launch between that lets the next begin before it waits": "does not wait for fault, launched 2 earlier",
}


def run(name: str, mended: bool) -> torch.Tensor:
    memory = torch.zeros(1024, dtype=torch.int32)
    torch.ops.higgs_native_emulation.fault(memory, name, mended)
    return memory


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name):
    with pytest.raises(RuntimeError, match=FAULTS[name]):
        run(name, mended=False)
    # It is found each time, not once.
    with pytest.raises(RuntimeError, match=r"^fault: races in an emulated CUDA kernel:"):
        run(name, mended=False)


@pytest.mark.parametrize("name", FAULTS)
def test_without_the_fault_nothing_is_found(name):
    assert run(name, mended=True).any()


def test_kernel_and_lines_are_named():
    """Both places of a race, where the library has its line numbers."""
    with pytest.raises(RuntimeError) as error:
        run("missing barrier", mended=False)
    assert len(set(re.findall(r"missing_barrier_kernel\(.*\) at (faults\.cu:\d+)", str(error.value)))) == 2


def test_a_message_does_not_depend_on_earlier_operators():
    """The linear operator before may still run, too, when the fault's launches begin; the fault is its own launch."""
    output_of_a_linear()
    with pytest.raises(RuntimeError, match=FAULTS["write before wait"]):
        run("write before wait", mended=False)


def output_of_a_linear() -> torch.Tensor:
    """1,024 numbers that a linear operator wrote: memory that is used again, whose last writer was a kernel."""
    out = torch.empty(32, 32)
    linear(out, random((32, 64)), pack_linear(random((32, 64))))
    return out.view(-1)


@pytest.mark.parametrize("rows", [3, 20])
def test_memory_of_an_output_becomes_a_weight(rows):
    """That torch wrote it since, the emulation can't know; on a GPU it is torch's kernel that must be waited for."""
    x, weight = random((rows, 32)), random((32, 32), seed=1)
    packed = pack_linear(weight).data
    reused = output_of_a_linear().view(packed.shape)
    reused.copy_(packed)
    out = torch.empty(rows, 32)
    linear(out, x, PackedWeight(reused))
    torch.testing.assert_close(out, x @ weight.T)


@pytest.mark.parametrize("name", [name for name in FAULTS if "wait" in name])
def test_a_race_in_memory_of_an_output_is_found(name):
    memory = output_of_a_linear().view(torch.int32)
    memory.zero_()
    with pytest.raises(RuntimeError, match=r"does not wait for"):
        torch.ops.higgs_native_emulation.fault(memory, name, False)
    memory = output_of_a_linear().view(torch.int32)
    memory.zero_()
    torch.ops.higgs_native_emulation.fault(memory, name, True)
    assert memory.any()


@pytest.mark.parametrize("fault", [1, 2], ids=["overwritten before the wait", "begun before the barrier"])
def test_faults_of_products_are_found(fault):
    sums = torch.zeros(128)
    with pytest.raises(RuntimeError, match=r"fault_of_products: races .*\n *a (read|write) of shared memory"):
        torch.ops.higgs_native_emulation.fault_of_products(sums, fault)


def test_products_without_a_fault():
    sums = torch.zeros(128)
    torch.ops.higgs_native_emulation.fault_of_products(sums, 0)
    assert sums.tolist() == [16.0] * 128
