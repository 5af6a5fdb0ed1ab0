// The rules of races.h, on a shadow of the memory.
#include "cuda/emulation/races.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "cuda/emulation/emulation.h"
#include "cuda/emulation/host_memory.h"
#include "cuda/emulation/shadow.h"

namespace higgs_native::emulation::races {

namespace {

// ---- What is known of launches

// Launches that are complete: all up to `before`, and some of those behind.
struct Complete {
  uint32_t before = 0;
  std::set<uint32_t> others;

  bool has(uint32_t launch) const { return launch < before || others.count(launch) != 0; }
  void add(uint32_t launch) {
    if (launch >= before) others.insert(launch);
    while (others.erase(before) != 0) ++before;
  }
  void add(const Complete& all) {
    before = std::max(before, all.before);
    others.insert(all.others.begin(), all.others.end());
    others.erase(others.begin(), others.lower_bound(before));
    while (others.erase(before) != 0) ++before;
  }
};

struct {
  const char* op = "";
  uint32_t number = 0, first_block = 1;
  uint32_t call = 0, first_block_of_call = 1;
  Complete at_start, behind_wait;
  bool any_waited = false;          // some thread did
  bool any_allowed = false;         // some block let the next launch begin early
  bool next_begins_behind = false;  // some block was behind its wait when the next launch could begin
  bool all_fenced = true;           // no thread returned with writes that it had not fenced
  std::vector<std::string> found;   // the messages
  std::set<std::tuple<int, uint32_t, uint32_t>> reported;  // their faults, and the code of both accesses
} launch;

struct Launched {
  uint32_t first_block;
  const char* op;
};
// By number. A call of an operator begins with a launch without a name and without blocks: what torch may have launched.
std::vector<Launched> launches;
std::vector<uint32_t> calls_since_launch;  // the numbers of those behind the last launch

// ---- What is known of the block that runs

constexpr uint32_t kNever = UINT32_MAX;
constexpr uint32_t kMaxAtomics = 255;  // that are told apart

struct Thread {
  uint32_t epoch = 0, warp_epoch = 0, atomics = 0;
  bool waited = false;
  uint32_t complete_blocks = 0;                          // those before this one are of launches that are complete
  bool all_complete = false, call_complete = false;      // all earlier launches, what torch launched before the call
  bool unfenced_reads = false, unfenced_writes = false;  // of global memory, since the last fence
  uint32_t fences = 0, fence_epoch = kNever;             // of the last one
};

// An atomic orders accesses before those of its readers: a block's accesses before an epoch, and its own thread's if
// that thread had fenced them.
struct Release {
  uint32_t block, before_epoch, thread, atomics;
  bool own;
};
std::unordered_map<uintptr_t, std::vector<Release>> released;  // in this launch, by address

struct Acquired {
  Release from;
  uint32_t thread, epoch, fences;  // of the atomic that read it
  bool by_all;                     // a fence and a barrier followed
};

struct {
  uint32_t number = 0;
  uint32_t epoch = 0, fenced_before = 0;  // all accesses in epochs before this one are fenced
  bool returned_unfenced = false, allowed = false, any_waited = false;
  std::vector<Acquired> acquired;
} block;

std::vector<Thread> threads;
// Null while the host runs, and in its other threads.
__attribute__((tls_model("initial-exec"))) thread_local Thread* running = nullptr;
uint32_t running_index = 0;
uintptr_t running_stack = 0, running_stack_bytes = 0;

// ---- What is found

std::string block_name(uint32_t number) {
  const uint32_t i = number - launch.first_block;
  const dim3& grid = registers.grid_dim;
  std::ostringstream text;
  text << "block (" << i % grid.x << ", " << i / grid.x % grid.y << ", " << i / grid.x / grid.y << ")";
  return text.str();
}

uint32_t launch_of(uint32_t block_number) {
  const auto after = std::upper_bound(
      launches.begin(), launches.end(), block_number, [](uint32_t b, const Launched& l) { return b < l.first_block; });
  return static_cast<uint32_t>(after - launches.begin()) - 1;
}

// How a launch before this one is named.
std::string earlier_launch(uint32_t number) {
  uint32_t earlier = 1;
  for (uint32_t i = number + 1; i < launch.number; ++i) earlier += launches[i].op != nullptr;
  return std::string(launches[number].op) + ", launched " + std::to_string(earlier) + " earlier";
}

enum Fault { kBetweenThreads, kBetweenBlocks, kUnwritten, kReadInFlight, kReadOfTorch, kWriteInFlight };

constexpr const char* kTorch = "what torch may have launched before the operator";

void report(Fault fault, Access kind, const Page& page, uintptr_t at, uint32_t code, const Record& other, bool wrote) {
  constexpr size_t kMaxFound = 8;
  if (launch.found.size() >= kMaxFound || !launch.reported.insert({fault, code, other.code}).second) return;
  std::ostringstream text;
  text << (kind == Access::read    ? "a read"
           : kind == Access::write ? "a write"
                                   : "an atomic")
       << " of " << (page.shared ? "shared" : "global") << " memory at 0x" << std::hex << at << std::dec
       << " by thread " << running_index << " of " << block_name(block.number);
  const char* kind_of_other = other.atomic ? "an atomic" : wrote ? "a write" : "a read";
  switch (fault) {
    case kBetweenThreads:
      text << " is not ordered by a barrier with " << kind_of_other << " by thread " << other.thread
           << (other.many_lanes || other.many_warps ? " and others" : "");
      break;
    case kBetweenBlocks:
      text << " is not ordered by fences and an atomic with " << kind_of_other << " by thread " << other.thread
           << " of " << block_name(other.block) << (other.many_blocks ? " and others" : "");
      break;
    case kUnwritten: text << " finds what no thread of the block has written"; break;
    case kReadInFlight:
      text << " does not wait for " << earlier_launch(launch_of(other.block)) << ", that wrote there";
      break;
    case kReadOfTorch: text << " does not wait for " << kTorch; break;
    case kWriteInFlight: {
      const Complete& complete = running->waited ? launch.behind_wait : launch.at_start;
      // The last one: which earlier ones may still run depends on what ran before the operator.
      uint32_t after = launch.number;
      while (after > complete.before && (complete.has(after - 1) || !launches[after - 1].op)) --after;
      text << " does not wait for " << (after > complete.before ? earlier_launch(after - 1) : kTorch);
      break;
    }
  }
  text << "\n    " << library.describe(code);
  const bool same_launch = fault == kBetweenThreads || fault == kBetweenBlocks;
  if (same_launch || fault == kReadInFlight) text << "\n    and " << library.describe(other.code);
  launch.found.push_back(text.str());
}

// A number that does not fit a record.
[[noreturn]] void fail(const char* message) {
  std::fprintf(stderr, "CUDA emulation: %s\n", message);
  std::abort();
}

// ---- The rules

// Whether an access in the running thread's block is ordered before it.
bool ordered_in_block(const Record& other) {
  const Thread& t = *running;
  if (other.epoch < t.epoch) return true;
  if (other.many_warps || other.thread / kWarp != running_index / kWarp) return false;
  if (other.warp_epoch < t.warp_epoch) return true;
  return !other.many_lanes && other.thread == running_index;
}

// Whether an access in another block of the launch is ordered before it, by atomics.
bool ordered_by_atomics(const Record& other) {
  if (other.many_blocks) return false;
  const Thread& t = *running;
  for (const Acquired& a : block.acquired) {
    if (a.from.block != other.block) continue;
    const bool fenced = a.by_all || (a.thread == running_index && t.fences > a.fences) ||
                        (t.epoch > a.epoch && t.fence_epoch != kNever && t.fence_epoch > a.epoch);
    const bool given = other.epoch < a.from.before_epoch ||
                       (a.from.own && other.thread == a.from.thread && other.atomics <= a.from.atomics &&
                        !other.many_warps && !other.many_lanes);
    if (fenced && given) return true;
  }
  return false;
}

// Whether an access in an earlier launch is complete.
bool is_complete(const Record& other) {
  if (other.block < running->complete_blocks) return true;
  return (running->waited ? launch.behind_wait : launch.at_start).has(launch_of(other.block));
}

Record new_record(uint32_t code) {
  Record mine;
  mine.block = block.number;
  mine.thread = running_index;
  mine.epoch = running->epoch;
  mine.warp_epoch = running->warp_epoch;
  mine.atomics = running->atomics;
  mine.code = code;
  return mine;
}

void note_read(Record& read, uint32_t code) {
  const Thread& t = *running;
  Record mine = new_record(code);
  if (read.block != block.number) {
    mine.many_blocks = read.block >= launch.first_block;
    read = mine;
  } else if (read.epoch != t.epoch) {
    mine.many_blocks = read.many_blocks;
    read = mine;
  } else if (read.many_warps) {
    return;
  } else if (read.thread / kWarp != running_index / kWarp) {
    read.many_warps = 1;
  } else if (read.warp_epoch != t.warp_epoch) {
    mine.many_blocks = read.many_blocks;
    read = mine;
  } else if (read.thread != running_index) {
    read.many_lanes = 1;
  }
}

void check(Cell& cell, const Page& page, uintptr_t at, Access kind, uint32_t code) {
  const Record &write = cell.write, &read = cell.read;
  const bool atomics = kind == Access::atomic && write.atomic;
  if (write.block == block.number) {
    if (!atomics && write.thread != running_index && !ordered_in_block(write)) {
      report(kBetweenThreads, kind, page, at, code, write, true);
    }
  } else if (page.shared) {
    if (kind != Access::write) report(kUnwritten, kind, page, at, code, {}, true);
  } else if (write.block >= launch.first_block) {
    if (!atomics && !ordered_by_atomics(write)) report(kBetweenBlocks, kind, page, at, code, write, true);
  } else if (kind == Access::read && write.block != 0 && !is_complete(write)) {
    report(kReadInFlight, kind, page, at, code, write, true);
  } else if (
      kind == Access::read && !running->call_complete && write.block < launch.first_block_of_call && !is_of_host(at)) {
    report(kReadOfTorch, kind, page, at, code, {}, true);
  }
  if (kind == Access::read) {
    note_read(cell.read, code);
    return;
  }
  if (read.block == block.number) {
    if (!ordered_in_block(read)) report(kBetweenThreads, kind, page, at, code, read, false);
    else if (read.many_blocks) report(kBetweenBlocks, kind, page, at, code, read, false);
  } else if (!page.shared && read.block >= launch.first_block && !ordered_by_atomics(read)) {
    report(kBetweenBlocks, kind, page, at, code, read, false);
  }
  cell.read = {};
  cell.write = new_record(code);
  cell.write.atomic = kind == Access::atomic;
}

void check_range(uintptr_t at, size_t size, Access kind, const void* return_address) {
  if (!running || size == 0 || at - running_stack < running_stack_bytes) return;
  if (at - reinterpret_cast<uintptr_t>(&registers) < sizeof registers) return;
  const auto code = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(return_address) - library.begin);
  for (const uintptr_t end = at + size; at < end;) {
    const uintptr_t number = at >> kPageBits, stop = std::min(end, (number + 1) << kPageBits);
    Page& page = page_of(number);
    const uintptr_t whole = at | stop;
    const unsigned needed = whole % 16 == 0 ? 4 : whole % 4 == 0 ? 2 : 0;
    if (needed < page.shift) page.refine(needed);
    if (!page.shared) {
      (kind == Access::read ? running->unfenced_reads : running->unfenced_writes) |= kind != Access::atomic;
      if (kind != Access::read && !running->all_complete) {
        report(kWriteInFlight, kind, page, at, code, {}, true);
      }
    }
    for (; at < stop; at += uintptr_t{1} << page.shift) {
      check(page.cells[at % kPageBytes >> page.shift], page, at, kind, code);
    }
  }
}

void set_complete(Thread& t) {
  const Complete& complete = t.waited ? launch.behind_wait : launch.at_start;
  t.all_complete = complete.before >= launch.number;
  t.complete_blocks = t.all_complete ? launch.first_block : launches[complete.before].first_block;
  t.call_complete = complete.has(launch.call);
}

}  // namespace

