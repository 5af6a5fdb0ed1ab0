// Finds the races of emulated kernels. The kernels are compiled as for ThreadSanitizer, which puts a call before every
// access to memory; compiler_hooks.cpp defines what is called. Of every byte it knows the last write and the last
// reads: by which launch, block and thread, and behind how many barriers. Two accesses, one of them a write, must be
// ordered, by these rules:
//
// - Threads of a block: by __syncthreads; those of a warp also by __syncwarp. Nothing else orders memory: no shuffle,
//   vote, reduction or tensor-core product does (CUDA C++ Programming Guide, "Warp Shuffle Functions": "do not imply a
//   memory barrier"). That several threads write the same value is a race too.
// - Blocks of a launch: by an atomic that reads what another one wrote, with __threadfence, which is sequentially
//   consistent, on both sides. Before the one atomic each thread fences what it did, and then come a barrier and the
//   atomic; or one thread fences behind the barrier for all. Behind the other atomic the same the other way round.
//   Atomics do not race with each other.
// - Launches: an access must not meet a launch that may still run. With programmatic dependent launch the next launch
//   begins once each block has called allow_next_launch() or has returned; so what is complete when a launch begins
//   follows from where the one before it stood then. wait_for_earlier_launches() returns when the launch before is
//   complete, with whatever that one waited for; a launch that does not wait leaves those behind it without that. What
//   a launch wrote, that does not let the next one begin early, is seen there without waiting only if its threads end
//   with __threadfence. Since memory is used again as soon as its tensor is gone, no launch may write anything while
//   another may run, even if nobody needs it.
// - Operators: right before each call of one, torch may have launched kernels that wrote any memory but shared memory,
//   which is not seen here. So it counts as such: a launch may read nothing before it is certain that those kernels are
//   complete, which it is behind a wait, its own or that of an earlier launch of the same call that waited before it
//   let the next one begin.
// - Shared memory holds nothing when a block begins: reading what no thread of the block has written is reported as
//   well.
//
// It therefore does not matter that the record of a byte may be stale, because torch has written it since, or its
// memory was freed and belongs to another tensor now: a record from before the call says nothing that the last rule
// does not say of all memory.
//
// Not seen: code that the tests do not run; what torch launches within a call of an operator, such as a fill with
// zeros; a second stream; memory that is given back too early; and what hardware may do that keeps to these rules:
// every access takes effect at once, and only asynchronous copies and products of warpgroups come later, when they are
// waited for; the fences that these need beside barriers, and the registers that products read, are not checked. Accesses
// that the
// compiler leaves to a function of the C library, such as a large memcpy, are not seen either.
#pragma once

#include <cstddef>
#include <cstdint>

namespace higgs_native::emulation::races {

enum class Access { read, write, atomic };

// Begins a call of an operator, and returns its number.
uint32_t begin_operator();
// From here on accesses are those of a launch of operator `op` in call `call`. `shared` is its shared memory, as are the
// variables of this library. The kernel's arguments are on the stack of the thread that calls this.
void begin_launch(const char* op, uint32_t call, unsigned num_threads, const void* shared, size_t shared_bytes);
// Throws what was found, as std::runtime_error.
void end_launch();

void begin_block();
void end_block();
// From here on accesses are those of this thread of the block, except to its stack; of nobody after pause().
void resume(unsigned thread, const void* stack, size_t stack_bytes);
void pause();
void end_thread();

// For accesses whose code was not compiled as above. `code` is a return address in the kernel.
void access(const volatile void* at, size_t size, Access kind, const void* code);

// Events that order accesses. The first is called once all threads of the block have arrived, the others by the thread.
void block_barrier();
void warp_barrier(bool other_waited);
bool has_waited();
void fence();
void allow_next_launch();
void wait_for_earlier_launches();

}  // namespace higgs_native::emulation::races
