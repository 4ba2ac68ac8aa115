// The two passes of a separable window: down the rows of a buffer, and along one row.
#pragma once
#include "ssim.h"

namespace {

// Rows that a pass down the columns yields at once: their sums stay in registers while the input rows go by.
constexpr int kRows = 8;

// out_r[j] = Σ_k w_k f(row_{k+r}[j]) for kRows rows r, f the identity or the square; `rows` are kRows + taps - 1.
template <int kTaps, bool kSquare>
SPLAT_INLINE void column_sums(const float* const* rows, const Window<kTaps>& w, int64_t count, float* out,
                              int64_t out_pitch) {
  for (int64_t j = 0; j < count; j += kLanes) {
    Floats sum[kRows] = {};
    if constexpr (kTaps > 0) {
#pragma GCC unroll 64
      for (int t = 0; t < kTaps + kRows - 1; ++t) {
        Floats value = load(rows[t] + j);
        if (kSquare) value *= value;
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
          if (t - r >= 0 && t - r < kTaps) sum[r] += w[t - r] * value;
      }
    } else {
      const int taps = w.size();
      for (int t = 0; t < taps + kRows - 1; ++t) {
        Floats value = load(rows[t] + j);
        if (kSquare) value *= value;
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
          if (t - r >= 0 && t - r < taps) sum[r] += w[t - r] * value;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) store(out + r * out_pitch + j, sum[r]);
  }
}

// The mean and the square of one map in one go, where there are registers enough.
template <int kTaps>
SPLAT_INLINE void column_moments(const float* const* rows, const Window<kTaps>& w, int64_t count, float* mean,
                                 float* square, int64_t out_pitch) {
  column_sums<kTaps, false>(rows, w, count, mean, out_pitch);
  column_sums<kTaps, true>(rows, w, count, square, out_pitch);
}

// sum_m = Σ_k w_k maps[m * pitch + k * stride]: lanes of kMaps maps along a row.
template <int kTaps, int kMaps>
SPLAT_INLINE void row_sums(const float* maps, int64_t pitch, int64_t stride, const Window<kTaps>& w, Floats* sum) {
#pragma GCC unroll 4
  for (int m = 0; m < kMaps; ++m) sum[m] = Floats{};
  if constexpr (kTaps > 0) {
#pragma GCC unroll 32
    for (int k = 0; k < kTaps; ++k)
#pragma GCC unroll 4
      for (int m = 0; m < kMaps; ++m) sum[m] += w[k] * load(maps + m * pitch + k * stride);
  } else {
    for (int k = 0; k < w.size(); ++k)
#pragma GCC unroll 4
      for (int m = 0; m < kMaps; ++m) sum[m] += w[k] * load(maps + m * pitch + k * stride);
  }
}

}  // namespace
