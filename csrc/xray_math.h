// A 3D Gaussian in an X-ray picture: the formulas that the CPU and the CUDA kernels share. docs/xray.md derives them.
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
#include "gaussian.h"

// The size of the detector, and whether all rays start at one point.
struct XrayDetector {
  int width, height, cone;
};

// One view: a point on the rays, the steps between them, and the matrix from space back to pixels.
struct XrayView {
  double origin[3];   // the source, or the first pixel of a parallel beam
  double column[3];   // from a column to the next
  double row[3];      // from a row to the next
  double last[3];     // from the source to the first pixel, or the direction of all rays
  double inverse[9];  // of the matrix with these three as columns, row-major
  double determinant;
};
static_assert(sizeof(XrayView) == 176, "as in splat_ssim/ops/xray_cuda.py");

// A Gaussian on the detector.
struct XrayShadow {
  float factor;         // factor of sqrt(y D / B) M(y), with D and B as below
  float offset[2];      // projected mean - center
  float p, r, s;        // N / B(0)
  float B[5], D[5];     // B / B(0) = 1 + B0 dx + B1 dy + B2 dx^2 + B3 dx dy + B4 dy^2, D alike; set in a cone only
  int center[2];        // pixel nearest to the projected mean: column, row
  int low[2], high[2];  // bounding box on the detector, inclusive; high[1] < low[1] if it is empty
};
static_assert(sizeof(XrayShadow) == 88, "as in splat_ssim/ops/xray_cuda.py");

