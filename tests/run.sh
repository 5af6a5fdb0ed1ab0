#!/usr/bin/env bash
# Build and install the package with its test dependencies in a virtual environment (build/test-venv), and run all tests,
# those of the operators with each instruction set of this machine. Arguments go to pytest. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

"${PYTHON:-python3}" -m venv build/test-venv
bin=build/test-venv/bin
# With GCC, the CUDA kernels are also built for the CPU on an emulation of CUDA, which tests them without a GPU. It is not
# stripped, so that it can name the lines of races.
emulates=$("${CXX:-c++}" --version | grep -c "Free Software Foundation" || true)
if [ "$emulates" != 0 ]; then
  export SKBUILD_INSTALL_STRIP=false
  export SKBUILD_CMAKE_DEFINE="HIGGS_NATIVE_CUDA_EMULATION=ON${SKBUILD_CMAKE_DEFINE:+;$SKBUILD_CMAKE_DEFINE}"
fi
# For the packages that the build needs, too; pip 25.3 and later take them from the second variable.
export PIP_CONSTRAINT=$PWD/constraints.txt PIP_BUILD_CONSTRAINT=$PWD/constraints.txt
# The build takes its tools and torch from this environment: a second copy of torch would be written and removed.
# Packages are compiled to byte code when they are first imported: at once, all of it would take most of the time.
unset PYTHONDONTWRITEBYTECODE
"$bin/pip" install -q --disable-pip-version-check --no-compile scikit-build-core cmake ninja torch
PATH=$PWD/$bin:$PATH "$bin/pip" install -v --disable-pip-version-check --no-compile --no-build-isolation \
  --check-build-dependencies '.[test]' >build/install.log 2>&1 || { tail -n 50 build/install.log; exit 1; }

if [ "$("$bin/python" -I -c 'from higgs_native._C import build_info as b; print(b()["cuda"])')" = True ]; then
  "$bin/python" benchmarks/cuda_resources.py build/install.log --out build/cuda_resources.txt
fi
# -I: import the installed package, not the sources here.
"$bin/higgs-native" info
used=$("$bin/python" -I -c 'from higgs_native._C import build_info as b; print(b()["cpu_instruction_set"])')
sets=$("$bin/python" -I -c 'from higgs_native._C import build_info as b; print(*b()["cpu_instruction_sets_supported"])')
# Tests that compare with transformers must run from Python 3.11 on, which it needs.
HIGGS_NATIVE_REQUIRE_TRANSFORMERS=$("$bin/python" -c 'import sys; print(int(sys.version_info >= (3, 11)))')
export HIGGS_NATIVE_REQUIRE_TRANSFORMERS

# Waiting threads sleep instead of spinning: with the small models of the tests they wait most of the time.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

# Runs commands side by side, one per core, and prints the output of each when it ends.
side_by_side() {
  printf '%s\0' "$@" | xargs -0 -n 1 -P "$(nproc)" bash -c \
    'output=$(eval "$1" 2>&1) && status=0 || status=$?; printf "\$ %s\n%s\n" "$1" "$output"; exit "$status"' -
}

if [ "$HIGGS_NATIVE_REQUIRE_TRANSFORMERS" = 1 ]; then compared=; else compared=--no-transformers; fi
jobs=()
for set in $sets; do
  # The loops over threads and what torch knows of the operators are the same for all instruction sets.
  [ "$set" = "$used" ] || jobs+=("HIGGS_NATIVE_ISA=$set OMP_NUM_THREADS=1 $bin/pytest -q -r fE -k 'not opcheck' tests/ops")
done
echo "Types, operators with each other instruction set, and benchmarks at toy size:"
side_by_side "$bin/python -m benchmarks --quick $compared --json build/benchmarks.json" "${jobs[@]}" "$bin/mypy" \
  "$bin/mypy --platform win32 --cache-dir build/mypy-win32" \
  "$bin/python -m benchmarks.bench_cuda --quick --device cpu $compared --json build/gpu_benchmarks.json"

# A process per core, and one more: tests of commands and servers wait for other processes. They share the tests of a
# file only at the end: its fixtures are made once in each process.
pytest=("$bin/pytest" -q -n "$(($(nproc) + 1))" --dist worksteal)
echo "Everything with the $used kernels:"
"${pytest[@]}" "$@"
if [ "$emulates" != 0 ]; then
  echo "Emulated CUDA kernels, with every memory access checked for races:"
  quantization=tests/checkpoint/test_quantization.py
  # The longest first: at the end, one core would wait for them.
  HIGGS_NATIVE_EMULATE_CUDA=1 "${pytest[@]}" \
    tests/generation/test_continuous_batching.py::test_each_request_gets_what_it_gets_alone \
    tests/audio_tokenizer/test_graph_decoder.py::test_audio_that_ends_within_a_window_and_at_its_end \
    tests/generation/steps/test_model_runner.py tests/generation/test_parity_transformers.py $quantization::test_rounding \
    $quantization::test_extreme_matrices $quantization::test_a_quantized_model_is_near_the_whole_one tests/ops
fi
