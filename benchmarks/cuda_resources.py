"""What each CUDA kernel takes of a multiprocessor, from a build's output; fails where one that must be fast spills.

    pip install -v . 2>&1 | tee build.log
    python benchmarks/cuda_resources.py build.log --out resources.txt

The compiler reports registers, shared memory, and registers that it had to spill into memory, a kernel and an
architecture at a time.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path


_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
# In float32 a model is compared, not served; layouts of a head that no published model has are slow anyway; weights
# are quantized once; and a few registers around a division of 64 bits don't show beside what embedding and the audio
# tokenizer's quantizer wait for.
_NOT_HOT = re.compile(
    r"attention_kernel<float,|attention_kernel<b?float16, \d+, 0>|quantize_linear_kernel|embed_kernel|rvq_encode"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="the output of a build with CUDA")
    parser.add_argument("--out", type=Path, required=True, help="where to write the table")
    args = parser.parse_args()
    table = read(args.log.read_text(encoding="utf-8", errors="replace"))
    if not table:
        sys.exit(f"{args.log} reports no CUDA kernel; was the package built with CUDA, and with pip's -v?")
    lines = [
        f"{arch:8} {registers:3} registers, {shared:6} bytes shared, {spilled:4} bytes spilled: {name}"
        for name, arch, registers, shared, spilled in sorted(table)
    ]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    architectures = sorted({arch for _, arch, *_ in table})
    print(f"{len(table)} kernels for {', '.join(architectures)}: {args.out}")
    spilling = [line for line, row in zip(lines, sorted(table), strict=True) if row[4] and not _NOT_HOT.search(row[0])]
    if spilling:
        sys.exit("kernels that must be fast spill registers:\n" + "\n".join(spilling))


def read(log: str) -> list[tuple[str, str, int, int, int]]:
    """Name, architecture, registers, bytes of shared memory, and bytes spilled of each kernel in a build's output."""
    table = []
    for part in log.split("ptxas info")[1:]:
        entry, spills, used = _ENTRY.search(part), _SPILLS.search(part), _USED.search(part)
        if entry:
            table.append([*entry.groups(), 0, 0, 0])
        # What follows an entry's name belongs to it.
        if spills and table:
            table[-1][4] = int(spills.group(1)) + int(spills.group(2))
        if used and table:
            table[-1][2:4] = int(used.group(1)), int(used.group(2) or 0)
    names = subprocess.run(
        ["c++filt"], input="\n".join(row[0] for row in table), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [(short_name(name), *row[1:]) for name, row in zip(names, table, strict=True)]


def short_name(name: str) -> str:
    """A kernel's name with its template arguments, without namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|higgs_native::|cuda::|^void ", "", name)
    return name.rsplit("(", 1)[0] if name.endswith(")") else name


if __name__ == "__main__":
    main()
