// SSIM of one voxel from its four moments, and its derivatives with respect to them.
//
// With s = x + y and d = x - y, their windowed means mu_s, mu_d and variances V_s, V_d:
//     A = (mu_s² + mu_d²)/2 + C1,  B = (V_s + V_d)/2 + C2,  a = mu_d²/A,  b = V_d/B
//     1 - S = a + b - ab,  1 - CS = b
// No difference of nearly equal numbers is formed, and S never exceeds 1.
// (Wang et al., IEEE TIP 13(4), 2004, eq. 13; the algebra is in docs/design.md.)
#pragma once
#include "shift.h"

namespace {

struct Similarity {
  Real dssim, dcs;  // 1 - S, 1 - CS
  Real a, inverse_a, inverse_b, mu_s, mu_d, variance_s, variance_d;
};

// From E[s], E[d], E[s²], E[d²], where the shifts are subtracted from s and d.
SPLAT_DEVICE Similarity similarity(const SsimProblem& a, const Real (&moment)[4], const Shift& shift) {
  Similarity r;
  const Real s = moment[0], d = moment[1];
  r.mu_s = s + shift.s;
  r.mu_d = d + shift.d;
  const Real d2 = r.mu_d * r.mu_d;
  const Real A = multiply_add(0.5f, multiply_add(r.mu_s, r.mu_s, d2), a.c1);
  r.variance_s = multiply_add(-s, s, moment[2]);
  r.variance_d = multiply_add(-d, d, moment[3]);
  const Real B = multiply_add(0.5f, r.variance_s + r.variance_d, a.c2);
  r.inverse_a = reciprocal(A);
  r.inverse_b = reciprocal(B);
  r.a = d2 * r.inverse_a;
  r.dcs = r.variance_d * r.inverse_b;
  r.dssim = multiply_add(-r.a, r.dcs, r.a + r.dcs);
  return r;
}

// CS itself, and S without eps. They are not computed as 1 - r.dcs and 1 - r.dssim, because MS-SSIM divides by their
// means, which may be nearly 0.
SPLAT_DEVICE Real contrast_structure(const SsimProblem& a, const Similarity& r) {
  return multiply_add(0.5f, r.variance_s - r.variance_d, a.c2) * r.inverse_b;
}
SPLAT_DEVICE Real similarity_itself(const SsimProblem& a, const Similarity& r) {
  const Real twice = (r.mu_s - r.mu_d) * (r.mu_s + r.mu_d);
  return contrast_structure(a, r) * (multiply_add(0.5f, twice, a.c1) * r.inverse_a);
}

// The effect of eps in the denominator: S becomes q·S with q = AB / (AB + eps).
struct Damping {
  Real kept = 1.f, missing = 0.f;  // q and 1 - q

  SPLAT_DEVICE void set(const SsimProblem& a, const Similarity& r) {
    const Real ratio = a.eps * r.inverse_a * r.inverse_b;
    const Real finite = ratio <= 1e30f ? ratio : Real(1e30f);
    kept = reciprocal(1.f + finite);
    missing = finite * kept;
  }
};

// Derivatives of v·(1 - S) with respect to the four moments. With kOneImage, by[0] is the sum of the derivatives with
// respect to E[s] and E[d], which is all that the gradient of the first image needs; by[1] is unused.
//     by E[s²]: -b·t/2,  by E[d²]: (1 - b/2)·t,  t = v(1 - a)/B
//     by E[s]: -q·a·mu_s - 2·E[s]·(by E[s²]),  by E[d]: q·(2 - a)·mu_d - 2·E[d]·(by E[d²]),  q = v(1 - b)/A
template <bool kOneImage>
SPLAT_DEVICE void derivatives(const Similarity& r, const Real (&moment)[4], Real t, Real q, Real (&by)[4]) {
  const Real s = moment[0], d = moment[1], h = -0.5f * r.dcs;
  by[2] = t * h;
  by[3] = multiply_add(t, h, t);
  if (kOneImage) {
    const Real u = multiply_add(2.f, r.mu_d, -r.a * (r.mu_d + r.mu_s));
    by[0] = multiply_add(q, u, -2.f * multiply_add(d, by[3], s * by[2]));
  } else {
    by[0] = multiply_add(q, -r.a * r.mu_s, -2.f * (s * by[2]));
    by[1] = multiply_add(q, multiply_add(2.f, r.mu_d, -r.a * r.mu_d), -2.f * (d * by[3]));
  }
}

// The derivatives of 1 - S: those above for v = 1.
template <bool kOneImage>
SPLAT_DEVICE void dssim_derivatives(const Similarity& r, const Real (&moment)[4], Real (&by)[4]) {
  derivatives<kOneImage>(r, moment, multiply_add(-r.a, r.inverse_b, r.inverse_b),
                         multiply_add(-r.dcs, r.inverse_a, r.inverse_a), by);
}

// Turns the derivatives of v·q·(1 - S) with a constant q into those of v·(1 - qS). `lost` is v·q·(1 - q)·S.
//     d(1 - qS) = q·d(1 - S) - q(1 - q)·S·(dA/A + dB/B)
SPLAT_DEVICE void add_damping(const Similarity& r, const Real (&moment)[4], Real lost, Real (&by)[4]) {
  const Real by_a = lost * r.inverse_a, by_b = 0.5f * (lost * r.inverse_b);
  by[0] = by[0] - multiply_add(by_a, r.mu_s, -2.f * (moment[0] * by_b));
  by[1] = by[1] - multiply_add(by_a, r.mu_d, -2.f * (moment[1] * by_b));
  by[2] = by[2] - by_b;
  by[3] = by[3] - by_b;
}

}  // namespace
