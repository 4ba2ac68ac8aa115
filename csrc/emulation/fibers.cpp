#include "fibers.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "../cpu/export.h"

namespace emulation {
namespace {

constexpr int kMostThreads = 1024, kWarp = 32, kFence = 64;
constexpr std::size_t kStackBytes = 64 << 10;
constexpr unsigned char kNan = 0xff, kFenceByte = 0xa5;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Wait waiting = Wait::kNone;
  int site = 0, rounds = 0;
  bool started = false;
};

// Aligned as on the device, so that the banks are the same in every run.
constexpr std::align_val_t kSharedAlignment{128};
struct FreeShared {
  void operator()(unsigned char* memory) const { ::operator delete[](memory, kSharedAlignment); }
};

struct Shared {
  std::unique_ptr<unsigned char[], FreeShared> memory;
  std::size_t bytes;
};

enum Order { kAscending = 0, kDescending = 1, kShuffled = 2, kWarps = 3 };

struct Machine {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  int threads = 0, current = 0;
  unsigned block = 0;
  void (*body)(const void*) = nullptr;
  const void* argument = nullptr;
  std::map<const void*, Shared> shared;
  Int64 slots[2][kMostThreads];
  char fault[200] = "";
  // Settings, see splat_emulation_configure.
  int order = kShuffled, skipped_site = -1, shrink = 0;
  Int64 last_blocks = -1;  // only the last `last_blocks` blocks of a launch run; all if negative
  std::mt19937 random{1};
};

Machine machine;

void fail(const char* what, int a, int b) {
  if (!machine.fault[0]) std::snprintf(machine.fault, sizeof machine.fault, "%s (%d, %d)", what, a, b);
}

void enter() {
  machine.body(machine.argument);
  Fiber& self = machine.fibers[machine.current];
  self.waiting = Wait::kDone;
  swapcontext(&self.context, &machine.scheduler);
}

void resume(int index) {
  Fiber& fiber = machine.fibers[index];
  machine.current = index;
  fiber.waiting = Wait::kNone;
  if (!fiber.started) {
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  swapcontext(&machine.scheduler, &fiber.context);
}

int count(int first, int last, Wait what) {
  int found = 0;
  for (int i = first; i < last; ++i) found += machine.fibers[i].waiting == what;
  return found;
}

void release(int first, int last, Wait what) {
  for (int i = first; i < last; ++i) {
    if (machine.fibers[i].waiting == what) machine.fibers[i].waiting = Wait::kNone;
  }
}

// Lets the warp of thread `first` pass a shuffle, if all its threads that have not returned wait there. Returns whether
// it did.
bool release_warp(int first) {
  const int last = std::min(first + kWarp, machine.threads), waiting = count(first, last, Wait::kWarp);
  if (!waiting || waiting + count(first, last, Wait::kDone) < last - first) return false;
  release(first, last, Wait::kWarp);
  return true;
}

// Lets each warp pass its shuffle, or else the whole block its barrier, if all threads wait there. Returns false on a
// fault.
bool release_all() {
  bool moved = false;
  for (int first = 0; first < machine.threads; first += kWarp) moved |= release_warp(first);
  const int waiting = count(0, machine.threads, Wait::kBlock), done = count(0, machine.threads, Wait::kDone);
  if (moved || done == machine.threads) return true;
  if (waiting < machine.threads) {
    fail("barrier not reached by all threads: waiting, returned", waiting, done);
    return false;
  }
  for (const Fiber& fiber : machine.fibers) {
    if (&fiber - machine.fibers.data() < machine.threads && fiber.site != machine.fibers[0].site) {
      fail("threads wait at different barriers, lines", machine.fibers[0].site, fiber.site);
      return false;
    }
  }
  release(0, machine.threads, Wait::kBlock);
  return true;
}

// Shuffles the order of the threads' next turn if the setting asks for it. kWarps shuffles whole warps, and the lanes
// in each.
void shuffle(std::vector<int>& order) {
  if (machine.order < kShuffled) return;
  std::shuffle(order.begin(), order.end(), machine.random);
  if (machine.order == kShuffled) return;
  std::vector<int> turn(machine.threads / kWarp);  // for each warp, the place of its first thread
  for (int i = machine.threads - 1; i >= 0; --i) turn[order[i] / kWarp] = i;
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return turn[a / kWarp] < turn[b / kWarp]; });
}

