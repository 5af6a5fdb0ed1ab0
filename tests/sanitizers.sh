#!/usr/bin/env bash
# Builds the CPU operators with sanitizers and runs them: AddressSanitizer and UndefinedBehaviorSanitizer over the tests
# of the operators with each instruction set of this machine, then ThreadSanitizer over eight threads that speak with one
# engine. All files go to build/sanitizers. It needs GCC, and an interpreter with the packages of CONTRIBUTING.md, which
# PYTHON chooses. Arguments go to pytest.
#
# torch and Python are not instrumented, so some faults are not seen:
# - An operator's access beyond a tensor is found, because torch takes tensors from malloc. torch's own accesses are not
#   checked.
# - Leaks are not searched: torch and Python keep memory until the process ends, and their stacks hold ours.
# - The CUDA kernels are not run; their emulation has checks of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python3}")
bin=$(dirname "$python")
runtime() { "${CXX:-c++}" -print-file-name="lib$1.so"; }

# Builds build/sanitizers/NAME/package with FLAGS: links to the sources, and the compiled files.
build() {
  local folder=build/sanitizers/$1
  echo "Build with $2"
  cmake -S . -B "$folder/build" -G Ninja "-DPython_EXECUTABLE=$python" -DHIGGS_NATIVE_CUDA=OFF \
    "-DCMAKE_CXX_FLAGS=$2 -fno-omit-frame-pointer -g1" >"$folder.log"
  cmake --build "$folder/build" >>"$folder.log" || { tail -n 50 "$folder.log"; exit 1; }
  rm -rf "$folder/package"
  mkdir -p "$folder/package"
  cp -rs "$PWD/higgs_native" "$folder/package"
  rm -f "$folder"/package/higgs_native/*.so
  cmake --install "$folder/build" --prefix "$folder/package" >>"$folder.log"
}

# Waiting threads sleep instead of spinning.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

mkdir -p build/sanitizers
build address "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"
# libstdc++ before the program: AddressSanitizer must find its functions that throw. Tests ask for more memory than there
# is: such a request fails instead of ending the process.
checked=(env "PYTHONPATH=$PWD/build/sanitizers/address/package" "LD_PRELOAD=$(runtime asan) $(runtime stdc++)"
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1)
sets=$(cd build/sanitizers && "${checked[@]}" "$python" -c \
  'from higgs_native._C import build_info as b; print(*b()["cpu_instruction_sets_supported"])')
for set in $sets; do
  echo "Operators with the $set kernels, by AddressSanitizer and UndefinedBehaviorSanitizer:"
  HIGGS_NATIVE_ISA=$set "${checked[@]}" "$bin/pytest" -q tests/ops "$@"
done

build thread -fsanitize=thread
echo "Eight threads that speak with one engine, by ThreadSanitizer:"
# glibc frees the thread-local memory of an ended thread where another one takes over its stack. It is not instrumented,
# so ThreadSanitizer doesn't see that the first thread has ended.
echo race:_dl_deallocate_tls >build/sanitizers/suppressions
# Four threads per operator.
env "TSAN_OPTIONS=suppressions=$PWD/build/sanitizers/suppressions" "LD_PRELOAD=$(runtime tsan)" OMP_NUM_THREADS=4 \
  "PYTHONPATH=$PWD/build/sanitizers/thread/package" "$python" tests/helpers/speak_from_threads.py
