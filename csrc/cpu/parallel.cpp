#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "processors.h"
#include "system.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace {

// An idle worker looks for work this long before it sleeps. This is long enough to bridge the gap between two kernels
// of one training step, and short enough not to compete with torch's own threads.
constexpr auto kSpin = std::chrono::microseconds(60);

thread_local bool inside_task = false;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// While a task runs, numbers under 1e-38 count as 0. x86 takes a hundred times as long for them, and squares of tiny
// numbers (the tail of a Gaussian, a moment that has decayed) are that small.
class Task {
 public:
#if defined(__SSE2__)
  Task() : mode_(_mm_getcsr()) {
    inside_task = true;
    _mm_setcsr(mode_ | kFlushToZero);
  }
  ~Task() {
    inside_task = false;
    _mm_setcsr(mode_);
  }
  Task(const Task&) = delete;

 private:
  static constexpr unsigned kFlushToZero = 0x8040;  // results and operands
  const unsigned mode_;
#else
  Task() { inside_task = true; }
  ~Task() { inside_task = false; }
  Task(const Task&) = delete;
#endif
};

class Pool {
 public:
  void run(int64_t tasks, int threads, void (*body)(void*, int64_t, int), void* context) {
    grow(threads - 1);
    body_ = body;
    context_ = context;
    tasks_ = tasks;
    threads_ = threads;
    next_.store(0);
    busy_threads_.store(0);
    open_.store(true);
    {
      // Under the mutex, so that a worker about to sleep cannot miss the new generation.
      std::lock_guard<std::mutex> lock(sleep_mutex_);
      generation_.fetch_add(1);
    }
    if (sleepers_.load() > 0) wake_.notify_all();
    work(0);
    open_.store(false);
    // A worker that joins from now on sees the job closed and leaves at once; those inside finish their task.
    for (int turns = 0; active_.load() != 0; ++turns) {
      if (turns < 4000) relax();
      else yield_turn();
    }
  }

  std::mutex run_mutex;
  const Process process = this_process();
  std::atomic<int> busy_threads_{0};

 private:
  void grow(int workers) {
    while (static_cast<int>(workers_.size()) < workers) {
      const int index = static_cast<int>(workers_.size());
      workers_.emplace_back([this, index] { worker(index); });
      workers_.back().detach();
    }
  }

  void work(int thread) {
    const Task guard;
    bool counted = false;
    for (int64_t task = next_.fetch_add(1); task < tasks_; task = next_.fetch_add(1)) {
      if (!counted) busy_threads_.fetch_add(1);
      counted = true;
      body_(context_, task, thread);
    }
  }

  uint64_t wait_for_generation(uint64_t seen) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 64; ++i) {
        if (generation_.load() != seen) return generation_.load();
        relax();
      }
    } while (std::chrono::steady_clock::now() < deadline);
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&] { return generation_.load() != seen; });
    sleepers_.fetch_sub(1);
    return generation_.load();
  }

  void worker(int index) {
    uint64_t seen = 0;
    for (;;) {
      seen = wait_for_generation(seen);
      active_.fetch_add(1);
      // Sequentially consistent: either run() sees this worker active, or this worker sees the job closed.
      if (open_.load() && index + 1 < threads_) work(index + 1);
      active_.fetch_sub(1);
    }
  }

  void (*body_)(void*, int64_t, int) = nullptr;
  void* context_ = nullptr;
  int64_t tasks_ = 0;
  int threads_ = 1;
  std::atomic<int64_t> next_{0};
  std::atomic<int> active_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> open_{false};
  std::atomic<uint64_t> generation_{0};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

// Never destroyed: detached workers may outlive static destruction. After a fork the child has no workers, so it makes
// a pool of its own.
Pool* pool() {
  static std::mutex mutex;
  static std::atomic<Pool*> current{nullptr};
  Pool* found = current.load();
  if (found && found->process == this_process()) return found;
  std::lock_guard<std::mutex> lock(mutex);
  found = current.load();
  if (!found || found->process != this_process()) current.store(found = new Pool);
  return found;
}

