#!/usr/bin/env bash
# Build and install the package, and what its tests need, in a virtual environment of its own (build/test-venv), and run
# all tests; those of the operators under each instruction set that this machine has. Arguments go to pytest.
# PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

"${PYTHON:-python3}" -m venv build/test-venv
bin=build/test-venv/bin
# With GCC the CUDA kernels are built for the CPU too, on an emulation of CUDA: so they are tested without a GPU. Unstripped,
# it names the lines of races that it finds.
emulates=$("${CXX:-c++}" --version | grep -c "Free Software Foundation" || true)
if [ "$emulates" != 0 ]; then
  export SKBUILD_INSTALL_STRIP=false
  export SKBUILD_CMAKE_DEFINE="HIGGS_NATIVE_CUDA_EMULATION=ON${SKBUILD_CMAKE_DEFINE:+;$SKBUILD_CMAKE_DEFINE}"
fi
"$bin/pip" install -v --disable-pip-version-check -c constraints.txt '.[test]' >build/install.log 2>&1 ||
  { tail -n 50 build/install.log; exit 1; }

if [ "$("$bin/python" -I -c 'from higgs_native._C import build_info as b; print(b()["cuda"])')" = True ]; then
  "$bin/python" benchmarks/cuda_resources.py build/install.log --out build/cuda_resources.txt
fi
# -I: import what was installed, not the sources here.
"$bin/higgs-native" info
used=$("$bin/python" -I -c 'from higgs_native._C import build_info as b; print(b()["cpu_instruction_set"])')
sets=$("$bin/python" -I -c 'from higgs_native._C import build_info as b; print(*b()["cpu_instruction_sets_supported"])')
# transformers, which results are compared with, needs Python 3.11; where it can be had, its tests must run.
HIGGS_NATIVE_REQUIRE_TRANSFORMERS=$("$bin/python" -c 'import sys; print(int(sys.version_info >= (3, 11)))')
export HIGGS_NATIVE_REQUIRE_TRANSFORMERS

# Threads that wait for each other give way to whatever else the machine runs, instead of spinning; the tests' models are
# so small that they wait most of the time.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

for set in $sets; do
  if [ "$set" != "$used" ]; then
    echo "The operators with the $set kernels:"
    HIGGS_NATIVE_ISA=$set "$bin/pytest" -q tests/ops
  fi
done
echo "Everything with the $used kernels:"
"$bin/pytest" -q "$@"
if [ "$emulates" != 0 ]; then
  echo "The CUDA kernels, emulated, with every access to memory checked for races:"
  quantization=tests/model/test_quantization.py
  HIGGS_NATIVE_EMULATE_CUDA=1 "$bin/pytest" -q tests/ops tests/generation/test_model_runner.py tests/generation/test_parity_transformers.py \
    tests/audio_tokenizer/test_graph_decoder.py::test_audio_that_ends_within_a_window_and_at_its_end $quantization::test_rounding \
    $quantization::test_extreme_matrices $quantization::test_a_quantized_model_is_near_the_whole_one
fi

if [ "$HIGGS_NATIVE_REQUIRE_TRANSFORMERS" = 1 ]; then compared=; else compared=--no-transformers; fi
echo "The benchmarks, at toy size:"
"$bin/python" -m benchmarks --quick $compared --json build/benchmarks.json
"$bin/python" -m benchmarks.bench_cuda --quick --device cpu $compared --json build/benchmarks_of_a_gpu.json
