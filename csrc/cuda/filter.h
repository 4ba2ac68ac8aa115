// The window as a filter: along a row in shared memory, and along the marching axis in registers.
//
// Taps are symmetric. The problem holds them from the edge to the centre, and kernels read them as constants of the
// launch, which cost no more than immediates. So every sigma costs the same. The number of taps is a template argument.
// It never exceeds that of the window, because a zero tap would spread a pixel that is not finite to windows that do
// not contain it.
#pragma once
#include "device.h"

namespace {

// Tap t of a window of kTaps.
template <int kTaps>
SPLAT_DEVICE float tap(const SsimProblem& a, int t) {
  return a.taps[t <= kTaps / 2 ? t : kTaps - 1 - t];
}

// filter_step (device.h) is the transposed form of the filter along the marching axis. `state` holds the partial sums
// of the next kTaps - 1 outputs. Each new input is added to all of them and completes one:
//     out = taps[0]·v + state[0];  state[k] = taps[k + 1]·v + state[k + 1]
// So no input is kept, and no index depends on the step.

template <int kMaps, int kState>
SPLAT_DEVICE void clear(Real (&state)[kMaps][kState]) {
#pragma unroll
  for (int m = 0; m < kMaps; ++m) {
#pragma unroll
    for (int k = 0; k < kState; ++k) state[m][k] = 0.f;
  }
}

// sum += weight·v. The first tap starts the sum.
SPLAT_DEVICE void add_tap(Real& sum, Real v, float weight, bool first) {
  sum = first ? v * weight : multiply_add(weight, v, sum);
}

// Adds one column of a row to the four moments of kColumns adjacent outputs. `column` counts from the first tap of the
// first output.
template <int kTaps, int kColumns>
SPLAT_DEVICE void add_moments(const SsimProblem& a, Real (&h)[kColumns][4], int column, Real s, Real d) {
  const Real s2 = s * s, d2 = d * d;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const int t = column - j;
    if (t >= 0 && t < kTaps) {
      const float w = tap<kTaps>(a, t);
      add_tap(h[j][0], s, w, t == 0);
      add_tap(h[j][1], d, w, t == 0);
      add_tap(h[j][2], s2, w, t == 0);
      add_tap(h[j][3], d2, w, t == 0);
    }
  }
}

// Adds one column after the other. This takes the fewest registers, which the kernels for 11 taps need.
template <int kTaps, bool kOwn, int kColumns>
SPLAT_DEVICE Real moments_in_order(const SsimProblem& a, const Pair* row, Real (&h)[kColumns][4], Real shift_d) {
  static_assert(kColumns % 2 == 0, "two columns are read at once");
  Real own = 0.f;
#pragma unroll
  for (int c = 0; c < kColumns + kTaps - 1; c += 2) {
    const Quad v = load_shared(reinterpret_cast<const Quad*>(row + c));
    add_moments<kTaps>(a, h, c, v.x, v.y);
    add_moments<kTaps>(a, h, c + 1, v.z, v.w);
    if (kOwn && c >= kTaps / 2 && c < kTaps / 2 + kColumns) {
      own = c == kTaps / 2 ? absolute(v.y + shift_d) : own + absolute(v.y + shift_d);
    }
    if (kOwn && c + 1 >= kTaps / 2 && c + 1 < kTaps / 2 + kColumns) {
      own = c + 1 == kTaps / 2 ? absolute(v.w + shift_d) : own + absolute(v.w + shift_d);
    }
  }
  return own;
}

// Adds from both ends of the window to its centre. If sigma is small, the centre is nearly the whole sum, and every
// addition after it would be rounded like the whole sum. At a sigma of 0.35 this order makes the error of S a seventh
// smaller (root mean square), and the largest errors shrink more.
template <int kTaps, bool kOwn, int kColumns>
SPLAT_DEVICE Real moments_to_the_centre(const SsimProblem& a, const Pair* row, Real (&h)[kColumns][4], Real shift_d) {
  static_assert(kColumns == 1 || kColumns % 2 == 0, "two columns are read at once");
  constexpr int kLoaded = kColumns + kTaps - 1;
  Real s[kLoaded], d[kLoaded], s2[kLoaded], d2[kLoaded], own = 0.f;
#pragma unroll
  for (int c = 0; c < kLoaded; c += kColumns == 1 ? 1 : 2) {
    if (kColumns == 1) {
      const Pair v = load_shared(row + c);
      s[c] = v.x, d[c] = v.y;
    } else {
      const Quad v = load_shared(reinterpret_cast<const Quad*>(row + c));
      s[c] = v.x, d[c] = v.y, s[c + 1] = v.z, d[c + 1] = v.w;
    }
  }
#pragma unroll
  for (int c = 0; c < kLoaded; ++c) s2[c] = s[c] * s[c], d2[c] = d[c] * d[c];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      const int t = k % 2 ? kTaps - 1 - k / 2 : k / 2;
      const float w = tap<kTaps>(a, t);
      add_tap(h[j][0], s[j + t], w, k == 0);
      add_tap(h[j][1], d[j + t], w, k == 0);
      add_tap(h[j][2], s2[j + t], w, k == 0);
      add_tap(h[j][3], d2[j + t], w, k == 0);
    }
    if (kOwn) own = j == 0 ? absolute(d[kTaps / 2] + shift_d) : own + absolute(d[kTaps / 2 + j] + shift_d);
  }
  return own;
}

