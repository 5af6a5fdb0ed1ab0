// A set without tiles.
#pragma once

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

inline constexpr bool kHasByteTiles = false;
inline constexpr bool kHasPairTiles = false;
struct Tiles;

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
