"""Shared by the benchmarks: read bandwidth, timings and their summaries, the machine's description, JSON reports."""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import higgs_native
from higgs_native import _C
from higgs_native.ops.formats import QUANTIZED_FORMATS
from higgs_native.utils.memory import empty_weight


RESULTS = Path(__file__).resolve().parent / "results"


class ReadBandwidth:
    """Measures the read bandwidth of memory, by all of torch's threads or by a GPU, in GB/s.

    Which reduction is fastest depends on the machine, so three are timed, and the fastest counts.
    """

    def __init__(self, num_bytes: int = 1 << 30, device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        floats = empty_weight((num_bytes // 4,), torch.float32, device)
        floats.fill_(1e-3)  # the first access to a page is slow
        rows, ones = floats.view(-1, 4096), torch.ones(4096, device=device)
        integers = floats.view(torch.int64)
        self._num_bytes = floats.nbytes
        self._passes: list[Callable[[], object]] = [
            lambda: torch.dot(floats, floats),
            lambda: integers.sum(),
            lambda: torch.mv(rows, ones),
        ]
        for one_pass in self._passes:
            one_pass()

    def measure(self) -> float:
        """Read the memory once by each reduction; return the fastest in GB/s."""
        return self._num_bytes / min(seconds(one_pass) for one_pass in self._passes) / 1e9


def in_format(format: str) -> dict[str, str | None]:
    """Return the arguments of `from_pretrained` that load a checkpoint in a format of weights."""
    is_quantized = format in QUANTIZED_FORMATS
    return {"dtype": "auto" if is_quantized else format, "quantization": format if is_quantized else None}


def seconds(function: Callable[[], object]) -> float:
    """The wall time of one call, its work on a GPU included."""
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the GPU if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def summary(values: list[float], digits: int = 3) -> dict[str, float]:
    """Median, min, max, spread (interquartile range over the median) and count of repeated measurements."""
    median = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (median,) * 3
    return {
        "median": round(median, digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "spread": round((high - low) / median, 3),
        "count": len(values),
    }


def share_of_reading(num_bytes: int, times: list[float], read: list[float]) -> float:
    """The share of the read bandwidth used by reading `num_bytes` in `times` (seconds): the median over the rounds.

    Bandwidth varies between rounds on a shared machine, so `read` holds the one measured in each (GB/s).
    """
    shares = [num_bytes / time / 1e9 / gb_per_s for time, gb_per_s in zip(times, read, strict=True)]
    return round(statistics.median(shares), 3)


def machine() -> dict[str, Any]:
    """Describe what a figure depends on: processor, threads, versions, instruction set, GPU."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    described = {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "higgs_native": higgs_native.__version__,
        "commit": commit(),
        "instruction_set": _C.build_info()["cpu_instruction_set"],
    }
    if torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
        driver = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            described["driver"] = subprocess.run(driver, capture_output=True, text=True, check=True).stdout.strip()
    return described


def commit() -> str | None:
    """The commit of the sources that are timed; None outside a checkout."""
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report and the machine's description to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps({"machine": machine(), **report}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
