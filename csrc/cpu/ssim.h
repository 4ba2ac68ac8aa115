// What the 2D and the 3D SSIM kernels share: their arguments, the window, and the index itself at one point.
//
// With s = x + y, d = x - y, mu and V their windowed means and variances (Wang et al. 2004, eq. 13, rearranged):
//   A = mu_s² + mu_d² + 2 C1,  B = V_s + V_d + 2 C2,  u = 2 mu_d² / A,  v = 2 V_d / B,  1 - S = u + v - u v
// so four maps are averaged (s, d, s², d²) and the distance from 1 needs no difference of nearly equal numbers. The
// constants c_s and c_d are taken off s and d before anything is squared, which keeps V = E[s²] - E[s]² exact.
#pragma once
#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "isa.h"

namespace {

constexpr int kMaxTaps = 33;

enum Dtype : int64_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kUint8 = 3 };
enum Padding : int64_t { kSame = 0, kValid = 1, kReflect = 2, kReplicate = 3 };

// A tensor: strides in elements. The innermost axis, or with interleaved channels the innermost two, are contiguous.
struct View {
  char* data;
  int64_t dtype, batch, channel, slice, row;
};

// The arguments of every SSIM kernel, packed by splat_ssim/ops/ssim.py in this order; pointers that are null are left
// out. Every view but the images holds float32. `weight`, `map` are addressed by the position in the image, so under
// "valid" the caller moves their pointers back by the border.
struct Arguments {
  View img1, img2, weight, map, grad1, grad2;
  int64_t batch, channels, depth, height, width;
  int64_t interleaved;         // channels are the innermost axis
  int64_t taps, padding, threads;
  int64_t weighs_l1;           // the weight is as large as the image and weighs |x - y| too, not only 1 - S
  const double* window;        // [taps], symmetric, sums to 1
  const double* coefficients;  // [planes][3]: what the gradient is of: of 1 - S, 1 - contrast-structure and |x - y|
  double* sums;                // [planes][3]: the weighted sums of these three, written
  double c1, c2, data_range;   // (k1 L)², (k2 L)², L
};

// One axis of the window. The count of taps is a template argument where it matters for speed, else (0) a member.
template <int kTaps>
struct Window {
  Floats half[kTaps / 2 + 1];
  SPLAT_INLINE explicit Window(const float* taps, int) {
#pragma GCC unroll 32
    for (int k = 0; k <= kTaps / 2; ++k) half[k] = broadcast(taps[k]);
  }
  SPLAT_INLINE Floats operator[](int k) const { return half[k <= kTaps / 2 ? k : kTaps - 1 - k]; }
  static constexpr int size() { return kTaps; }
};

template <>
struct Window<0> {
  const float* taps;
  int count;
  SPLAT_INLINE explicit Window(const float* values, int number) : taps(values), count(number) {}
  SPLAT_INLINE Floats operator[](int k) const { return broadcast(taps[k]); }
  SPLAT_INLINE int size() const { return count; }
};

SPLAT_INLINE Floats reciprocal(Floats a) {
#if defined(__AVX512F__)
  // 14 bits, then one Newton step: half the time of a division and as exact to 1.5 units in the last place.
  const Floats r = (Floats)_mm512_maskz_rcp14_ps(0xffff, (__m512)a);
  return r * (2.0f - a * r);
#else
  return 1.0f / a;
#endif
}

struct PointConstants {
  float shift_s, shift_d;  // c_s, c_d
  float c1_twice, c2_twice;
  float a, b;              // the gradient's coefficients of 1 - S and of 1 - contrast-structure
  float sign;              // +1: gradient of the first image, -1: of the second (where only one is wanted)
};

// The means of s - c_s, d - c_d and of their squares.
struct Moments {
  Floats s, d, ss, dd;
};

// 1 - S, 1 - contrast-structure, and how they change with the moments, combined for the gradients by x and y:
//   dL/dx = w * mean_1 + s (w * square_s) + d (w * square_d),  dL/dy = w * mean_2 + s (w * square_s) - d (w * square_d)
// where s and d are the shifted ones. With one gradient, mean_1 and square_d carry its sign.
struct Point {
  Floats dssim, contrast, mean_1, mean_2, square_s, square_d;
};

template <int kPartials>
SPLAT_INLINE Point evaluate(const Moments& m, const PointConstants& c) {
  Point p;
  const Floats mu_s = m.s + c.shift_s, mu_d = m.d + c.shift_d;
  const Floats var_s = m.ss - m.s * m.s, var_d = m.dd - m.d * m.d;
  const Floats dd = mu_d * mu_d;
  const Floats a = mu_s * mu_s + (dd + c.c1_twice), b = var_s + (var_d + c.c2_twice);
  const Floats r = reciprocal(a * b);
  const Floats over_a = b * r, over_b = a * r;
  const Floats u = 2.0f * dd * over_a, v = 2.0f * var_d * over_b;
  p.dssim = v + (u - u * v);
  p.contrast = v;
  if constexpr (kPartials > 0) {
    const Floats by_b = ((c.a + c.b) - c.a * u) * over_b;
    const Floats by_a = (2.0f * (c.a - c.a * v)) * over_a;
    const Floats by_dd = 2.0f * (by_b * (2.0f - v)), by_ss = -2.0f * (by_b * v);
    const Floats by_d = by_a * mu_d * (2.0f - u) - m.d * by_dd;
    const Floats by_s = -(by_a * u * mu_s) - m.s * by_ss;
    p.square_s = by_ss;
    if constexpr (kPartials == 3) {
      p.mean_1 = by_s + c.sign * by_d;
      p.square_d = c.sign * by_dd;
    } else {
      p.mean_1 = by_s + by_d;
      p.mean_2 = by_s - by_d;
      p.square_d = by_dd;
    }
  }
  return p;
}

SPLAT_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SPLAT_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
SPLAT_INLINE int64_t round_up(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

// Sum of a row's [begin, end), in a fixed order.
SPLAT_INLINE double row_total(const float* row, int64_t begin, int64_t end) {
  Floats lanes = {};
  int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) lanes += load(row + j);
  double total = 0;
  for (int k = 0; k < kLanes; ++k) total += lanes[k];
  for (; j < end; ++j) total += row[j];
  return total;
}

}  // namespace
