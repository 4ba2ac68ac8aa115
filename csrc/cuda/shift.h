// Constants that are subtracted from s = x + y and d = x - y before moments are formed. A float32 has 24 bits, and
// E[s²] - E[s]² keeps only the bits that the mean does not use up.
#pragma once
#include "tensor.h"

namespace {

struct Shift {
  Real s, d;
};

// s of a pixel, shifted. shift.s is about 2x, so this order of the sum rounds as little as possible.
SPLAT_DEVICE Real shifted_sum(Real x, Real y, const Shift& shift) { return (x - shift.s) + y; }
// (s, d) of a pixel, shifted.
SPLAT_DEVICE Pair shifted(Real x, Real y, const Shift& shift) { return {shifted_sum(x, y, shift), (x - y) - shift.d}; }

// The shifts of a plane: the means of s and d over 32 samples of it, one a lane. Samples whose squares are not finite
// are left out. The shift of d is 0 unless the images' means clearly differ (SsimProblem::apart), because d = 0 and the
// sign of d must not be rounded away. The shifts depend only on the plane, so that forward and backward kernels and
// every cut into blocks use the same. Every thread must call this function.
template <bool kPlain, bool kComposites = false>
SPLAT_DEVICE Shift plane_shift(const SsimProblem& a, int batch, int channel) {
  const int lane = thread_index() & 31;
  // The samples are spread evenly along each axis. Each axis takes the lanes in another order.
  auto place = [&](int axis, int order) {
    return static_cast<int>(static_cast<Int64>(a.size[axis]) * (2 * (lane * order & 31) + 1) >> 6);
  };
  const int z = place(2, 11), y = place(3, 1), x = place(4, 19);
  auto load = [&](const SsimTensor& image, bool composites) {
    const Int64 at = plane_offset(image, batch, channel) + z * image.stride[2] + y * image.stride[3];
    if (composites) return Over(a, batch, channel).load(image, at + x * image.stride[4]);
    return kPlain ? load_global(static_cast<const float*>(image.data) + at + x)
                  : load_element(image, at + x * image.stride[4]);
  };
  const Real vx = load(a.image[0], false), vy = load(a.image[1], kComposites);
  const bool usable = absolute(vx) + absolute(vy) <= 1e18f;
  // Valid in the first lane only, which has the sums over all lanes. mean() broadcasts its result.
  const Real count = warp_sum(usable ? Real(1.f) : Real(0.f)), share = reciprocal(count == 0.f ? Real(1.f) : count);
  auto mean = [&](Real v) { return broadcast(warp_sum(usable ? v : Real(0.f)) * share); };
  const Real d = mean(vx - vy);
  return {mean(vx + vy), absolute(d) <= a.apart ? Real(0.f) : d};
}

}  // namespace
