"""Rules on the compiled CUDA kernels, which need no GPU: on their SASS for sm_90a, of the package that is tested."""

import json
import re
from collections import Counter

import pytest

from benchmarks.tools.sass import (
    BUDGET,
    LIBRARY,
    find_cuobjdump,
    linear_kernels,
    local_accesses,
    measure_budget,
    missing_waits,
    parse_kernels,
    read_kernels,
    weight_load_widths,
)
from benchmarks.tools.warp_simulation import dependencies


FRAME_KERNELS = re.compile(
    r"gemm_kernel|wide_gemm_kernel|warpgroup_gemm_kernel|finish_shares_kernel|pack_activations_kernel|"
    r"convolve_matrix_kernel|rope_kernel|"
    r"embed_kernel<bfloat16|sample_audio_codes|finish_audio_frames|"
    r"attention_kernel<b?float16, \d, (64|128)>"
)
MIN_BYTES_IN_FLIGHT = 40 << 10
"""Of a multiprocessor: its share of 3.35 TB/s in 1.5 us."""


@pytest.fixture(scope="module")
def kernels():
    if not LIBRARY.is_file():
        pytest.skip("the package was built without CUDA")
    if find_cuobjdump() is None:
        pytest.skip("cuobjdump is not installed")
    found = read_kernels(LIBRARY)
    if not found:
        pytest.skip("the package has no kernels for sm_90a")
    return found


def test_the_kernels_of_a_frame_are_there(kernels):
    frame = [name for name in kernels if FRAME_KERNELS.match(name)]
    assert len(linear_kernels(kernels)) == 26
    assert len(frame) > 40


def test_nothing_is_read_or_written_before_the_wait(kernels):
    wrong = {name: missing_waits(kernel) for name, kernel in kernels.items() if name != "empty_kernel"}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_kernels_of_a_frame_keep_their_values_in_registers(kernels):
    counts = {name: local_accesses(kernel) for name, kernel in kernels.items() if FRAME_KERNELS.match(name)}
    assert {name: count for name, count in counts.items() if count} == {}


def test_products_of_warpgroups_are_not_serialized(kernels):
    """Where the compiler can't follow their registers, it waits for each.

    The steps of a stage are waited for once, and all at the end of a share and of the loop.
    """
    found = {name: kernel for name, kernel in kernels.items() if name.startswith("warpgroup_gemm_kernel")}
    assert len(found) == 8
    for name, kernel in found.items():
        counts = Counter(i.opcode.partition(".")[0] for i in kernel.instructions if not i.is_wait_for_products)
        waits = sum(i.is_wait_for_products for i in kernel.instructions)
        assert (counts["HGMMA"], waits) == (8 if "WeightFormat)3" in name else 4, 4), name


def test_products_of_warpgroups_have_their_registers_to_themselves(kernels):
    """From the fence before a product to the wait for it, nothing writes the weights that it reads.

    In the loop of linear kernels the wait for a step comes after that for the step before; the trial waits for all.
    """
    for name, kernel in kernels.items():
        waits_of_product = {"warpgroup_gemm_kernel": 2, "compare_products_kernel": 1}.get(name.partition("<")[0])
        if waits_of_product is None:
            continue
        loops = [loop for loop in kernel.loops() if any(i.is_warpgroup_product for i in kernel.body(loop))]
        code = kernel.body(max(loops, key=lambda loop: loop[1] - loop[0])) if loops else list(kernel.instructions)
        products = [index for index, i in enumerate(code) if i.is_warpgroup_product]
        assert len(products) in (2, 4, 8), name
        for index in products:
            fence = max(at for at in range(index) if code[at].opcode.startswith("WARPGROUP.ARRIVE"))
            weights = {register for register in dependencies(code[index])[1] if not register.startswith("U")}
            assert len(weights) == 4
            left, waited_for_all = waits_of_product, False
            for i in code[fence:] + code[:fence]:
                if i.is_wait_for_products:
                    # The end of a share waits for all, on a separate branch.
                    waited_for_all = i.operands.endswith("0x0")
                    left -= waits_of_product == 1 or not waited_for_all
                if left == 0:
                    break
                written = weights.intersection(dependencies(i)[0])
                assert waited_for_all or not written, f"{name}: {i.address:#x} {i.opcode}"


def test_weights_are_loaded_16_bytes_at_a_time(kernels):
    assert {name: weight_load_widths(kernel) for name, kernel in linear_kernels(kernels).items()} == {
        name: {16} for name in linear_kernels(kernels)
    }


def test_linear_kernels_keep_enough_weights_in_flight(kernels):
    """A block at a time, or as many as registers leave room for; blocks take 20 KB of shared memory or more."""
    in_flight = {
        name: kernel.blocks_per_multiprocessor(256, 21_000) * kernel.prefetched_bytes(warps=8)
        for name, kernel in linear_kernels(kernels).items()
    }
    assert {name: count for name, count in in_flight.items() if count < MIN_BYTES_IN_FLIGHT} == {}


def test_instructions_are_within_the_budget(kernels):
    """`python -m benchmarks.tools.sass --update` stores it. Releases of the compiler differ by a few instructions."""
    budget = json.loads(BUDGET.read_text(encoding="utf-8"))
    measured = measure_budget(kernels)
    assert measured.keys() == budget.keys()
    over = {
        f"{name} ({case})": (count, budget[name][case])
        for name, cases in measured.items()
        for case, count in cases.items()
        if count > 1.03 * budget[name][case]
    }
    assert over == {}


