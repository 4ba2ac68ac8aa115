// Sums in a fixed order: inside a block, and over the blocks' sums. There are no atomics, so results repeat bit by bit.
#pragma once
#include "tensor.h"

namespace {

// Stores the sum of v over the block in *result. Every thread must call this function.
template <int kThreads>
SPLAT_DEVICE void block_sum(Real v, float* result) {
  SPLAT_SHARED(Real, warps, kThreads / 32);
  v = warp_sum(v);
  barrier();  // the previous sum may still read the array
  if ((thread_index() & 31) == 0) store_shared(warps + thread_index() / 32, v);
  barrier();
  if (thread_index() == 0) {
    Real total = 0.f;
    for (int w = 0; w < kThreads / 32; ++w) total = total + load_shared(warps + w);
    store_global(result, total);
  }
}

// Reduces one group with a whole block of 256 threads. It sums in double precision.
SPLAT_DEVICE void reduce(const SsimReduction& a, Int64 group) {
  SPLAT_SHARED(double, warps, 8);
  double combined = a.offset;
  for (int k = 0; k < a.kinds; ++k) {
    const float* values = a.values[k] + group * a.count[k];
    double sum = 0.;
    for (Int64 i = thread_index(); i < a.count[k]; i += 256) sum += static_cast<double>(load_fresh(values + i));
    sum = warp_sum(sum);
    barrier();  // thread 0 may still read the sums of the previous kind
    if ((thread_index() & 31) == 0) store_shared(warps + thread_index() / 32, sum);
    barrier();
    if (thread_index() == 0) {
      sum = 0.;
      for (int w = 0; w < 8; ++w) sum += load_shared(warps + w);
      sum *= a.scale[k];
      combined += a.combine[k] * sum;
      store_global(a.results[k] + group * a.result_stride, Real(static_cast<float>(sum)));
    }
  }
  if (thread_index() == 0 && a.combined) {
    store_global(a.combined + group * a.result_stride, Real(static_cast<float>(combined)));
  }
}

// Every block calls this once its thread 0 has stored the block's sums. The last of the `blocks` blocks to finish
// reduces all sums, in the same order as the separate reduction kernel.
SPLAT_DEVICE void reduce_in_last_block(const SsimProblem& a, unsigned blocks) {
  SPLAT_SHARED(int, is_last, 1);
  if (!a.arrivals) return;
  if (thread_index() == 0) store_shared(is_last, arrive(a.arrivals, blocks - 1) == blocks - 1 ? 1 : 0);
  barrier();
  if (!load_shared(is_last)) return;
  for (int group = 0; group < a.means.groups; ++group) reduce(a.means, group);
}

}  // namespace