uint32_t begin_operator() {
  forget_if_too_many();
  const auto number = static_cast<uint32_t>(launches.size());
  launches.push_back({block.number + 1, nullptr});
  calls_since_launch.push_back(number);
  return number;
}

void begin_launch(const char* op, uint32_t call, unsigned num_threads, const void* shared, size_t size) {
  const Complete was_at_start = launch.at_start, was_behind_wait = launch.behind_wait;
  launch.at_start.add(launch.next_begins_behind ? was_behind_wait : was_at_start);
  launch.behind_wait = launch.at_start;
  if (*launch.op) {
    if (launch.any_waited) launch.behind_wait.add(was_behind_wait);
    launch.behind_wait.add(launch.number);
    if (!launch.any_allowed && launch.all_fenced) launch.at_start.add(launch.number);
  }
  for (uint32_t earlier_call : calls_since_launch) launch.behind_wait.add(earlier_call);
  calls_since_launch.clear();
  host_stack = stack_of_thread;
  launch.op = op;
  launch.call = call;
  launch.first_block_of_call = launches[call].first_block;
  launch.number = static_cast<uint32_t>(launches.size());
  launch.first_block = block.number + 1;
  shared_begin = reinterpret_cast<uintptr_t>(shared);
  shared_bytes = size;
  launch.any_waited = launch.any_allowed = launch.next_begins_behind = false;
  launch.all_fenced = true;
  launches.push_back({launch.first_block, op});
  threads.resize(num_threads);
  released.clear();
}

