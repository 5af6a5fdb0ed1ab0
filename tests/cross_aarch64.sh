#!/usr/bin/env bash
# Cross-compiles the CPU kernels for 64-bit ARM, and compares each NEON set with the generic one under QEMU
# (tests/helpers/compare_kernels.cpp). Sets without bfloat16 run on processors without it. This shows what the kernels
# compute, not how fast, and nothing of the code around them.
#
# It needs Debian's packages g++-aarch64-linux-gnu and qemu-user. All files go to build/aarch64.
set -euo pipefail
cd "$(dirname "$0")/.."
out=build/aarch64
mkdir -p "$out"
compile=(aarch64-linux-gnu-g++ -Icsrc -O3 -std=c++20 -Wall -Wextra -Wno-psabi -Wno-maybe-uninitialized)
neon=(-DHIGGS_NATIVE_NEON -fno-schedule-insns) # as in CMakeLists.txt
declare -A flags=([generic]= [neon]=-march=armv8-a [neon_dotprod]=-march=armv8.2-a+dotprod
  [neon_bf16]=-march=armv8.2-a+dotprod+bf16 [neon_i8mm]=-march=armv8.2-a+dotprod+bf16+i8mm)
objects=()
for source in csrc/cpu/*_kernels.cpp; do
  for set in "${!flags[@]}"; do
    [ "$set" != neon_i8mm ] || [[ $source == *linear* ]] || continue # of the others it has no kernels
    object=$out/$(basename "$source" .cpp).$set.o
    options=(-DHIGGS_NATIVE_ISA="$set")
    [ "$set" = generic ] || options+=("${neon[@]}" "${flags[$set]}")
    [[ $source != *sampling* ]] || options+=(-ffp-contract=off)
    "${compile[@]}" "${options[@]}" -c "$source" -o "$object"
    objects+=("$object")
  done
done
"${compile[@]}" -static tests/helpers/compare_kernels.cpp "${objects[@]}" -o "$out/compare_kernels"

declare -A processors=([neon]=cortex-a72 [neon_dotprod]=neoverse-n1 [neon_bf16]=max [neon_i8mm]=max)
for set in neon neon_dotprod neon_bf16 neon_i8mm; do
  qemu-aarch64 -cpu "${processors[$set]}" "$out/compare_kernels" "$set"
done
