#!/usr/bin/env bash
# Build both libraries of operators against each given release of torch, and load every build with every one of them: one
# binary serves all releases that the package allows. No GPU or driver is needed. Without arguments: the oldest release, the
# one of the machines that are measured on, and the newest. PYTHON chooses the interpreter; pip's own settings choose where
# torch comes from (its builds without CUDA are smaller and do as well).
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 2.10.0 2.11.0 2.14.1

for version in "$@"; do
  venv=build/torch-$version
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "torch==$version" numpy scikit-build-core cmake ninja
  echo "Build against torch $version"
  # PTX alone: torch's headers have no part in what ptxas does, which takes most of a build.
  SKBUILD_CMAKE_DEFINE="HIGGS_NATIVE_CUDA=ON;HIGGS_NATIVE_CUDA_ARCHITECTURES=90a-virtual" \
    "$venv/bin/pip" install --disable-pip-version-check --no-deps --no-build-isolation \
    --config-settings "build-dir=$venv/build" --target "$venv/package" --upgrade . >"$venv/build.log" 2>&1 ||
    { tail -n 50 "$venv/build.log"; exit 1; }
done
for built in "$@"; do
  for loaded in "$@"; do
    echo "Load the build against torch $built with torch $loaded"
    "build/torch-$loaded/bin/python" tests/helpers/load_libraries.py "build/torch-$built/package/higgs_native" \
      "build/torch-$built/build/libtorch_cuda.so"
  done
done