void end_launch() {
  std::vector<std::string> found;
  std::swap(found, launch.found);
  launch.reported.clear();
  if (found.empty()) return;
  // Whoever is told of it begins anew.
  launch.at_start.add({launch.number, {}});
  launch.behind_wait = launch.at_start;
  launch.any_allowed = false;
  launch.any_waited = launch.all_fenced = true;
  std::string text = std::string(launch.op) + ": races in an emulated CUDA kernel:";
  for (const std::string& one : found) text += "\n  " + one;
  throw std::runtime_error(text);
}

void begin_block() {
  if (++block.number == 0) fail("too many blocks");
  block.epoch = block.fenced_before = 0;
  block.returned_unfenced = block.allowed = block.any_waited = false;
  block.acquired.clear();
  for (Thread& t : threads) {
    t = {};
    set_complete(t);
  }
}

void end_block() {
  // A block that did not let the next launch begin has returned by then.
  if (!block.allowed && block.any_waited) launch.next_begins_behind = true;
}

void resume(unsigned thread, const void* stack, size_t stack_bytes) {
  running = &threads[thread];
  running_index = thread;
  running_stack = reinterpret_cast<uintptr_t>(stack);
  running_stack_bytes = stack_bytes;
}

void pause() { running = nullptr; }

void end_thread() {
  if (running->unfenced_writes) launch.all_fenced = false;
  if (running->unfenced_writes || running->unfenced_reads) block.returned_unfenced = true;
}

