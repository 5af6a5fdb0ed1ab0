"""Measure this machine's read bandwidth, a lower bound for every kernel that streams weights.

python -m benchmarks.bench_bandwidth [--json benchmarks/results/bench_bandwidth.json]
"""

import argparse
from pathlib import Path

from benchmarks.measure import ReadBandwidth, machine, summary, write_json


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="memory to read; must exceed the caches")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bandwidth = ReadBandwidth(int(args.gigabytes * 2**30) // 16384 * 16384)
    measured = summary([bandwidth.measure() for _ in range(args.repeats)], digits=1)
    print(
        f"{measured['median']} GB/s read with {machine()['threads']} threads "
        f"({measured['min']} to {measured['max']} in {measured['count']} passes)"
    )
    if args.json:
        write_json(args.json, {"read_gb_per_s": measured})


if __name__ == "__main__":
    main()
