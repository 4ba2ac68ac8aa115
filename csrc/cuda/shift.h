// The constant that is subtracted from s = x + y before moments are formed: float32 has 24 bits, and E[s²] - E[s]² keeps
// only those that the mean leaves.
#pragma once
#include "tensor.h"

namespace {

// The mean of s over 32 places of the plane, one a lane; what is not finite counts as 0. It depends on the plane alone,
// so that forward and backward kernels, and every cut into blocks, have the same. Every thread must call it.
template <bool kPlain>
SPLAT_DEVICE Real plane_shift(const SsimProblem& a, int batch, int channel) {
  const int lane = thread_index() & 31;
  // Spread evenly along each axis, in orders that are permutations of the lanes.
  auto place = [&](int axis, int order) {
    return static_cast<int>(static_cast<Int64>(a.size[axis]) * (2 * (lane * order & 31) + 1) >> 6);
  };
  const int z = place(2, 11), y = place(3, 1), x = place(4, 19);
  auto load = [&](const SsimTensor& image) {
    const Int64 at = plane_offset(image, batch, channel) + z * image.stride[2] + y * image.stride[3];
    return kPlain ? load_global(static_cast<const float*>(image.data) + at + x)
                  : load_element(image, at + x * image.stride[4]);
  };
  Real sum = load(a.image[0]) + load(a.image[1]);
  if (!(absolute(sum) <= 3.4e38f)) sum = 0.f;
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes >>= 1) sum = sum + shuffle_down(sum, lanes);
  return broadcast(sum * (1.f / 32));
}

}  // namespace