std::atomic<int> last_thread_count{0};
std::atomic<bool> oversubscribed{false};

// The OpenMP runtime of the process, which is torch's, if there is one with GNU's interface (GNU's, LLVM's and Intel's
// runtimes have it). Its workers wait for work by spinning. Threads of our own would have to share the cores with them
// for some milliseconds after every operation of torch.
class OpenMp {
 public:
  bool usable() const { return parallel_ && this_process() == process_; }

  int run(int64_t tasks, int threads, void (*body)(void*, int64_t, int), void* context) const {
    Job job{tasks, body, context};
    parallel_(work, &job, static_cast<unsigned>(threads), 0);
    return job.busy.load();
  }

 private:
  struct Job {
    int64_t tasks;
    void (*body)(void*, int64_t, int);
    void* context;
    std::atomic<int64_t> next{0};
    std::atomic<int> threads{0}, busy{0};
  };

  static void work(void* argument) {
    Job& job = *static_cast<Job*>(argument);
    const int thread = job.threads.fetch_add(1);
    const Task guard;
    bool counted = false;
    for (int64_t task = job.next.fetch_add(1); task < job.tasks; task = job.next.fetch_add(1)) {
      if (!counted) job.busy.fetch_add(1);
      counted = true;
      job.body(job.context, task, thread);
    }
  }

  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  const Parallel parallel_ = reinterpret_cast<Parallel>(symbol_of_process("GOMP_parallel"));
  const Process process_ = this_process();  // after a fork the runtime has no workers, yet waits for them forever
};

struct Arena {
  void* memory = nullptr;
  int64_t bytes = 0;
  ~Arena() { free_aligned(memory); }
};
thread_local Arena arena, shared_arena;

void* grown(Arena& arena, int64_t bytes) {
  if (arena.bytes < bytes) {
    free_aligned(arena.memory);
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    arena.memory = allocate_aligned(static_cast<size_t>(rounded));
    arena.bytes = arena.memory ? rounded : 0;
  }
  return arena.memory;
}

}  // namespace

extern "C" void splat_ssim_parallel_for(int64_t tasks, int threads, void (*body)(void*, int64_t, int), void* context) {
  if (tasks <= 0) return;
  if (threads > tasks) threads = static_cast<int>(tasks);
  if (!inside_task) threads = splat_ssim_usable_threads(threads);
  if (threads > 1 && !inside_task) {
    static const OpenMp openmp;
    if (openmp.usable()) {
      last_thread_count.store(openmp.run(tasks, threads, body, context));
      return;
    }
    Pool* shared = pool();
    std::unique_lock<std::mutex> lock(shared->run_mutex, std::try_to_lock);
    if (lock.owns_lock()) {
      shared->run(tasks, threads, body, context);
      last_thread_count.store(shared->busy_threads_.load());
      return;
    }
  }
  if (inside_task) {
    for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
  {
    const Task guard;
    for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
  }
  last_thread_count.store(1);
}

extern "C" int splat_ssim_usable_threads(int64_t threads) {
  if (threads <= 1) return 1;
  if (!oversubscribed.load()) threads = std::min<int64_t>(threads, splat_ssim_processors());
  return static_cast<int>(threads);
}

extern "C" int splat_ssim_oversubscribe(int allowed) { return oversubscribed.exchange(allowed != 0); }

extern "C" void* splat_ssim_scratch(int64_t bytes) { return grown(arena, bytes); }

extern "C" void* splat_ssim_shared_scratch(int64_t bytes) { return grown(shared_arena, bytes); }

extern "C" void splat_ssim_wait(const int32_t* counter, int32_t least) {
  for (int turns = 0; __atomic_load_n(counter, __ATOMIC_ACQUIRE) < least; ++turns) {
    if (turns < 4000) relax();
    else yield_turn();
  }
}

extern "C" int splat_ssim_last_thread_count(void) { return last_thread_count.load(); }
