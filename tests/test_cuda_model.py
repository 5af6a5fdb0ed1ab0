"""Predicted times of CUDA kernels: the launches that they rest on, and the simulation of instructions."""

import pytest

from benchmarks.tools.cuda_launches import EMULATION, record
from benchmarks.tools.cuda_model import CASES, GPUS, Library, Model, total_us
from benchmarks.tools.sass import LIBRARY, Instruction, find_cuobjdump, read_kernels
from benchmarks.tools.warp_simulation import L2_CYCLES, dependencies, repeat, simulate


needs_emulation = pytest.mark.skipif(not EMULATION.is_file(), reason="the package was built without the emulation")


def instruction(opcode, operands="", predicate=""):
    return Instruction(0, predicate, opcode, operands)


@needs_emulation
def test_the_launches_of_a_frame():
    launches = record(132, {"model": "v2", "format": "int4", "batch": 1})
    assert [(launch.op, launch.kernel.partition("<")[0], launch.blocks) for launch in launches] == [
        ("embed", "embed_kernel", 6),
        ("qkv_rope_cache", "gemm_kernel", 80),
        ("attention", "attention_kernel", 128),
        ("linear", "gemm_kernel", 96),
        ("dual_ffn", "gemm_kernel", 256),
        ("dual_ffn", "gemm_kernel", 96),
        ("rms_norm_linear", "gemm_kernel", 257),
        ("sample_audio_frame", "sample_audio_codes_kernel", 8),
        ("sample_audio_frame", "finish_audio_frames_kernel", 1),
    ]


@needs_emulation
def test_rows_are_packed_by_all_multiprocessors():
    launches = record(132, {"model": "v2", "format": "bfloat16", "batch": 64})
    packing = [launch for launch in launches if launch.kernel.startswith("pack_activations")]
    # 8 tiles of rows; 12 shares of the 96 steps of 3072 columns, 17 of the 256 steps of 8192.
    assert [(launch.x, launch.y) for launch in packing] == [(8, 12), (8, 12), (8, 12), (8, 17), (8, 12)]


@pytest.mark.parametrize(
    ("opcode", "operands", "writes", "reads"),
    [
        ("FFMA", "R1, R2, R3, R1", ["R1"], ["R2", "R3", "R1"]),
        ("LDG.E.128", "R4, desc[UR6][R2.64+0x10]", ["R4", "R5", "R6", "R7"], ["UR6", "R2", "R3"]),
        ("STG.E.64", "desc[UR6][R2.64], R8", [], ["UR6", "R2", "R3", "R8"]),
        ("ISETP.GE.AND", "P0, PT, R1, R2, PT", ["P0"], ["R1", "R2"]),
        ("IADD3", "R1, P2, R3, R4, RZ", ["R1", "P2"], ["R3", "R4"]),
        ("SHFL.BFLY", "PT, R1, R2, 0x1, 0x1f", ["R1"], ["R2"]),
    ],
)
def test_dependencies(opcode, operands, writes, reads):
    assert dependencies(instruction(opcode, operands)) == (writes, reads)


def test_fragments_of_tensor_cores_are_several_registers():
    writes, reads = dependencies(instruction("HMMA.16816.F32.BF16", "R12, R4, R8, R12"))
    assert writes == ["R12", "R13", "R14", "R15"]
    assert reads == ["R4", "R5", "R6", "R7", "R8", "R9", "R12", "R13", "R14", "R15"]


def test_dependent_instructions_wait_and_independent_ones_do_not():
    chain = [instruction("FADD", "R1, R1, R2")] * 10
    independent = [instruction("FADD", f"R{index}, R30, R31") for index in range(10)]
    assert simulate(chain, 1) == 10 * 4
    assert simulate(independent, 1) == 9 + 4
    # Four warps fill each other's gaps.
    assert simulate(chain, 4) == 9 * 4 + 3 + 4


def test_a_unit_takes_one_warp_at_a_time():
    shuffles = [instruction("SHFL.BFLY", f"PT, R{index}, R30, 0x1, 0x1f") for index in range(5)]
    assert simulate(shuffles, 1) == 4 * 4 + 24
    assert simulate(shuffles, 2) == 9 * 4 + 24


def test_a_load_is_waited_for_where_it_is_used():
    load = instruction("LDG.E", "R1, desc[UR6][R2.64]")
    use = instruction("FADD", "R3, R1, R1")
    other = instruction("FADD", "R4, R5, R5")
    assert simulate([load, use], 1) == L2_CYCLES + 4
    assert simulate([load, other, use], 1) == L2_CYCLES + 4


def test_a_path_is_repeated_in_part():
    path = [instruction("NOP"), instruction("EXIT")]
    assert [i.opcode for i in repeat(path, 1.5)] == ["NOP", "EXIT", "NOP"]


@needs_emulation
def test_predictions_of_the_compiled_library():
    """Memory alone takes 1.92 ms for the 6.4 GB of a frame in bfloat16."""
    if not LIBRARY.is_file() or find_cuobjdump() is None:
        pytest.skip("needs a build with CUDA, and cuobjdump")
    kernels = read_kernels(LIBRARY)
    if not kernels:
        pytest.skip("the package has no kernels for sm_90a")
    model = Model(GPUS["H100"], Library(kernels))
    parts = model.pass_of({"model": "v2", "format": "bfloat16", "batch": 1}, 1024)
    assert [p.name for p in parts[0]] == ["qkv", "attention", "o", "gate_up", "down"]
    total = total_us(28, parts)
    assert list(total) == list(CASES)
    assert 1920 < total["best"] < total["expected"] < total["worst"] < 3000
