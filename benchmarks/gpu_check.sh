#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: build the package for that GPU, test the operators on it, and time them. Nothing is
# downloaded: torch, nvcc, CMake, ninja, pybind11, scikit-build-core and pytest must be there. Results go to $OUT, or to
# benchmarks/results. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmarks/results}
python=${PYTHON:-python3}
mkdir -p "$out"

"$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"; print(torch.__version__, torch.cuda.get_device_name())'
SKBUILD_CMAKE_DEFINE="HIGGS_NATIVE_CUDA=ON;HIGGS_NATIVE_CUDA_ARCHITECTURES=native" \
  "$python" -m pip install --no-build-isolation --no-deps --disable-pip-version-check .

# -I and -P: import what was installed, not the sources here.
"$python" -I -c 'import json; from higgs_native._C import build_info; print(json.dumps(build_info(), indent=2))' |
  tee "$out/gpu_build.json"
status=0
"$python" -P -m pytest -q --junitxml="$out/gpu_tests.xml" tests/ops || status=$?
# The families that have CUDA kernels.
for family in delay_pattern; do
  "$python" "benchmarks/ops/bench_$family.py" --device cuda --json "$out/gpu_$family.json" || status=$?
done
exit "$status"
