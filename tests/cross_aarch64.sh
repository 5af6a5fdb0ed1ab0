#!/usr/bin/env bash
# Cross-compiles the CPU operators for 64-bit ARM and runs the tests of the operators under QEMU, with each
# instruction set, after a check that an emulated processor of each kind chooses its own. All files go to build/aarch64. It shows what the kernels compute, not how fast: an
# emulator's time says nothing about a processor's.
#
# It needs Debian 12 with the packages g++-aarch64-linux-gnu and qemu-user, and an interpreter of the same version as
# Debian's Python with pip, CMake and ninja, which PYTHON chooses. SETS chooses instruction sets (neon neon_dotprod
# neon_bf16). Arguments go to pytest; without any, all of tests/ops run.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python3}")
bin=$(dirname "$python")
folder=$PWD/build/aarch64
[ $# -gt 0 ] || set -- tests/ops

# Debian's Python for ARM, unpacked into a folder. apt keeps its state there too, so the machine's own is untouched.
if [ ! -x "$folder/sysroot/usr/bin/python3" ]; then
  mkdir -p "$folder"/apt/{lists,archives}/partial "$folder/sysroot"
  touch "$folder/apt/status"
  cat >"$folder/apt/apt.conf" <<CONF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Dir::State::lists "$folder/apt/lists";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt";
CONF
  export APT_CONFIG=$folder/apt/apt.conf
  apt-get -q update
  apt-get -q install --yes --download-only --no-install-recommends python3-minimal libpython3-stdlib libgomp1 libstdc++6
  unset APT_CONFIG
  for package in "$folder"/apt/archives/*.deb; do dpkg -x "$package" "$folder/sysroot"; done
fi

# Packages for ARM. Each is named, since pip evaluates conditions of dependencies for the machine it runs on. Of torch,
# the last release whose wheel for ARM has no CUDA; the package allows it.
if [ ! -d "$folder/site/pytest" ]; then
  install=("$python" -m pip install -q --disable-pip-version-check --no-deps --only-binary=:all: --target "$folder/site"
    --python-version "$("$python" -c 'import platform; print(platform.python_version())')")
  for glibc in 28 27 17; do install+=(--platform "manylinux_2_${glibc}_aarch64"); done
  install+=(--platform manylinux2014_aarch64)
  "${install[@]}" torch==2.10.0
  "${install[@]}" -c constraints.txt numpy filelock typing-extensions sympy mpmath networkx jinja2 markupsafe fsspec \
    pytest pluggy iniconfig packaging pygments
fi

# torch is found on the path, so that the operators are linked with the one for ARM.
export PATH=$bin:$PATH
PYTHONPATH=$folder/site cmake -S . -B "$folder/build" -G Ninja -DCMAKE_SYSTEM_NAME=Linux \
  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ "-DPython_EXECUTABLE=$python" -DHIGGS_NATIVE_CUDA=OFF \
  "-DPython_INCLUDE_DIR=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
PYTHONPATH=$folder/site cmake --build "$folder/build"
rm -rf "$folder/package"
mkdir -p "$folder/package"
cp -rs "$PWD/higgs_native" "$folder/package"
rm -f "$folder"/package/higgs_native/*.so
cmake --install "$folder/build" --prefix "$folder/package"

# -P: not from this folder, but the package for ARM. The widest processor that has an instruction set and no wider one.
declare -A processors=([neon]=cortex-a72 [neon_dotprod]=neoverse-n1 [neon_bf16]=max)
# pytest with torch ended with an illegal instruction on cortex-a72, so the tests run on `max`.
tests=(qemu-aarch64 -cpu max -L "$folder/sysroot" "$folder/sysroot/usr/bin/python3" -P)
for set in ${SETS:-neon neon_dotprod neon_bf16}; do
  run=(qemu-aarch64 -cpu "${processors[$set]}" -L "$folder/sysroot" "$folder/sysroot/usr/bin/python3" -P)
  export PYTHONPATH=$folder/package:$folder/site OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=passive
  used=$("${run[@]}" -c 'from higgs_native._C import build_info; print(build_info()["cpu_instruction_set"])')
  [ "$used" = "$set" ] || { echo "${processors[$set]} must run the $set kernels, got $used"; exit 1; }
  echo "Operators with the $set kernels:"
  HIGGS_NATIVE_ISA=$set "${tests[@]}" -m pytest -q -p no:cacheprovider "$@"
done
