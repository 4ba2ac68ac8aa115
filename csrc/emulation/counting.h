// Counts the floating-point operations, global bytes and shared-memory wavefronts of the kernels, for
// scripts/cuda_counts.py. emulation.h includes this file if SPLAT_COUNT is defined.
//
// A wavefront is what shared memory serves at once: 32 banks of one word each. Accesses of different lanes count as one
// instruction if they have the same warp, number of barriers passed, source line, and number of visits to that line
// since the barrier.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <tuple>
#include <vector>

#include "../cpu/export.h"
#include "fibers.h"

namespace emulation {

struct Counts {
  double fused = 0, added = 0, multiplied = 0, reciprocals = 0;  // by all threads
  double bytes_read = 0, bytes_written = 0;
  double shared_words = 0, wavefronts = 0;  // words that all lanes request
};

struct Access {
  std::size_t address;
  int bytes;
};
typedef std::tuple<int, int, int, int> Instruction;  // warp, barriers passed, line, occurrence

struct Counter {
  Counts counts;
  unsigned block = ~0u;
  std::map<Instruction, std::array<Access, 32>> open;
  std::vector<int> barriers = std::vector<int>(1024);
  std::vector<std::map<int, int>> visits = std::vector<std::map<int, int>>(1024);
};

inline Counter counter;

// Distinct words of one bank need a wavefront each. Accesses of 8 bytes are served half a warp at a time, those of 16
// bytes a quarter at a time.
inline int wavefronts_of(const std::array<Access, 32>& lanes) {
  int bytes = 4, total = 0;
  for (const Access& lane : lanes) bytes = std::max(bytes, lane.bytes);
  const int together = 128 / bytes;
  for (int first = 0; first < 32; first += together) {
    std::array<std::vector<std::size_t>, 32> banks;
    std::size_t most = 0;
    for (int lane = first; lane < first + together; ++lane) {
      for (int word = 0; word < lanes[lane].bytes / 4; ++word) {
        const std::size_t at = lanes[lane].address / 4 + word;
        std::vector<std::size_t>& bank = banks[at % 32];
        if (std::find(bank.begin(), bank.end(), at) == bank.end()) bank.push_back(at);
        most = std::max(most, bank.size());
      }
    }
    total += static_cast<int>(most);
  }
  return total;
}

inline void close_block() {
  for (const auto& entry : counter.open) counter.counts.wavefronts += wavefronts_of(entry.second);
  counter.open.clear();
  std::fill(counter.barriers.begin(), counter.barriers.end(), 0);
  for (auto& visits : counter.visits) visits.clear();
}

inline void enter_block() {
  if (block_index() == counter.block) return;
  close_block();
  counter.block = block_index();
}

inline void count_barrier() {
  enter_block();
  ++counter.barriers[thread_index()];
  counter.visits[thread_index()].clear();
}

inline void count_shared(const void* p, int bytes, bool, int line) {
  enter_block();
  const int thread = thread_index();
  const Instruction key{thread / 32, counter.barriers[thread], line, counter.visits[thread][line]++};
  counter.open[key][thread % 32] = {reinterpret_cast<std::size_t>(p), bytes};
  counter.counts.shared_words += bytes / 4;
}

inline void count_global(int bytes, bool written) {
  (written ? counter.counts.bytes_written : counter.counts.bytes_read) += bytes;
}

}  // namespace emulation

// A float32 that counts its operations.
struct Real {
  float value;
  Real() = default;
  Real(float v) : value(v) {}
  explicit operator float() const { return value; }
  explicit operator double() const { return value; }
};

inline Real operator+(Real a, Real b) { return ++emulation::counter.counts.added, Real(a.value + b.value); }
inline Real operator-(Real a, Real b) { return ++emulation::counter.counts.added, Real(a.value - b.value); }
inline Real operator*(Real a, Real b) { return ++emulation::counter.counts.multiplied, Real(a.value * b.value); }
inline Real operator-(Real a) { return Real(-a.value); }
inline bool operator==(Real a, Real b) { return a.value == b.value; }
inline bool operator!=(Real a, Real b) { return a.value != b.value; }
inline bool operator<=(Real a, Real b) { return a.value <= b.value; }

inline Real multiply_add(Real a, Real b, Real c) {
  return ++emulation::counter.counts.fused, Real(std::fmaf(a.value, b.value, c.value));
}
inline Real reciprocal(Real x) { return ++emulation::counter.counts.reciprocals, Real(1.f / x.value); }
// Counted as reciprocals: all three go to the special function unit.
inline Real square_root(Real x) { return ++emulation::counter.counts.reciprocals, Real(std::sqrt(x.value)); }
inline Real power_of_two(Real a) { return ++emulation::counter.counts.reciprocals, Real(std::exp2(a.value)); }
inline Real absolute(Real a) { return Real(std::fabs(a.value)); }
inline float plain_value(Real a) { return a.value; }

extern "C" {

// The counts since the last call, in the order of Counts.
SPLAT_EXPORT __attribute__((used)) inline void splat_emulation_take_counts(double* out) {
  emulation::close_block();
  emulation::counter.block = ~0u;
  const emulation::Counts& c = emulation::counter.counts;
  const double values[] = {c.fused,      c.added,         c.multiplied,   c.reciprocals,
                           c.bytes_read, c.bytes_written, c.shared_words, c.wavefronts};
  std::copy(std::begin(values), std::end(values), out);
  emulation::counter.counts = {};
}
}