def parsed(*lines, name="gemm_kernel"):
    """A kernel of these instructions."""
    sass = f"\t\tFunction : {name}\n" + "".join(
        f"        /*{16 * index:04x}*/                   {line} ;  /* 0x0 */\n" for index, line in enumerate(lines)
    )
    usage = f" Function {name}:\n  REG:126 STACK:0 SHARED:384 LOCAL:0\n"
    return parse_kernels(usage, sass)[name]


WEIGHT = "LDG.E.NA.LTC256B.128.CONSTANT R4, desc[UR4][R2.64]"
WAIT, END = "ACQBULK", "EXIT"


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ((WEIGHT, "LDG.E.64 R8, desc[UR4][R2.64]", WAIT, "LDG.E R0, desc[UR4][R2.64]", END), []),
        (("LDG.E R0, desc[UR4][R2.64]", WAIT, END), ["0x0: LDG.E"]),
        (("STG.E desc[UR4][R2.64], R0", WAIT, END), ["0x0: STG.E"]),
        (("@P0 ACQBULK", "LDG.E.128 R4, desc[UR4][R2.64]", WAIT, END), ["0x10: LDG.E.128"]),
        # Around the wait, and past it to the end.
        (("@P0 BRA 0x20", WAIT, "LDG.E R0, desc[UR4][R2.64]", END), ["0x20: LDG.E", "0x30: EXIT"]),
        (("BRA.DIV UR4, 0x20", WAIT, END), ["0x20: EXIT"]),
        (("@P0 BRA 0x30", WAIT, "BRA 0x40", WAIT, "LDG.E R0, desc[UR4][R2.64]", END), []),
    ],
)
def test_a_missing_wait_is_found(lines, wrong):
    assert missing_waits(parsed(*lines)) == wrong


def test_weights_alone_are_copied_before_the_wait_by_products_of_warpgroups():
    weights, x = "LDGSTS.E.LTC128B.64 [R1], desc[UR4][R2.64]", "LDGSTS.E.BYPASS.LTC128B.128 [R1], desc[UR4][R2.64]"
    assert missing_waits(parsed(weights, WAIT, x, END, name="warpgroup_gemm_kernel")) == []
    assert missing_waits(parsed(weights, x, WAIT, END, name="warpgroup_gemm_kernel")) == [
        "0x10: LDGSTS.E.BYPASS.LTC128B.128"
    ]
    assert missing_waits(parsed(weights, WAIT, END)) == ["0x0: LDGSTS.E.LTC128B.64"]


def test_attention_may_read_its_pages_before_the_wait_but_not_its_keys():
    page, keys = "LDG.E R0, desc[UR4][R2.64]", "LDG.E.128 R4, desc[UR4][R2.64]"
    assert missing_waits(parsed(page, WAIT, keys, END, name="attention_kernel")) == []
    assert missing_waits(parsed(page, keys, WAIT, END, name="attention_kernel")) == ["0x10: LDG.E.128"]
    assert missing_waits(parsed(page, WAIT, keys, END)) == ["0x0: LDG.E"]


def test_local_accesses_are_counted():
    assert local_accesses(parsed("STL [R1], R0", "LDL R0, [R1]", END)) == 2


def test_the_width_of_a_load_is_read():
    narrow = "LDG.E.NA.LTC256B.64.CONSTANT R4, desc[UR4][R2.64]"
    assert weight_load_widths(parsed(WEIGHT, narrow, WAIT, END)) == {16, 8}


def test_the_path_through_a_linear_kernel_goes_by_its_weights_and_passes_the_slow_loads_by():
    kernel = parsed(
        WEIGHT,  # 0x00
        WAIT,
        "@P0 BRA 0x50",  # 0x20: the loop
        "LDG.E.128 R8, desc[UR4][R2.64]",
        "BRA 0x60",
        "LDG.E R8, desc[UR4][R2.64]",  # 0x50
        "@P1 BRA 0x90",  # 0x60: leaves the loop
        "HMMA.16816.F32.BF16 R12, R4, R8, R12",
        WEIGHT,
        "@P2 BRA 0x20",  # 0x90
        "BAR.SYNC 0x0",
        END,
    )
    path = kernel.linear_path(normalizes=False)
    assert [f"{i.address:x}" for i in path] == ["20", "30", "40", "60", "70", "80", "90"]
    assert kernel.prefetched_bytes(warps=8) == 16 * 32 * 8


def test_the_main_loop_may_follow_a_barrier_and_code_behind_it_is_none():
    kernel = parsed(
        WEIGHT,  # 0x00
        WAIT,
        "BAR.SYNC 0x0",
        WEIGHT,  # 0x30: the loop
        "@P0 BRA 0x70",
        "@P1 BRA 0x30",
        "BAR.SYNC 0x0",
        "BRA 0x50",  # 0x70: seldom run
        END,
    )
    assert kernel.main_loop == (0x30, 0x50)
    assert kernel.prefetched_bytes(warps=1) == 16 * 32


def test_of_two_ways_before_the_main_loop_one_is_taken():
    kernel = parsed(
        "@P0 BRA 0x40",  # 0x00
        WEIGHT,
        WEIGHT,
        "BRA 0x60",
        WEIGHT,  # 0x40
        WEIGHT,
        WAIT,  # 0x60
        WEIGHT,  # 0x70: the loop
        "@P1 BRA 0x70",
        "BAR.SYNC 0x0",
        END,
    )
    assert kernel.prefetched_bytes(warps=1) == 2 * 16 * 32


@pytest.mark.parametrize(("threads", "shared", "blocks"), [(256, 0, 2), (128, 0, 4), (256, 200_000, 1)])
def test_blocks_that_fit_on_a_multiprocessor(threads, shared, blocks):
    """Of 126 registers a thread, which are given out as 128."""
    assert parsed(END).blocks_per_multiprocessor(threads, shared) == blocks
