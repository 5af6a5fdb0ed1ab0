#!/usr/bin/env bash
# Cross-compiles the package for 64-bit ARM and runs the tests of the operators there under QEMU, with torch and Python
# for ARM: with each NEON set, or those that SETS names. Arguments go to pytest, tests/ops by default. It takes an hour;
# tests/cross_aarch64.sh compares the kernels alone, without torch, in a minute.
#
# It needs Debian 12's g++-aarch64-linux-gnu and qemu-user, and an interpreter of Python 3.11 with pip, CMake and Ninja,
# which PYTHON chooses. All files go to build/aarch64.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python3}")
PATH=$(dirname "$python"):$PATH
folder=$PWD/build/aarch64
mkdir -p "$folder"/apt/{lists,archives}/partial "$folder/sysroot"

# Debian's Python for ARM, unpacked, not installed.
touch "$folder/apt/status"
cat >"$folder/apt/apt.conf" <<CONF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "$(id -un)";
Dir::State::lists "$folder/apt/lists";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt";
CONF
export APT_CONFIG=$folder/apt/apt.conf
apt-get -q update
apt-get -q install --yes --download-only --no-install-recommends python3-minimal libpython3-stdlib libgomp1 libstdc++6
unset APT_CONFIG
for package in "$folder"/apt/archives/*.deb; do dpkg -x "$package" "$folder/sysroot"; done

# torch for ARM, and what the tests of the operators import.
install=("$python" -m pip install -q --no-deps --only-binary=:all: --upgrade --target "$folder/site" --python-version 3.11.2)
for glibc in 28 27 17; do install+=(--platform "manylinux_2_${glibc}_aarch64"); done
install+=(--platform manylinux2014_aarch64)
"${install[@]}" torch==2.10.0
"${install[@]}" -c constraints.txt numpy filelock typing-extensions sympy mpmath networkx jinja2 markupsafe fsspec \
  pytest pluggy iniconfig packaging pygments

PYTHONPATH=$folder/site cmake -S . -B "$folder/build" -G Ninja -DCMAKE_SYSTEM_NAME=Linux \
  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ "-DPython_EXECUTABLE=$python" \
  "-DPython_INCLUDE_DIR=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
  -DHIGGS_NATIVE_CUDA=OFF
cmake --build "$folder/build"
rm -rf "$folder/package"
mkdir "$folder/package"
cp -rs "$PWD/higgs_native" "$folder/package"
rm -f "$folder"/package/higgs_native/*.so
cmake --install "$folder/build" --prefix "$folder/package"

export PYTHONPATH=$folder/package:$folder/site OMP_NUM_THREADS=1
# With SVE, torch's transposed convolution, which the tests compare with, ends by an illegal instruction.
emulated=(qemu-aarch64 -cpu max,sve=off -L "$folder/sysroot" "$folder/sysroot/usr/bin/python3" -P)
for set in ${SETS:-neon neon_dotprod neon_bf16 neon_i8mm}; do
  echo "Operators with the $set kernels:"
  HIGGS_NATIVE_ISA=$set "${emulated[@]}" -m pytest -q -p no:cacheprovider -k "not opcheck" "${@:-tests/ops}"
done
