"""The threads of the CPU's operators."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from higgs_native import ops
from higgs_native._C import cpu_quota
from tests.helpers.waiting import PATIENCE


# The same linear operator by a process that has threads, and by its forked child, which has none of them.
FORK = """
import os, sys, torch
from higgs_native import ops
torch.set_num_threads(2)
weight = ops.pack_linear(torch.randn(4096, 512))
x = torch.randn(3, 512)
def linear():
    out = torch.empty(3, 4096)
    ops.linear(out, x, weight)
    return out
expected = linear()
child = os.fork()
if child == 0:
    os._exit(0 if all(torch.equal(linear(), expected) for _ in range(100)) else 1)
assert torch.equal(linear(), expected)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


SLEEPING = """
import os, sys, time, torch
from pathlib import Path
from higgs_native import ops

torch.set_num_threads(4)
ops.linear(torch.empty(5, 4096), torch.randn(5, 512), ops.pack_linear(torch.randn(4096, 512)))
main = os.getpid()
helpers = [Path(f"/proc/self/task/{task}/stat") for task in os.listdir("/proc/self/task") if int(task) != main]
assert len(helpers) >= 3
end = time.monotonic() + float(sys.argv[1])
while any(helper.read_text().rpartition(") ")[2][0] == "R" for helper in helpers):
    assert time.monotonic() < end, "the helpers don't sleep"
    time.sleep(0.01)
"""


@pytest.fixture
def linear():
    """A function that computes a linear operator which several threads share."""
    generator = torch.Generator().manual_seed(0)
    weight = ops.pack_linear(torch.randn(4096, 512, generator=generator))
    x = torch.randn(5, 512, generator=generator)

    def compute(threads: int) -> torch.Tensor:
        out = torch.empty(5, 4096)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            ops.linear(out, x, weight)
        finally:
            torch.set_num_threads(before)
        return out

    return compute


def test_any_number_of_threads_computes_the_same_bits(linear):
    expected = linear(1)
    for threads in (2, 7, 3, 2):
        for _ in range(50):
            assert torch.equal(linear(threads), expected)


def test_callers_may_compute_at_once(linear):
    expected = linear(1)
    with ThreadPoolExecutor(4) as callers:
        results = callers.map(linear, [3] * 400)
    assert all(torch.equal(result, expected) for result in results)


def test_a_forked_child_computes():
    forked = subprocess.run(
        [sys.executable, "-c", FORK], timeout=PATIENCE, check=False, capture_output=True, text=True
    )
    assert forked.returncode == 0, forked.stderr


def test_helpers_sleep_when_nothing_is_left(run_python):
    """A helper that looked for work all the time would always be running, in /proc: R."""
    finished = run_python(SLEEPING, str(PATIENCE))
    assert finished.returncode == 0, finished.stderr


def written(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, 0),
        ({"proc/self/cgroup": "0::/\n"}, 0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 0),
        # The lowest of a group and those above it; one above is not mounted.
        (
            {
                "proc/self/cgroup": "0::/a/b/c\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/c/cpu.max": "800000 100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "5:cpuset:/x\n4:cpu,cpuacct:/docker/1\n0::/\n",
                "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ({"proc/self/cgroup": "no group\n\n7\n0::\n", "sys/fs/cgroup/cpu.max": "0 0\n"}, 0),
    ],
)
def test_the_quota_of_control_groups(tmp_path, files, quota):
    assert cpu_quota(written(tmp_path, files)) == quota
