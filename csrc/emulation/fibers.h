// Runs the threads of a block as fibers of one host thread, one block after the other.
//
// A fiber runs until it waits at a barrier or in a warp shuffle; the scheduler resumes the others in ascending,
// descending or shuffled order, or one warp as far as it comes before the next, so a missing barrier shows. Shared
// memory is a fresh heap block for every array and thread block, filled with NaN and fenced, so that AddressSanitizer or
// the fence sees an overrun.
#pragma once
#include <cstddef>
#include "../cuda/problem.h"

namespace emulation {

enum class Wait { kNone, kBlock, kWarp, kDone };

// The running thread.
int thread_index();
unsigned block_index();

// Waits until the whole block (or warp) waits. `site` tells barriers apart: all threads must be at the same one.
void wait(Wait what, int site);

// The array of `bytes` bytes belonging to the declaration at address `site`, the same for all threads of the block.
void* shared(const void* site, std::size_t bytes);

// The value of thread `from` of the same warp; the caller's own where the warp has none. At most 8 bytes.
void exchange(void* value, std::size_t bytes, int from);

// Runs blocks x threads calls of body(argument). Returns false after a fault; splat_emulation_fault() says which.
bool run(Int64 blocks, int threads, void (*body)(const void*), const void* argument);

}  // namespace emulation