namespace {

constexpr double kXrayCutoff = 9.0;                  // squared Mahalanobis distance
constexpr double kXrayFactor = 0.03142098713747607;  // 2 sqrt 2 exp(-9/2)
constexpr float kRim = 1e-6f;                        // y below which the slope 1/(2y) at the rim no longer rises

// Operations that compilers for the host and for a GPU name differently. `times_plus` is a b + c.
#if defined(SPLAT_DEVICE)
SPLAT_GAUSSIAN double root64(double v) { return sqrt(v); }
SPLAT_GAUSSIAN double size64(double v) { return fabs(v); }
SPLAT_GAUSSIAN double ceil64(double v) { return ceil(v); }
SPLAT_GAUSSIAN double floor64(double v) { return floor(v); }
SPLAT_GAUSSIAN Real times_plus(Real a, Real b, float c) { return multiply_add(a, b, Real(c)); }
#else
SPLAT_GAUSSIAN double root64(double v) { return __builtin_sqrt(v); }
SPLAT_GAUSSIAN double size64(double v) { return __builtin_fabs(v); }
SPLAT_GAUSSIAN double ceil64(double v) { return __builtin_ceil(v); }
SPLAT_GAUSSIAN double floor64(double v) { return __builtin_floor(v); }
template <class F, class G>
SPLAT_GAUSSIAN F times_plus(F a, G b, float c) {
  return a * b + c;
}
#endif

// M(y) = 1 + 2y/3 + (2y)^2/15 + (2y)^3/105 + ... for y in [0, 4.5]: minimax polynomial, relative error 6e-9, and 2e-7
// in float32. F is a number or a vector of numbers.
template <class F>
SPLAT_GAUSSIAN F through(F y) {
  F m = times_plus(y, 5.32811669e-08f, -6.09412627e-07f);
  m = times_plus(m, y, 5.68495781e-06f);
  m = times_plus(m, y, -1.34473738e-05f);
  m = times_plus(m, y, 1.19640584e-04f);
  m = times_plus(m, y, 3.74444693e-04f);
  m = times_plus(m, y, 3.19025573e-03f);
  m = times_plus(m, y, 1.68530264e-02f);
  m = times_plus(m, y, 7.62219870e-02f);
  m = times_plus(m, y, 2.66660267e-01f);
  m = times_plus(m, y, 6.66667162e-01f);
  return times_plus(m, y, 9.99999994e-01f);
}

// A Gaussian in space, the same for every view.
struct XrayBody {
  double mean[3];
  double W[9];  // row c: axis c of the Gaussian over its standard deviation
  double M[9];  // column c: axis c times its standard deviation
  double inverse_volume;
  double rotation[9], unit[4], norm, inverse_scale[3];
};

// Further values that backward needs.
struct ShadowFrame {
  double depth;                // t of the mean along the ray through it; 1 in a parallel beam
  double direction[3];         // of the ray through the mean
  double b0[3], b1[3], b2[3];  // W times this direction, the column step and the row step
  double inverse_B;            // 1 / B(0)
};

SPLAT_GAUSSIAN double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
SPLAT_GAUSSIAN void cross(const double* a, const double* b, double* c) {
  c[0] = a[1] * b[2] - a[2] * b[1];
  c[1] = a[2] * b[0] - a[0] * b[2];
  c[2] = a[0] * b[1] - a[1] * b[0];
}
SPLAT_GAUSSIAN void times(const double* matrix, const double* v, double* result) {
  for (int c = 0; c < 3; ++c) result[c] = dot(matrix + c * 3, v);
}

// Completes a view of which the vectors are given. Returns false if they lie in a plane.
SPLAT_GAUSSIAN bool complete_view(XrayView& view) {
  double cofactors[9];
  cross(view.row, view.last, cofactors);
  cross(view.last, view.column, cofactors + 3);
  cross(view.column, view.row, cofactors + 6);
  view.determinant = dot(view.column, cofactors);
  for (int k = 0; k < 9; ++k) view.inverse[k] = cofactors[k] / view.determinant;
  return size64(view.determinant) > 0;
}

// T is float or double.
template <class T>
SPLAT_GAUSSIAN void make_body(const T* mean, const T* quat, const T* scale, XrayBody& body) {
  double squares = 0;
  for (int i = 0; i < 4; ++i) squares += static_cast<double>(quat[i]) * quat[i];
  body.norm = root64(squares);
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
SPLAT_GAUSSIAN bool bounds(double at, double deviation, double along, double left, int size, int& low, int& high) {
  const double middle = -kXrayCutoff * along / left;
  const double square_half = kXrayCutoff * deviation / left + middle * middle;
  const double half = root64(square_half);
  // A little wider than exact: the test on q must decide, not rounding here.
  const double first = ceil64(at + middle - half - 1e-5), last = floor64(at + middle + half + 1e-5);
  // Written so that NaN fails.
  if (!(first <= size - 1 && last >= 0 && first <= last)) return false;
  low = first > 0 ? static_cast<int>(first) : 0;
  high = last < size - 1 ? static_cast<int>(last) : size - 1;
  return true;
}

// The coefficients of unit·|v0 + v1 dx + v2 dy|^2 except the constant one.
SPLAT_GAUSSIAN void polynomial(const double* v0, const double* v1, const double* v2, double unit, float* result) {
  result[0] = static_cast<float>(2 * unit * dot(v0, v1));
  result[1] = static_cast<float>(2 * unit * dot(v0, v2));
  result[2] = static_cast<float>(unit * dot(v1, v1));
  result[3] = static_cast<float>(2 * unit * dot(v1, v2));
  result[4] = static_cast<float>(unit * dot(v2, v2));
}

// Sets `at` to the column and the row of the projected mean. Returns its depth.
SPLAT_GAUSSIAN double project_mean(const XrayBody& body, const XrayView& view, int cone, double* at) {
  double from[3], z[3];
  for (int k = 0; k < 3; ++k) from[k] = body.mean[k] - view.origin[k];
  times(view.inverse, from, z);
  const double depth = cone ? z[2] : 1.0;
  at[0] = z[0] / depth;
  at[1] = z[1] / depth;
  return depth;
}

SPLAT_GAUSSIAN void make_frame(const XrayBody& body, const XrayView& view, int cone, double depth, const double* at,
                               ShadowFrame& frame) {
  frame.depth = depth;
  for (int k = 0; k < 3; ++k) {
    const double across = view.last[k] + at[0] * view.column[k] + at[1] * view.row[k];
    frame.direction[k] = cone ? across : view.last[k];
  }
  times(body.W, frame.direction, frame.b0);
  times(body.W, view.column, frame.b1);
  times(body.W, view.row, frame.b2);
  frame.inverse_B = 1.0 / dot(frame.b0, frame.b0);
}

// Fills the bounding box, the center and the offset. Returns false if the Gaussian touches no pixel, does not lie in
// front of the source, or is not finite.
SPLAT_GAUSSIAN bool make_box(const XrayBody& body, const XrayView& view, const XrayDetector& detector, double depth,
                             const double* at, XrayShadow& shadow) {
  double spread[3][3];
  if (!(depth > 0)) return false;
  if (!(size64(at[0]) < 5e8 && size64(at[1]) < 5e8)) return false;
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
    const double nearest = floor64(at[k] + 0.5);
    shadow.center[k] = static_cast<int>(nearest);
    shadow.offset[k] = static_cast<float>(at[k] - nearest);
  }
  return true;
}

// Fills the shadow. Returns false if it is empty; nothing of it counts then.
SPLAT_GAUSSIAN bool make_shadow(const XrayBody& body, const XrayView& view, const XrayDetector& detector,
                                ShadowFrame& frame, XrayShadow& shadow) {
  double at[2];
  const double depth = project_mean(body, view, detector.cone, at);
  if (!make_box(body, view, detector, depth, at, shadow)) return false;
  make_frame(body, view, detector.cone, depth, at, frame);
  const double B = dot(frame.b0, frame.b0), length = dot(frame.direction, frame.direction);
  // N / B(0) = (p dx + r dy)^2 + (s dy)^2, from the cross products of the steps with b0.
  double c1[3], c2[3];
  cross(frame.b1, frame.b0, c1);
  cross(frame.b2, frame.b0, c2);
  const double width = root64(dot(c1, c1)), root_B = root64(B);
  const double unit = depth / root_B;
  shadow.p = static_cast<float>(unit * width);
  shadow.r = static_cast<float>(unit * dot(c1, c2) / width);
  // |c1 x c2| = |b0| |det(b0, b1, b2)|. The right side has no cancellation.
  shadow.s = static_cast<float>(depth * size64(view.determinant) * body.inverse_volume / width);
  shadow.factor = static_cast<float>(kXrayFactor * root64(length) / root_B);
  if (detector.cone) {
    polynomial(frame.b0, frame.b1, frame.b2, frame.inverse_B, shadow.B);
    polynomial(frame.direction, view.column, view.row, 1.0 / length, shadow.D);
  }
  return true;
}

// Adds the gradients by W and by the mean that follow from the sums of a view, each of 1, dx, dy, dx^2, dx dy and dy^2:
// n of G dI/dN and m of G dI/dB. docs/xray.md has the formulas. gC holds the gradients by the vectors C, which
// determine N, and gB those by b0, b1 and b2.
SPLAT_GAUSSIAN void chain_view(const double* n, const double* m, const XrayBody& body, const XrayView& view,
                               const ShadowFrame& frame, int cone, double* by_W, double* by_mean) {
  const double unit = frame.inverse_B, depth = frame.depth;
  const double *b[3] = {frame.b0, frame.b1, frame.b2}, *steps[3] = {frame.direction, view.column, view.row};
  double c1[3], c2[3], gC[3][3], gB[3][3], g0[3], by_a[3];
  cross(frame.b1, frame.b0, c1);
  cross(frame.b2, frame.b0, c2);
  for (int k = 0; k < 3; ++k) {
    const double x = 2 * unit * depth * c1[k], y = 2 * unit * depth * c2[k];
    gC[0][k] = x * n[1] + y * n[2];
    gC[1][k] = x * n[3] + y * n[4];
    gC[2][k] = x * n[4] + y * n[5];
    const double u = 2 * unit * b[0][k], v = 2 * unit * b[1][k], w = 2 * unit * b[2][k];
    gB[0][k] = cone ? u * m[0] + v * m[1] + w * m[2] : u * m[0];
    gB[1][k] = cone ? u * m[1] + v * m[3] + w * m[4] : 0.0;
    gB[2][k] = cone ? u * m[2] + v * m[4] + w * m[5] : 0.0;
  }
  // The mean moves only a, and with it the lower terms of N.
  cross(b[0], gC[0], g0);
  if (cone) {
    // c_k = a x b_k with a = -depth b0. The parts of gC[0] that reach W through a and through b0 cancel.
    double t1[3], t2[3], from[3];
    cross(b[1], gC[1], t1);
    cross(b[2], gC[2], t2);
    for (int k = 0; k < 3; ++k) {
      by_a[k] = t1[k] + t2[k];
      g0[k] += by_a[k];
      from[k] = view.origin[k] - body.mean[k];
    }
    for (int j = 1; j < 3; ++j) {
      cross(gC[j], b[0], t1);
      for (int k = 0; k < 3; ++k) gB[j][k] -= depth * t1[k];
    }
    for (int c = 0; c < 3; ++c) {
      for (int k = 0; k < 3; ++k) by_W[c * 3 + k] += by_a[c] * from[k];
    }
  } else {
    // c_k = b_k x b0, with the steps in a and the direction in b0.
    double t[3];
    for (int j = 1; j < 3; ++j) {
      cross(b[0], gC[j], t);
      for (int k = 0; k < 3; ++k) gB[j][k] += t[k];
      cross(gC[j], b[j], t);
      for (int k = 0; k < 3; ++k) gB[0][k] += t[k];
    }
  }
  for (int c = 0; c < 3; ++c) {
    for (int k = 0; k < 3; ++k) {
      for (int j = 0; j < 3; ++j) by_W[c * 3 + k] += gB[j][c] * steps[j][k];
      by_mean[k] -= body.W[c * 3 + k] * g0[c];
    }
  }
}

// From W = diag(1/s) R': dL/ds_c = -(dL/dW_c . R_c) / s_c^2, dL/dR_c = dL/dW_c / s_c.
SPLAT_GAUSSIAN void chain_body(const XrayBody& body, const double* by_W, double* by_scale, double (&by_quat)[4]) {
  double dR[9];
  for (int c = 0; c < 3; ++c) {
    const double inverse = body.inverse_scale[c];
    double along = 0;
    for (int k = 0; k < 3; ++k) {
      along += by_W[c * 3 + k] * body.rotation[k * 3 + c];
      dR[k * 3 + c] = by_W[c * 3 + k] * inverse;
    }
    by_scale[c] = -along * inverse * inverse;
  }
  rotation_gradient(body.unit, dR, by_quat);
  for (int k = 0; k < 4; ++k) by_quat[k] = by_quat[k] / body.norm;
}

}  // namespace
