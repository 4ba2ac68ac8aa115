// A 3D Gaussian in an X-ray picture: its footprint, and the walk over the pixels inside it. docs/xray.md derives the
// formulas.
//
// Let W = diag(1/s) R', x = o + t d a ray, a = W (o - mean) and b = W d. The Gaussian's exponent is |a + t b|^2. Its
// smallest value on the ray is q = N / B, with N = |a x b|^2 and B = |b|^2. With y = (9 - q) / 2 and D = |d|^2, the
// integral over the part of the ray where the exponent is at most 9 is
//   sqrt(2 pi D / B) exp(-q/2) erf(sqrt y) = 2 sqrt 2 exp(-9/2) sqrt(y D / B) M(y),
//   M(y) = sqrt(pi)/2 exp(y) erf(sqrt y) / sqrt y.
// M has no pole. A polynomial approximates it, so that no exponential is computed.
//
// A pixel lies dx columns and dy rows from the projected mean. At the mean itself a and b are parallel, so N is a
// quadratic form without lower terms, (p dx + r dy)^2 + (s dy)^2. B and D are quadratic polynomials.
#pragma once
#include "../gaussian.h"
#include "layout.h"
#include "simd.h"

namespace {

constexpr double kXrayCutoff = 9.0;                  // squared Mahalanobis distance
constexpr double kXrayFactor = 0.03142098713747607;  // 2 sqrt 2 exp(-9/2)
constexpr float kRim = 1e-6f;                        // y below which the slope 1/(2y) at the rim no longer rises

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

// M(y) = 1 + 2y/3 + (2y)^2/15 + (2y)^3/105 + ... for y in [0, 4.5]: minimax polynomial, relative error 6e-9, and 2e-7
// in float32.
template <class F>
SPLAT_INLINE F through(F y) {
  F m = y * 5.32811669e-08f + -6.09412627e-07f;
  m = m * y + 5.68495781e-06f;
  m = m * y + -1.34473738e-05f;
  m = m * y + 1.19640584e-04f;
  m = m * y + 3.74444693e-04f;
  m = m * y + 3.19025573e-03f;
  m = m * y + 1.68530264e-02f;
  m = m * y + 7.62219870e-02f;
  m = m * y + 2.66660267e-01f;
  m = m * y + 6.66667162e-01f;
  return m * y + 9.99999994e-01f;
}

// One view: a point on the rays, the steps between them, and the matrix from space back to pixels.
struct XrayView {
  double origin[3];   // the source, or the first pixel of a parallel beam
  double column[3];   // from a column to the next
  double row[3];      // from a row to the next
  double last[3];     // from the source to the first pixel, or the direction of all rays
  double inverse[9];  // of the matrix with these three as columns, row-major
  double determinant;
};

struct Detector {
  int width, height;
  int64_t stride;  // floats from row to row, at least kLanes - 1 more than the width
  bool cone;
};

// A Gaussian in space, the same for every view.
struct Body {
  double mean[3];
  double W[9];  // row c: axis c of the Gaussian over its standard deviation
  double M[9];  // column c: axis c times its standard deviation
  double inverse_volume;
  double rotation[9], unit[4], norm, inverse_scale[3];
};

struct Shadow {
  float factor;         // factor of sqrt(y D / B) M(y), with D and B as below
  float offset[2];      // projected mean - center
  float p, r, s;        // N / B(0)
  float B[5], D[5];     // B / B(0) = 1 + B0 dx + B1 dy + B2 dx^2 + B3 dx dy + B4 dy^2, D alike
  int center[2];        // pixel nearest to the projected mean: column, row
  int low[2], high[2];  // bounding box on the detector, inclusive; high[1] < low[1] if it is empty
};

// Further values that backward needs.
struct ShadowFrame {
  double depth;                // t of the mean along the ray through it; 1 in a parallel beam
  double direction[3];         // of the ray through the mean
  double b0[3], b1[3], b2[3];  // W times this direction, the column step and the row step
  double inverse_B;            // 1 / B(0)
};

SPLAT_INLINE double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
SPLAT_INLINE void cross(const double* a, const double* b, double* c) {
  c[0] = a[1] * b[2] - a[2] * b[1];
  c[1] = a[2] * b[0] - a[0] * b[2];
  c[2] = a[0] * b[1] - a[1] * b[0];
}
SPLAT_INLINE void times(const double* matrix, const double* v, double* result) {
  for (int c = 0; c < 3; ++c) result[c] = dot(matrix + c * 3, v);
}

inline void make_body(const float* mean, const float* quat, const float* scale, Body& body) {
  double squares = 0;
  for (int i = 0; i < 4; ++i) squares += static_cast<double>(quat[i]) * quat[i];
  body.norm = __builtin_sqrt(squares);
  for (int i = 0; i < 4; ++i) body.unit[i] = quat[i] * (1.0 / body.norm);
  rotation_of(body.unit, body.rotation);
  body.inverse_volume = 1.0;
  for (int c = 0; c < 3; ++c) {
    body.mean[c] = mean[c];
    body.inverse_scale[c] = 1.0 / scale[c];
    body.inverse_volume *= body.inverse_scale[c];
    for (int k = 0; k < 3; ++k) {
      body.W[c * 3 + k] = body.rotation[k * 3 + c] * body.inverse_scale[c];
      body.M[k * 3 + c] = body.rotation[k * 3 + c] * scale[c];
    }
  }
}

// Finds the pixels that the ellipsoid q <= 9 may touch along one axis, from the tangents of the cone over it.
// `deviation` is the variance in the direction of that axis and `along` its covariance with depth. `left` is depth^2 -
// 9 times the variance of depth, which is above 0.
SPLAT_INLINE bool bounds(double at, double deviation, double along, double left, int size, int& low, int& high) {
  const double middle = -kXrayCutoff * along / left;
  const double square_half = kXrayCutoff * deviation / left + middle * middle;
  const double half = __builtin_sqrt(square_half);
  // A little wider than exact: the test on q must decide, not rounding here.
  const double first = __builtin_ceil(at + middle - half - 1e-5), last = __builtin_floor(at + middle + half + 1e-5);
  // Written so that NaN fails.
  if (!(first <= size - 1 && last >= 0 && first <= last)) return false;
  low = first > 0 ? static_cast<int>(first) : 0;
  high = last < size - 1 ? static_cast<int>(last) : size - 1;
  return true;
}

// The coefficients of unit·|v0 + v1 dx + v2 dy|^2 except the constant one.
SPLAT_INLINE void polynomial(const double* v0, const double* v1, const double* v2, double unit, float* result) {
  result[0] = static_cast<float>(2 * unit * dot(v0, v1));
  result[1] = static_cast<float>(2 * unit * dot(v0, v2));
  result[2] = static_cast<float>(unit * dot(v1, v1));
  result[3] = static_cast<float>(2 * unit * dot(v1, v2));
  result[4] = static_cast<float>(unit * dot(v2, v2));
}

// Fills the shadow. Returns false if the Gaussian touches no pixel, does not lie in front of the source, or is not
// finite.
inline bool make_shadow(const Body& body, const XrayView& view, const Detector& detector, ShadowFrame& frame,
                        Shadow& shadow) {
  double from[3], z[3], spread[3][3];
  for (int k = 0; k < 3; ++k) from[k] = body.mean[k] - view.origin[k];
  times(view.inverse, from, z);
  const double depth = detector.cone ? z[2] : 1.0;
  if (!(depth > 0)) return false;
  const double at[2] = {z[0] / depth, z[1] / depth};
  if (!(__builtin_fabs(at[0]) < 5e8 && __builtin_fabs(at[1]) < 5e8)) return false;
  for (int k = 0; k < 3; ++k) {
    // Directions in space: to the right and down from the ray through the mean, and along it.
    double direction[3];
    for (int l = 0; l < 3; ++l) {
      const double forward = detector.cone ? view.inverse[6 + l] : 0.0;
      direction[l] = k == 2 ? forward : view.inverse[k * 3 + l] - at[k] * forward;
    }
    for (int c = 0; c < 3; ++c) {
      spread[k][c] = direction[0] * body.M[c] + direction[1] * body.M[3 + c] + direction[2] * body.M[6 + c];
    }
  }
  const double left = depth * depth - kXrayCutoff * dot(spread[2], spread[2]);
  if (!(left > 0)) return false;
  const int sizes[2] = {detector.width, detector.height};
  for (int k = 0; k < 2; ++k) {
    if (!bounds(at[k], dot(spread[k], spread[k]), dot(spread[k], spread[2]), left, sizes[k], shadow.low[k],
                shadow.high[k])) {
      return false;
    }
    const double nearest = __builtin_floor(at[k] + 0.5);
    shadow.center[k] = static_cast<int>(nearest);
    shadow.offset[k] = static_cast<float>(at[k] - nearest);
  }
  frame.depth = depth;
  for (int k = 0; k < 3; ++k) {
    const double across = view.last[k] + at[0] * view.column[k] + at[1] * view.row[k];
    frame.direction[k] = detector.cone ? across : view.last[k];
  }
  times(body.W, frame.direction, frame.b0);
  times(body.W, view.column, frame.b1);
  times(body.W, view.row, frame.b2);
  const double B = dot(frame.b0, frame.b0), length = dot(frame.direction, frame.direction);
  frame.inverse_B = 1.0 / B;
  // N / B(0) = (p dx + r dy)^2 + (s dy)^2, from the cross products of the steps with b0.
  double c1[3], c2[3];
  cross(frame.b1, frame.b0, c1);
  cross(frame.b2, frame.b0, c2);
  const double width = __builtin_sqrt(dot(c1, c1)), root_B = __builtin_sqrt(B);
  const double unit = depth / root_B;
  shadow.p = static_cast<float>(unit * width);
  shadow.r = static_cast<float>(unit * dot(c1, c2) / width);
  // |c1 x c2| = |b0| |det(b0, b1, b2)|. The right side has no cancellation.
  shadow.s = static_cast<float>(depth * __builtin_fabs(view.determinant) * body.inverse_volume / width);
  shadow.factor = static_cast<float>(kXrayFactor * __builtin_sqrt(length) / root_B);
  if (detector.cone) {
    polynomial(frame.b0, frame.b1, frame.b2, frame.inverse_B, shadow.B);
    polynomial(frame.direction, view.column, view.row, 1.0 / length, shadow.D);
  }
  return true;
}

// Visits the rows of a shadow in [row_begin, row_end), one vector-wide chunk of columns after the other:
//   visitor.begin(), then visitor.row(offset, dy, y, ratio, inverse) ..., then visitor.end(dx).
// `offset` is the position of the chunk's first pixel in a picture. y is 0 outside the shadow. ratio is D / B and
// inverse is 1 / B, where D and B are relative to their values at the projected mean. Both are 1 in a parallel beam.
template <class V, bool kCone, class Visitor>
SPLAT_INLINE void walk_shadow(const Shadow& shadow, const Detector& detector, int row_begin, int row_end,
                              Visitor& visitor) {
  typedef typename V::F F;
  // Nothing points to this copy, so it stays in registers whatever the visitor stores.
  const Shadow f = shadow;
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
