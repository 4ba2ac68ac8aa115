// Sums in a fixed order: inside a block, and of the blocks' sums. No atomics, so results repeat bit by bit.
#pragma once
#include "tensor.h"

namespace {

// The sum of v over the block, in *result. Every thread must call it.
template <int kThreads>
SPLAT_DEVICE void block_sum(Real v, float* result) {
  SPLAT_SHARED(Real, warps, kThreads / 32);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes >>= 1) v = v + shuffle_down(v, lanes);
  barrier();  // the array may still be read by the sum before this one
  if ((thread_index() & 31) == 0) store_shared(warps + thread_index() / 32, v);
  barrier();
  if (thread_index() == 0) {
    Real total = 0.f;
    for (int w = 0; w < kThreads / 32; ++w) total = total + load_shared(warps + w);
    store_global(result, total);
  }
}

// One block a result, summed in double precision.
SPLAT_DEVICE void reduce(const SsimReduction& a) {
  SPLAT_SHARED(double, warps, 8);
  const int k = static_cast<int>(block_index() / a.groups);
  const Int64 group = block_index() % a.groups;
  const float* values = a.values + (static_cast<Int64>(a.kind[k]) * a.groups + group) * a.count;
  double sum = 0.;
  for (Int64 i = thread_index(); i < a.count; i += 256) sum += static_cast<double>(load_global(values + i));
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes >>= 1) sum += shuffle_down(sum, lanes);
  if ((thread_index() & 31) == 0) store_shared(warps + thread_index() / 32, sum);
  barrier();
  if (thread_index() == 0) {
    sum = 0.;
    for (int w = 0; w < 8; ++w) sum += load_shared(warps + w);
    store_global(a.results + block_index(), Real(static_cast<float>(a.offset[k] + a.scale[k] * sum)));
  }
}

}  // namespace
