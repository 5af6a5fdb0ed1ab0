"""Time the packed linear operator with a weight of the published size by rows, beside torch's linear.

    python -m benchmarks.ops.bench_linear --json benchmarks/results/bench_linear.json

A frame has one row, a prompt hundreds. Each call runs through the weights of several layers, which exceed the caches.
Both sides and the read bandwidth take turns.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ReadBandwidth, seconds, share_of_reading, summary, write_json
from higgs_native import ops
from higgs_native.ops.formats import WEIGHT_FORMATS, WeightFormat


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 16, 64, 256])
    parser.add_argument("--shape", type=int, nargs=2, default=[8192, 3072], metavar=("N", "K"))
    parser.add_argument("--formats", nargs="+", choices=WEIGHT_FORMATS, default=list(WEIGHT_FORMATS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bandwidth = ReadBandwidth(256 << 20)
    runs = [bench(rows, dtype, *args.shape, args.repeats, bandwidth) for dtype in args.formats for rows in args.rows]
    if args.json:
        write_json(args.json, {"operator": "linear", "shape": args.shape, "runs": runs})


def packed_weight(n: int, k: int, format: WeightFormat) -> ops.PackedWeight:
    """A random weight in that format; the time does not depend on its values."""
    if not format.is_integer:
        return ops.pack_linear(torch.randn(n, k), format=format.name)
    integers = torch.randint(-8, 8, (n, k), dtype=format.value_dtype)
    return ops.pack_quantized(integers, torch.rand(format.scales_shape(n, k)).to(format.scale_dtype))


@torch.inference_mode()
def bench(
    rows: int, name: str, n: int, k: int, repeats: int, bandwidth: ReadBandwidth, with_compile: bool = True
) -> dict[str, Any]:
    """Time one shape in one format, in milliseconds.

    torch's linear has a bfloat16 weight where ours is quantized, and its activations are in the weight's dtype.
    """
    format = WEIGHT_FORMATS[name]
    dtype = torch.bfloat16 if format.is_quantized else format.dtype
    plain = [torch.randn(n, k).to(dtype) for _ in range(3)]
    packed = [packed_weight(n, k, format) for _ in range(3)]
    x, out = torch.randn(rows, k), torch.empty(rows, n)
    typed = x.to(dtype)
    sides: dict[str, Callable[[], object]] = {
        "native": lambda: [ops.linear(out, x, weight) for weight in packed],
        "torch": lambda: [torch.nn.functional.linear(typed, weight) for weight in plain],
    }
    if with_compile:
        torch.compiler.reset()  # it limits the number of shapes per function
        compiled = torch.compile(torch.nn.functional.linear, dynamic=False)
        sides["torch.compile"] = lambda: [compiled(typed, weight) for weight in plain]
    times: dict[str, list[float]] = {side: [] for side in sides}
    read = []
    for _ in range(repeats + 2):
        for side, run in sides.items():
            times[side].append(1e3 * seconds(run) / len(packed))
        read.append(bandwidth.measure())
    result: dict[str, Any] = {"rows": rows, "format": name}
    times, read = {side: values[2:] for side, values in times.items()}, read[2:]
    result["read_gb_per_s"] = summary(read, digits=1)
    for side in sides:
        num_bytes = packed[0].nbytes if side == "native" else plain[0].nbytes
        ms = summary(times[side])
        result[side] = {
            "ms": ms,
            "mb": round(num_bytes / 1e6, 3),
            "gmac_per_s": round(rows * n * k / ms["median"] / 1e6, 1),
            "share_of_read_bandwidth": share_of_reading(num_bytes, [ms / 1e3 for ms in times[side]], read),
        }
    others = [result[side]["ms"]["median"] for side in sides if side != "native"]
    result["speedup"] = round(min(others) / result["native"]["ms"]["median"], 2)
    native = result["native"]
    print(
        f"{name:8} {rows:4} rows: {native['ms']['median']:8.2f} ms, {native['gmac_per_s']:5.1f} GMAC/s, "
        f"{native['share_of_read_bandwidth']:4.0%} of bandwidth, {result['speedup']:.2f} times as fast as torch"
    )
    return result


if __name__ == "__main__":
    main()
