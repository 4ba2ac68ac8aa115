// The thread pool every CPU kernel shares, and the scratch memory of its threads.
//
// Kernels receive the number of threads from the caller (torch.get_num_threads()). No more are started than there are
// processors for them: threads that share one wait for one another's turns.
// The threads are those of the OpenMP runtime that torch has loaded, reached without linking to it: two sets of threads
// that wait by spinning slow each other down. Where there is none, and after a fork, the pool's own threads.
#pragma once
#include <cstdint>

#include "export.h"

extern "C" {

// How many threads of those asked for would be started: min(threads, processors), at least 1. For kernels that cut their
// work by the number of threads.
int splat_ssim_usable_threads(int64_t threads);

// Whether as many threads are started as are asked for, however few processors there are; false at first. For tests of
// threads that get in each other's way. Returns what it was before.
SPLAT_EXPORT int splat_ssim_oversubscribe(int allowed);

// Calls body(context, task, thread) for every task in [0, tasks), 0 <= thread < usable threads. Tasks are handed out in
// increasing order as threads become free. The caller's thread takes part and returns when all are done.
// A call from inside a task, or while another caller holds the pool, runs its tasks on the calling thread alone.
// The body must not throw.
void splat_ssim_parallel_for(int64_t tasks, int threads, void (*body)(void* context, int64_t task, int thread),
                             void* context);

// Memory of the calling thread, 64-byte aligned, contents undefined, valid until this thread asks again; it only grows
// and is freed when the thread ends. Returns nullptr when the machine has none.
void* splat_ssim_scratch(int64_t bytes);

// The same, a second piece: for what all tasks of a call share, while they use the first.
void* splat_ssim_shared_scratch(int64_t bytes);

// A task waits for another of its parallel_for, one with a smaller number: those are all done or under way. Returns when
// `*counter`, changed by __atomic operations, is at least `least`.
void splat_ssim_wait(const int32_t* counter, int32_t least);

// How many distinct threads took at least one task in the last parallel_for (a test asks).
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
