#!/usr/bin/env bash
# Ten minutes on a machine with an NVIDIA GPU: what decides everything else comes first, and each fact is on the disk as soon
# as it is known (facts.jsonl; the output of each step in log.txt). Nothing is downloaded: prepare_gpu_run.sh lays out wheels/
# beforehand. Results go to $OUT, or to benchmarks/results/gpu. PYTHON chooses the interpreter.
#
#   gpu_quick.sh              facts, operators, frames, batches, tests: 570 s at most
#   gpu_quick.sh --sanitize   wrong accesses and races, and a profile of the kernels: 240 s at most
#   gpu_quick.sh --rehearse   every step of both on a CPU at toy size; fails unless all facts are there. SLOWDOWN multiplies
#                             the time limits, for a machine that is busy.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results/gpu}
mkdir -p "$out"
facts=$out/facts.jsonl
slowdown=${SLOWDOWN:-1}
status=0

say() { echo "== $SECONDS s: $*" | tee -a "$out/log.txt"; }
step() { # LIMIT NAME COMMAND...
  local limit=$(($1 * slowdown)) name=$2 code left=$((budget * slowdown - SECONDS))
  shift 2
  if [ "$left" -lt 5 ]; then say "$name: no time left" && status=1 && return 1; fi
  [ "$limit" -lt "$left" ] || limit=$left
  timeout --kill-after 5 "$limit" "$@" >>"$out/log.txt" 2>&1
  code=$?
  say "$name: exit status $code"
  [ "$code" = 0 ] || status=1
  return "$code"
}
measure() { # LIMIT NAME SECTIONS... --formats FORMATS...
  local limit=$1 name=$2
  shift 2
  step "$limit" "$name" "$python" -m benchmarks.gpu_quick "$facts" "$@" ${rehearse:+--rehearse}
}

# Runs a linear operator: the library is there, is loaded, and has code for this device.
load_check='import sys, torch
from higgs_native import ops
weight, x, out = (torch.ones(*shape, device=sys.argv[1]) for shape in ((32, 32), (1, 32), (1, 32)))
ops.linear(out, x, ops.pack_linear(weight))
assert out.sum() == 32 * 32, out'

rehearse=
steps=quick budget=570 jobs=6
case ${1:-} in
  --rehearse) rehearse=yes steps="quick sanitize" budget=$((570 + 240)) jobs=0 ;;
  --sanitize) steps=sanitize budget=240 ;;
  "") ;;
  *) echo "the option must be --sanitize or --rehearse, got $1" >&2 && exit 2 ;;
esac

# The tests that run on a GPU. A rehearsal takes the CPU's half of one quick file.
operator_tests=(-k cuda tests/ops)
loop_tests=(-k "cuda or not cpu" tests/generation/steps/test_model_runner.py tests/generation/test_golden.py
  tests/audio_tokenizer/test_graph_decoder.py)
sanitized_tests=(-k cuda tests/ops/test_linear.py tests/ops/test_attention.py tests/ops/test_dual_ffn.py
  tests/ops/test_decoder.py tests/ops/test_embedding.py)
sanitizer() { echo "compute-sanitizer --tool $1 --error-exitcode 9 --launch-timeout 60"; }
profiler="ncu --set basic --target-processes all --launch-count 200 --csv --log-file $out/kernels.csv"
if [ "$rehearse" ]; then
  rm -f "$facts"
  operator_tests=(-k cpu tests/ops/test_delay_pattern.py) loop_tests=("${operator_tests[@]}")
  sanitized_tests=("${operator_tests[@]}")
  sanitizer() { echo "env"; }
  profiler=env
fi

export PYTHONUNBUFFERED=1 CUDA_MODULE_LOADING=LAZY
if [ -z "$rehearse" ]; then
  site=${SITE:-$(mktemp -d)}
  # Not -I, which ignores PYTHONPATH, and not a new virtual environment, which would lack the machine's torch.
  export PYTHONPATH=$site
  step 20 machine nvidia-smi
  step 60 install "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" wheels/*.whl
  if ! step 60 load "$python" -c "$load_check" cuda; then
    SKBUILD_CMAKE_DEFINE="HIGGS_NATIVE_CUDA=ON;HIGGS_NATIVE_CUDA_ARCHITECTURES=native" step 180 build \
      "$python" -m pip install -v --no-build-isolation --no-deps --target "$site" --upgrade .
  fi
else
  step 60 load "$python" -c "$load_check" cpu
fi

if [[ $steps == *quick* ]]; then
  measure 120 bfloat16 machine operators same_codes frames kernels --formats bfloat16
  measure 90 formats same_codes frames --formats int8 int4 fp8
  HIGGS_NATIVE_DEPENDENT_LAUNCHES=0 measure 50 "without dependent launches" same_codes frames --formats bfloat16 int4
  measure 70 batches prompts batches --formats bfloat16 int8
  # Prompts as slow as before mean that the trial of warpgroups has failed (csrc/cuda/warpgroup_trial.h).
  HIGGS_NATIVE_WARPGROUPS=0 measure 40 "prompts by warps" prompts --formats bfloat16
  measure 45 "kernels of int4" kernels --formats int4
  step 90 operators "$python" -m pytest -q -n "$jobs" --maxfail=20 "${operator_tests[@]}"
  # As if the GPU had two multiprocessors: small matrices then take the kernels of large ones.
  HIGGS_NATIVE_MULTIPROCESSORS=2 step 60 "operators of large shapes" \
    "$python" -m pytest -q -n "$jobs" --maxfail=20 "${operator_tests[@]}"
  step 60 loops "$python" -m pytest -q --maxfail=5 "${loop_tests[@]}"
fi
if [[ $steps == *sanitize* ]]; then
  # shellcheck disable=SC2046,SC2086  # a command and its arguments
  for tool in memcheck racecheck; do
    step 80 "$tool" $(sanitizer $tool) "$python" -m pytest -q -x "${sanitized_tests[@]}"
  done
  step 80 profile $profiler "$python" -m benchmarks.gpu_quick "$facts" same_codes --formats bfloat16 ${rehearse:+--rehearse}
fi
if [ "$rehearse" ]; then step 20 check "$python" -m benchmarks.gpu_quick "$facts" --check; fi
say "end"
exit "$status"
