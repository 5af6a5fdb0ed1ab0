#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, in one call: build the package for that GPU, test it there, look for races and wrong
# accesses, and time everything. Nothing is downloaded: torch, nvcc, CMake, ninja, pybind11, scikit-build-core and pytest
# must be there; wheels of what else is missing may lie in the folder wheels/ (see CONTRIBUTING.md). Results go to $OUT, or
# to benchmarks/results. PYTHON chooses the interpreter, MODEL a checkpoint of the real size (one with random weights is
# made otherwise), STEPS some of: build test sanitize time.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmarks/results}
python=${PYTHON:-python3}
steps=" ${STEPS:-build test sanitize time} "
mkdir -p "$out"
status=0
failed() { echo "FAILED: $1" && status=1; }
wanted() { [[ $steps == *" $1 "* ]]; }

"$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"; print(torch.__version__, torch.cuda.get_device_name())' || exit 1

if wanted build; then
  [ -d wheels ] && "$python" -m pip install --no-index --no-deps --disable-pip-version-check --quiet wheels/*.whl
  SKBUILD_CMAKE_DEFINE="HIGGS_NATIVE_CUDA=ON;HIGGS_NATIVE_CUDA_ARCHITECTURES=native" \
    "$python" -m pip install -v --no-build-isolation --no-deps --disable-pip-version-check . >"$out/gpu_build.log" 2>&1 ||
    { tail -n 40 "$out/gpu_build.log"; exit 1; }
  "$python" benchmarks/cuda_resources.py "$out/gpu_build.log" --out "$out/gpu_resources.txt" || failed resources
fi
# -I and -P: import what was installed, not the sources here.
"$python" -I -c 'import json; from higgs_native._C import build_info; print(json.dumps(build_info(), indent=2))' |
  tee "$out/gpu_build.json"

if wanted test; then
  # Whatever runs on each device, and what is built on it; the CPU's half is left out.
  "$python" -P -m pytest -q --maxfail=40 --junitxml="$out/gpu_tests.xml" -k "cuda or not cpu" \
    tests/ops tests/generation/test_model_runner.py tests/audio_tokenizer/test_graph_decoder.py tests/generation/test_parity_transformers.py \
    tests/generation/test_golden.py || failed tests
fi
if wanted sanitize && command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 --launch-timeout 60 "$python" -P -m pytest -q -x -k cuda \
      tests/ops/test_linear.py tests/ops/test_attention.py tests/ops/test_dual_ffn.py tests/ops/test_decoder.py \
      tests/ops/test_embedding.py tests/ops/test_codec.py >"$out/gpu_$tool.log" 2>&1 || failed "$tool"
    tail -n 3 "$out/gpu_$tool.log"
  done
fi
if wanted time; then
  if [ -z "${MODEL:-}" ]; then
    MODEL=$(mktemp -d)/model
    "$python" -m benchmarks.tools.make_checkpoint --out "$MODEL" || exit 1
  fi
  "$python" -m benchmarks.bench_cuda --model "$MODEL" --json "$out/cuda.json" || failed timing
  HIGGS_NATIVE_DEPENDENT_LAUNCHES=0 "$python" -m benchmarks.bench_cuda --model "$MODEL" --no-transformers \
    --sections frame --json "$out/cuda_without_dependent_launches.json" || failed "timing without dependent launches"
fi
exit "$status"