void access(const volatile void* at, size_t size, Access kind, const void* code) {
  if (!running) return;
  const auto address = reinterpret_cast<uintptr_t>(at);
  check_range(address, size, kind, code);
  if (kind != Access::atomic) return;
  auto& given = released[address];
  for (const Release& r : given) {
    if (r.block != block.number) {
      block.acquired.push_back({r, running_index, running->epoch, running->fences, false});
    }
  }
  const bool fenced_here = running->fence_epoch == running->epoch;
  const bool own = !running->unfenced_reads && !running->unfenced_writes && running->atomics < kMaxAtomics;
  given.push_back(
      {block.number, fenced_here ? running->epoch : block.fenced_before, running_index, running->atomics, own});
  running->atomics = std::min(running->atomics + 1, kMaxAtomics);
}

void block_barrier() {
  if (++block.epoch >> 18 != 0) fail("too many barriers");
  bool waited = false, unfenced = block.returned_unfenced;
  for (const Thread& t : threads) {
    waited |= t.waited;
    unfenced |= t.unfenced_reads || t.unfenced_writes;
  }
  if (!unfenced) block.fenced_before = block.epoch;
  for (Acquired& a : block.acquired) {
    const Thread& by = threads[a.thread];
    a.by_all |= by.fences > a.fences;
    for (const Thread& t : threads) a.by_all |= t.fence_epoch != kNever && t.fence_epoch > a.epoch;
  }
  for (Thread& t : threads) {
    t.epoch = block.epoch;
    if (waited && !t.waited) {
      t.waited = true;
      set_complete(t);
    }
  }
}

bool has_waited() { return running->waited; }

void warp_barrier(bool other_waited) {
  if (++running->warp_epoch >> 24 != 0) fail("too many barriers of a warp");
  if (other_waited) wait_for_earlier_launches();
}

void fence() {
  running->unfenced_reads = running->unfenced_writes = false;
  ++running->fences;
  running->fence_epoch = running->epoch;
}

void allow_next_launch() {
  if (!block.allowed && running->waited) launch.next_begins_behind = true;
  block.allowed = launch.any_allowed = true;
}

void wait_for_earlier_launches() {
  running->waited = block.any_waited = launch.any_waited = true;
  set_complete(*running);
}

}  // namespace higgs_native::emulation::races