// Horizontal moments E[s], E[d], E[s²], E[d²] of kColumns adjacent outputs from a row of (s, d) in shared memory. With
// kOwn, returns Σ|d + shift_d| over the outputs' own columns.
template <int kTaps, bool kOwn = false, int kColumns>
SPLAT_DEVICE Real row_moments(const SsimProblem& a, const Pair* row, Real (&h)[kColumns][4], Real shift_d = 0.f) {
  if constexpr (kTaps == 11) return moments_in_order<kTaps, kOwn>(a, row, h, shift_d);
  return moments_to_the_centre<kTaps, kOwn>(a, row, h, shift_d);
}

// The same filter over a single map: sums[j] for kColumns adjacent outputs.
template <int kTaps, int kColumns>
SPLAT_DEVICE void row_filter(const SsimProblem& a, const Real* row, Real (&sums)[kColumns]) {
#pragma unroll
  for (int c = 0; c < kColumns + kTaps - 1; c += kColumns == 1 ? 1 : 2) {
    Pair v;
    if (kColumns == 1) {
      v.x = load_shared(row + c);
    } else {
      v = load_shared(reinterpret_cast<const Pair*>(row + c));
    }
#pragma unroll
    for (int e = 0; e < (kColumns == 1 ? 1 : 2); ++e) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int t = c + e - j;
        if (t >= 0 && t < kTaps) add_tap(sums[j], e ? v.y : v.x, tap<kTaps>(a, t), t == 0);
      }
    }
  }
}

// --- Windows that differ along the axes ------------------------------------------------------------------------------
//
// A kernel for kTaps runs every window that is no wider along any axis. In the plane, the window lies in the middle of
// the kTaps. A tap beyond its radius is skipped instead of taken as 0, which would spread pixels that are not finite.
// All threads skip the same taps. Sums run from the edge to the centre, see moments_to_the_centre.

enum PlaneAxis { kHeight = 0, kWidth = 1 };

// The radius along a plane's axis.
SPLAT_DEVICE int plane_radius(const SsimProblem& a, PlaneAxis axis) { return a.radius[axis + 1]; }

// Moments along the width, like row_moments.
template <int kTaps, int kColumns>
SPLAT_DEVICE void axis_row_moments(const SsimProblem& a, const Pair* row, Real (&h)[kColumns][4]) {
  static_assert(kColumns % 2 == 0, "two columns are read at once");
  constexpr int kRadius = kTaps / 2, kLoaded = kColumns + kTaps - 1;
  Real s[kLoaded], d[kLoaded];
#pragma unroll
  for (int c = 0; c < kLoaded; c += 2) {
    const Quad v = load_shared(reinterpret_cast<const Quad*>(row + c));
    s[c] = v.x, d[c] = v.y, s[c + 1] = v.z, d[c + 1] = v.w;
  }
#pragma unroll
  for (int j = 0; j < kColumns; ++j) h[j][0] = h[j][1] = h[j][2] = h[j][3] = 0.f;
  auto add = [&](Real(&sum)[4], int c, float w) {
    add_tap(sum[0], s[c], w, false);
    add_tap(sum[1], d[c], w, false);
    add_tap(sum[2], s[c] * s[c], w, false);
    add_tap(sum[3], d[c] * d[c], w, false);
  };
#pragma unroll
  for (int r = kRadius; r >= 0; --r) {
    if (r > plane_radius(a, kWidth)) continue;
    const float w = a.plane_taps[kWidth][r];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      add(h[j], j + kRadius - r, w);
      if (r > 0) add(h[j], j + kRadius + r, w);
    }
  }
}

// sums[j] = Σ_t w_t in[j + t] along an axis of the plane, over the taps that the axis has.
template <int kTaps, int kCount, int kLoaded>
SPLAT_DEVICE void axis_filter(const SsimProblem& a, PlaneAxis axis, const Real (&in)[kLoaded], Real (&sums)[kCount]) {
  constexpr int kRadius = kTaps / 2;
  static_assert(kLoaded >= kCount + kTaps - 1, "all taps of all outputs");
#pragma unroll
  for (int j = 0; j < kCount; ++j) sums[j] = 0.f;
#pragma unroll
  for (int r = kRadius; r >= 0; --r) {
    if (r > plane_radius(a, axis)) continue;
    const float w = a.plane_taps[axis][r];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      add_tap(sums[j], in[j + kRadius - r], w, false);
      if (r > 0) add_tap(sums[j], in[j + kRadius + r], w, false);
    }
  }
}

// Like filter_step, along the slices. The window's taps are the first of the kTaps, so that an output is complete as
// soon as the window's last slice is there.
template <int kState>
SPLAT_DEVICE Real axis_filter_step(const SsimProblem& a, Real (&state)[kState], Real v) {
  const int last = 2 * a.radius[0];
  const Real out = multiply_add(a.slice_taps[0], v, state[0]);
#pragma unroll
  for (int k = 0; k < kState; ++k) {
    const Real rest = k + 1 < kState ? state[k + 1 < kState ? k + 1 : k] : Real(0.f);
    state[k] = k < last ? multiply_add(a.slice_taps[k + 1], v, rest) : Real(0.f);
  }
  return out;
}

}  // namespace
