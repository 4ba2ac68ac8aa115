// Runs the threads of a block as fibers of one host thread, one block after the other.
//
// A fiber runs until it waits at a barrier or in a warp shuffle. The scheduler resumes the others in ascending,
// descending or shuffled order, or runs each warp as far as it gets before the next. So a missing barrier shows. Every
// array of shared memory is a fresh heap block for every thread block. It is filled with NaN and fenced, so that
// AddressSanitizer or the fence detects an overrun.
#pragma once
#include <cstddef>
#include "../cuda/problem.h"

namespace emulation {

enum class Wait { kNone, kBlock, kWarp, kDone };

// The running thread.
int thread_index();
unsigned block_index();

// Waits until the whole block (or warp) waits. `site` identifies the barrier: all threads must wait at the same one.
void wait(Wait what, int site);

// The array of `bytes` bytes for the declaration that `site` identifies. All threads of the block get the same array.
void* shared(const void* site, std::size_t bytes);

// Replaces *value by the value of thread `from` of the same warp, or keeps it if the warp has no such thread. A value
// has at most 8 bytes.
void exchange(void* value, std::size_t bytes, int from);

// Runs blocks x threads calls of body(argument). Returns false after a fault, which splat_emulation_fault() describes.
bool run(Int64 blocks, int threads, void (*body)(const void*), const void* argument);

}  // namespace emulation
