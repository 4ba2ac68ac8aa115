// The walk over the pixels of a shadow, in vectors. ../xray_math.h has the shadow and its formulas.
#pragma once
#include "../xray_math.h"
#include "layout.h"
#include "simd.h"

namespace {

// The square root of a vector of any width.
typedef float RootFour __attribute__((vector_size(16)));
typedef float RootEight __attribute__((vector_size(32)));
typedef float RootSixteen __attribute__((vector_size(64)));
#if defined(__x86_64__)
SPLAT_INLINE RootFour root(RootFour a) { return _mm_sqrt_ps(a); }
#if defined(__AVX2__)
SPLAT_INLINE RootEight root(RootEight a) { return _mm256_sqrt_ps(a); }
#endif
#if defined(__AVX512F__)
SPLAT_INLINE RootSixteen root(RootSixteen a) { return _mm512_maskz_sqrt_ps(0xffff, a); }
#endif
#else
SPLAT_INLINE RootFour root(RootFour a) {
  for (int l = 0; l < 4; ++l) a[l] = __builtin_sqrtf(a[l]);
  return a;
}
#endif

struct Detector : XrayDetector {
  int64_t stride;  // floats from row to row, at least kLanes - 1 more than the width
};

// Visits the rows of a shadow in [row_begin, row_end), one vector-wide chunk of columns after the other:
//   visitor.begin(), then visitor.row(offset, dy, y, ratio, inverse) ..., then visitor.end(dx).
// `offset` is the position of the chunk's first pixel in a picture. y is 0 outside the shadow. ratio is D / B and
// inverse is 1 / B, where D and B are relative to their values at the projected mean. Both are 1 in a parallel beam.
template <class V, bool kCone, class Visitor>
SPLAT_INLINE void walk_shadow(const XrayShadow& shadow, const Detector& detector, int row_begin, int row_end,
                              Visitor& visitor) {
  typedef typename V::F F;
  // Nothing points to this copy, so it stays in registers whatever the visitor stores.
  const XrayShadow f = shadow;
  const int64_t stride = detector.stride;
  const int top = f.low[1] > row_begin ? f.low[1] : row_begin;
  const int bottom = f.high[1] < row_end - 1 ? f.high[1] : row_end - 1;
  for (int begin = f.low[0]; begin <= f.high[0]; begin += V::kWidth) {
    const F dx = lane_numbers<V>() + (static_cast<float>(begin - f.center[0]) - f.offset[0]);
    const F px = dx * f.p;
    visitor.begin();
    int64_t offset = top * stride + begin;
    for (int row = top; row <= bottom; ++row, offset += stride) {
      const float dy = static_cast<float>(row - f.center[1]) - f.offset[1];
      const F across = px + f.r * dy;
      const float down = f.s * dy;
      F q = across * across + down * down, inverse = broadcast<V>(1.0f), ratio = broadcast<V>(1.0f);
      if (kCone) {
        const F B = (dx * f.B[2] + (f.B[0] + f.B[3] * dy)) * dx + ((f.B[4] * dy + f.B[1]) * dy + 1.0f);
        const F D = (dx * f.D[2] + (f.D[0] + f.D[3] * dy)) * dx + ((f.D[4] * dy + f.D[1]) * dy + 1.0f);
        inverse = 1.0f / B;
        q *= inverse;
        ratio = D * inverse;
      }
      const F rest = 4.5f - 0.5f * q;
      // 0 past the cut-off, and for NaN.
      const F y = rest > F{} ? rest : F{};
      visitor.row(offset, dy, y, ratio, inverse);
    }
    visitor.end(dx);
  }
}

}  // namespace
