// A shadow of the memory: of every byte, the last write and the last reads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/emulation/host_memory.h"

namespace higgs_native::emulation::races {

namespace {

// An access. Blocks are numbered from 1 on through all launches; 0 is none. Epochs count the barriers that a thread has
// passed.
struct Record {
  uint32_t block = 0;
  uint32_t thread : 10 = 0;
  uint32_t atomic : 1 = 0;
  uint32_t many_lanes : 1 = 0;   // reads: by others of the warp too, in this epoch of the warp,
  uint32_t many_warps : 1 = 0;   // by other warps too, in this epoch of the block,
  uint32_t many_blocks : 1 = 0;  // by other blocks too, in this launch
  uint32_t epoch : 18 = 0;
  uint32_t warp_epoch : 24 = 0;
  uint32_t atomics : 8 = 0;  // of the thread so far
  uint32_t code = 0;         // where in this library
};

struct Cell {
  Record write, read;
};

// A page of memory has a cell for each 16, 4 or single bytes, whatever the smallest access to it needs.
constexpr unsigned kPageBits = 12;
constexpr size_t kPageBytes = size_t{1} << kPageBits;

size_t num_cells = 0;                          // of all pages
constexpr size_t kMaxCells = size_t{1} << 24;  // half a gigabyte

struct Page {
  unsigned shift = 4;
  bool shared = false;
  std::vector<Cell> cells = std::vector<Cell>(kPageBytes >> 4);

  Page() { num_cells += cells.size(); }

  void refine(unsigned to) {
    std::vector<Cell> finer(kPageBytes >> to);
    num_cells += finer.size() - cells.size();
    for (size_t i = 0; i < finer.size(); ++i) finer[i] = cells[i >> (shift - to)];
    cells = std::move(finer);
    shift = to;
  }
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
struct Recent {
  uintptr_t number = 0;
  Page* page = nullptr;
} recent[1024];

uintptr_t shared_begin = 0, shared_bytes = 0;  // the shared memory that the launch asked for

// Whether a page holds shared memory: what the launch asked for, or the variables of this library.
bool is_shared(uintptr_t page) {
  const uintptr_t at = page << kPageBits, end = at + kPageBytes;
  return (at < shared_begin + shared_bytes && end > shared_begin) ||
         (at < library.variables + library.variable_bytes && end > library.variables);
}

Page& page_of(uintptr_t number) {
  auto& slot = recent[number % std::size(recent)];
  if (slot.page && slot.number == number) return *slot.page;
  auto& page = pages[number];
  if (!page) {
    page = std::make_unique<Page>();
    page->shared = is_shared(number);
  }
  slot = {number, page.get()};
  return *page;
}

// Forgets all accesses if their records take too much memory.
void forget_if_too_many() {
  if (num_cells <= kMaxCells) return;
  std::fill(std::begin(recent), std::end(recent), Recent{});
  pages.clear();
  num_cells = 0;
}

}  // namespace

}  // namespace higgs_native::emulation::races
