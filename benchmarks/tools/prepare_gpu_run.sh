#!/usr/bin/env bash
# Lay out in wheels/ what gpu_quick.sh needs on a machine without a network: this package, built for that machine's GPU, and
# the packages that the machine lacks, for its version of Python. Arguments replace the list of those packages.
#
# PYTHON builds, with torch and scikit-build-core; TARGET_PYTHON is the machine's version, ARCHITECTURES its GPU's. All of
# wheels/ must stay below MAX_MIB.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
target=${TARGET_PYTHON:-3.12}
max_mib=${MAX_MIB:-56}
packages=("$@")
[ $# -gt 0 ] || packages=(soundfile soxr cffi pycparser transformers)

rm -rf wheels
mkdir wheels
platforms=()
for glibc in 2_28 2_27 2_17 2_12; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest wheels \
  --constraint constraints.txt --python-version "$target" --implementation cp "${platforms[@]}" \
  --platform manylinux2014_x86_64 "${packages[@]}"

# The same build for all versions of Python from 3.10 on. Its folder is kept, so that another run compiles what changed.
SKBUILD_CMAKE_DEFINE="HIGGS_NATIVE_CUDA=ON;HIGGS_NATIVE_CUDA_ARCHITECTURES=${ARCHITECTURES:-90a-real}" \
  "$python" -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation \
  --config-settings build-dir=build/gpu_run --wheel-dir wheels . >build/gpu_run.log 2>&1 ||
  { tail -n 40 build/gpu_run.log; exit 1; }

ls -l wheels
kib=$(du -sk wheels | cut -f1)
echo "wheels/: $((kib / 1024)) MiB"
if [ "$kib" -gt $((max_mib * 1024)) ]; then
  echo "wheels/ must be below $max_mib MiB, got $((kib / 1024)) MiB" >&2
  exit 1
fi
