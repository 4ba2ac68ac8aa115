// The thread pool that all CPU kernels share, and the scratch memory of its threads.
//
// The caller tells kernels the number of threads (torch.get_num_threads()). No more threads are started than there are
// processors, because threads that share a processor wait for each other's turns.
//
// The threads are those of the OpenMP runtime that torch has loaded, because two sets of threads that wait by spinning
// slow each other down. The runtime is looked up in the process, not linked to. If there is none, and after a fork, the
// pool uses its own threads.
#pragma once
#include <cstdint>

#include "export.h"

extern "C" {

// The number of threads that are started if `threads` are asked for: min(threads, processors), at least 1. It is for
// kernels that cut their work by the number of threads.
int splat_ssim_usable_threads(int64_t threads);

// Sets whether as many threads are started as are asked for, even if there are fewer processors. This is false at
// first. It is for tests of threads that get in each other's way. Returns the previous setting.
SPLAT_EXPORT int splat_ssim_oversubscribe(int allowed);

// Calls body(context, task, thread) for every task in [0, tasks), 0 <= thread < usable threads. Tasks are handed out in
// increasing order as threads become free. The caller's thread takes part and returns when all are done.
// A call from inside a task, or while another caller holds the pool, runs its tasks on the calling thread alone.
// The body must not throw.
void splat_ssim_parallel_for(int64_t tasks, int threads, void (*body)(void* context, int64_t task, int thread),
                             void* context);

// Memory of the calling thread, 64-byte aligned, contents undefined. It is valid until this thread asks again. It only
// grows, and is freed when the thread ends. Returns nullptr if the machine has no memory left.
void* splat_ssim_scratch(int64_t bytes);

// A second piece of such memory, for data that all tasks of a call share while they use the first piece.
void* splat_ssim_shared_scratch(int64_t bytes);

// Lets a task wait for a task of the same parallel_for that has a smaller number. Such tasks are all done or under way.
// Returns when `*counter`, which is changed by __atomic operations, is at least `least`.
void splat_ssim_wait(const int32_t* counter, int32_t least);

// The number of distinct threads that took at least one task in the last parallel_for. A test reads it.
SPLAT_EXPORT int splat_ssim_last_thread_count(void);
}

namespace {
// The same for a lambda: parallel_for(tasks, threads, [&](int64_t task, int thread) { ... }).
template <class Body>
inline void parallel_for(int64_t tasks, int threads, Body&& body) {
  splat_ssim_parallel_for(
      tasks, threads, [](void* context, int64_t task, int thread) { (*static_cast<Body*>(context))(task, thread); },
      const_cast<void*>(static_cast<const void*>(&body)));
}
}  // namespace
