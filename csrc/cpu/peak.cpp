// The peak rates of this machine, for benchmarks/measure.py: fused multiply-adds from registers, and copying memory.

#include "parallel.h"
#include "simd.h"

namespace {

// Independent chains: enough to cover the latency of an FMA (4 to 5 cycles) on two units, and they fit 16 registers.
constexpr int kChains = 10;

// 2 · kChains · kLanes · iterations floating-point operations. The factor and the addend keep every value finite.
SPLAT_INLINE float fma_chains(int64_t iterations, float factor, float addend) {
  const Floats a = broadcast(factor), b = broadcast(addend);
  Floats chains[kChains];
  for (int c = 0; c < kChains; ++c) chains[c] = broadcast(static_cast<float>(c));
  for (int64_t i = 0; i < iterations; ++i)
    for (int c = 0; c < kChains; ++c) chains[c] = chains[c] * a + b;
  Floats total = chains[0];
  for (int c = 1; c < kChains; ++c) total += chains[c];
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += total[lane];
  return sum;
}

}  // namespace

// Runs on every thread at once. sums[thread] keeps the work from being optimised away. Returns the number of
// floating-point operations of each thread, where an FMA counts as two.
extern "C" SPLAT_EXPORT int64_t SPLAT_KERNEL(peak_fma)(int64_t iterations, int threads, float* sums) {
  parallel_for(threads, threads, [&](int64_t task, int) { sums[task] = fma_chains(iterations, 0.5f, 1.0f); });
  return 2 * kChains * kLanes * iterations;
}

// Copies `count` floats. Each thread copies a share.
extern "C" SPLAT_EXPORT Status SPLAT_KERNEL(peak_copy)(const float* __restrict__ from, float* __restrict__ to,
                                                       int64_t count, int threads) {
  const int64_t share = (count + threads - 1) / threads;
  parallel_for(threads, threads, [&](int64_t task, int) {
    const int64_t end = (task + 1) * share < count ? (task + 1) * share : count;
    int64_t i = task * share;
    for (; i + kLanes <= end; i += kLanes) store(to + i, load(from + i));
    for (; i < end; ++i) to[i] = from[i];
  });
  return kOk;
}