// Runs each of the `count` threads that does not wait, until it waits. Returns false on a fault.
bool resume_all(const int* threads, int count) {
  for (int i = 0; i < count; ++i) {
    if (machine.fibers[threads[i]].waiting == Wait::kNone) resume(threads[i]);
    if (machine.fault[0]) return false;
  }
  return true;
}

bool run_block(unsigned block) {
  machine.block = block;
  machine.shared.clear();
  std::vector<int> order(machine.threads);
  for (int i = 0; i < machine.threads; ++i) {
    order[i] = machine.order == kDescending ? machine.threads - 1 - i : i;
    machine.fibers[i].started = false;
    machine.fibers[i].waiting = Wait::kNone;
    machine.fibers[i].rounds = 0;
  }
  while (count(0, machine.threads, Wait::kDone) < machine.threads) {
    shuffle(order);
    // A block consists of whole warps.
    const int together = machine.order == kWarps ? kWarp : machine.threads;
    for (int first = 0; first < machine.threads; first += together) {
      do {
        if (!resume_all(order.data() + first, together)) return false;
      } while (machine.order == kWarps && release_warp(order[first] / kWarp * kWarp));
    }
    if (!release_all()) return false;
  }
  for (const auto& entry : machine.shared) {
    const unsigned char* fence = entry.second.memory.get() + entry.second.bytes;
    for (int i = 0; i < kFence; ++i) {
      if (fence[i] != kFenceByte) {
        fail("shared array overrun: bytes of the array, offset beyond", static_cast<int>(entry.second.bytes), i);
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int thread_index() { return machine.current; }
unsigned block_index() { return machine.block; }

void wait(Wait what, int site) {
  if (what == Wait::kBlock && site == machine.skipped_site) return;
  Fiber& self = machine.fibers[machine.current];
  self.waiting = what;
  self.site = site;
  swapcontext(&self.context, &machine.scheduler);
}

void* shared(const void* site, std::size_t bytes) {
  auto found = machine.shared.find(site);
  if (found == machine.shared.end()) {
    const std::size_t given = bytes - std::min<std::size_t>(bytes, machine.shrink);
    Shared array{nullptr, given};
    array.memory.reset(static_cast<unsigned char*>(::operator new[](bytes + kFence, kSharedAlignment)));
    std::memset(array.memory.get(), kNan, given);
    std::memset(array.memory.get() + given, kFenceByte, bytes + kFence - given);
    found = machine.shared.emplace(site, std::move(array)).first;
  }
  return found->second.memory.get();
}

void exchange(void* value, std::size_t bytes, int from) {
  const int self = machine.current;
  // Two sets of slots alternate, because a fast thread may reach the next exchange before a slow one has read this one.
  Int64* slots = machine.slots[machine.fibers[self].rounds++ & 1];
  std::memcpy(slots + self, value, bytes);
  wait(Wait::kWarp, 0);
  if (from / kWarp == self / kWarp && from < machine.threads) std::memcpy(value, slots + from, bytes);
}

bool run(Int64 blocks, int threads, void (*body)(const void*), const void* argument) {
  machine.fault[0] = 0;
  machine.threads = threads;
  machine.body = body;
  machine.argument = argument;
  if (static_cast<int>(machine.fibers.size()) < threads) machine.fibers.resize(threads);
  for (Fiber& fiber : machine.fibers) {
    if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
  }
  const Int64 first = machine.last_blocks < 0 ? 0 : std::max<Int64>(0, blocks - machine.last_blocks);
  for (Int64 block = first; block < blocks; ++block) {
    if (!run_block(static_cast<unsigned>(block))) return false;
  }
  return true;
}

}  // namespace emulation

extern "C" {

// order: 0 ascending, 1 descending, 2 shuffled from `seed`, 3 the same, but each warp runs as far as it gets before the
// next. Two faults can be planted: barriers in source line `skipped_site` do nothing (-1: no fault), and every shared
// array is `shrink` bytes too short.
SPLAT_EXPORT void splat_emulation_configure(int order, unsigned seed, int skipped_site, int shrink) {
  emulation::machine.order = order;
  emulation::machine.random.seed(seed);
  emulation::machine.skipped_site = skipped_site;
  emulation::machine.shrink = shrink;
}

// Runs only the last `blocks` blocks of every launch (-1: all). Tests reach the far end of very large images this way.
SPLAT_EXPORT void splat_emulation_only_last(Int64 blocks) { emulation::machine.last_blocks = blocks; }

// Describes the fault of the last launch. Empty if there was none.
SPLAT_EXPORT const char* splat_emulation_fault(void) { return emulation::machine.fault; }
}
