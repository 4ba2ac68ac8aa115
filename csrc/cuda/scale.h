// Multiplies a gradient by the upstream gradient of its loss, for a backward pass that does not start at the loss.
//
// A group has `blocks` blocks of 256 threads. Each block processes every `blocks`-th run of 1,024 elements. The kernel
// reads the upstream gradient itself, so that the host need not wait for it. If it is 1, the common case, nothing else
// is read or written. Otherwise 8 bytes an element are read and written.
#pragma once
#include "device.h"

namespace {

constexpr int kScaleThreads = 256, kScaleUnroll = 4;

SPLAT_DEVICE void scale(const SsimScaling& a) {
  const unsigned group = block_index() / a.blocks;
  const Real factor = load_global(a.upstream + group * a.upstream_stride);
  if (factor == 1.f) return;
  float* const gradient = a.gradient + group * a.count;
  constexpr Int64 kRun = kScaleThreads * kScaleUnroll;
  for (Int64 at = block_index() % a.blocks * kRun; at < a.count; at += a.blocks * kRun) {
    Real values[kScaleUnroll];
#pragma unroll
    for (int k = 0; k < kScaleUnroll; ++k) {
      const Int64 i = at + k * kScaleThreads + thread_index();
      if (i < a.count) values[k] = load_own(gradient + i);
    }
#pragma unroll
    for (int k = 0; k < kScaleUnroll; ++k) {
      const Int64 i = at + k * kScaleThreads + thread_index();
      if (i < a.count) store_global(gradient + i, values[k] * factor);
    }
  }
}

}  // namespace
