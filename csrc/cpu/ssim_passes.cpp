// The passes of a separable window down the columns and along the rows, and the computation of SSIM from the moments.
//
// With s = x + y, d = x - y, mu and V their windowed means and variances (Wang et al. 2004, eq. 13, rearranged):
//   A = mu_s² + mu_d² + 2 C1,  B = V_s + V_d + 2 C2,  u = 2 mu_d² / A,  v = 2 V_d / B,  1 - S = u + v - u v
// So four maps are averaged (s, d, s², d²), and the distance from 1 needs no difference of nearly equal numbers. The
// constants c_s and c_d are subtracted from s and d before anything is squared. This keeps V = E[s²] - E[s]² exact
// where the images stay near these constants.
//
// Where they do not and V is small, V is summed again about the window's own centre (`local_moments`). In a photograph
// or a scan this happens in the flat bright and dark parts. No constant of a tile would do there, since anything may
// lie next to a flat part. For this purpose the earlier passes make V as well: the V of an axis is summed about the
// middle rows, and the mean of the V of the previous axes is added to it.
#include <cstring>

#include "ssim_passes.h"

namespace {

// One axis of the window. The number of taps is a template argument if it matters for speed. Otherwise that is 0, and
// the number is a member.
template <int kTaps>
struct Window {
  Floats half[kTaps / 2 + 1];
  SPLAT_INLINE explicit Window(const Taps& taps) {
#pragma GCC unroll 32
    for (int k = 0; k <= kTaps / 2; ++k) half[k] = broadcast(taps.weight[k]);
  }
  SPLAT_INLINE Floats operator[](int k) const { return half[k <= kTaps / 2 ? k : kTaps - 1 - k]; }
  static constexpr int size() { return kTaps; }
};

template <>
struct Window<0> {
  const Taps& taps;
  SPLAT_INLINE explicit Window(const Taps& values) : taps(values) {}
  SPLAT_INLINE Floats operator[](int k) const { return broadcast(taps.weight[k]); }
  SPLAT_INLINE int size() const { return taps.count; }
};

// V may be computed as mean of squares minus square of mean up to this ratio of the latter to B = V_s + V_d + 2 C2.
constexpr float kCancellation = 8.0f;

SPLAT_INLINE Ints not_finite(Floats values) { return (Ints)(values - values != 0.0f); }

// Number of rows that share a centre, which lies in the middle of them. With more rows, the centre could lie at the
// edge of the outer windows, and a flat window beside a bright row would lose its V to rounding.
constexpr int kBlock = kRows / 2;

// The centre that is subtracted from a block of rows: the mean of two rows. If it is not finite, it is the finite one
// of the two, else 0. So a pixel that is not finite affects only the windows that contain it.
SPLAT_INLINE Floats centre_of(Floats above, Floats below) {
  const Floats centre = 0.5f * (above + below);
  const Ints unusable = not_finite(centre);
  if (!any(unusable)) return centre;
  const Floats other = select(not_finite(below), Floats{}, below);
  return select(unusable, select(not_finite(above), other, above), centre);
}

// sum_r += Σ_k w_k row_{k+r}[j] for r < kCount, and the same for the rows' squares.
template <int kTaps, int kCount, bool kSquares>
SPLAT_INLINE void add_row(Floats value, Floats squared, int t, const Window<kTaps>& w, Floats* mean, Floats* square) {
#pragma GCC unroll 8
  for (int r = 0; r < kCount; ++r)
    if (t - r >= 0 && t - r < w.size()) {
      mean[r] += w[t - r] * value;
      if (kSquares) square[r] += w[t - r] * squared;
    }
}

template <int kTaps>
void column_sums(const float* const* rows, const Taps& taps, int64_t count, float* __restrict__ out,
                 int64_t out_pitch) {
  const Window<kTaps> w(taps);
  for (int64_t j = 0; j < count; j += kLanes) {
    Floats mean[kRows] = {};
    const auto add = [&](int t) __attribute__((always_inline)) {
      add_row<kTaps, kRows, false>(load(rows[t] + j), Floats{}, t, w, mean, nullptr);
    };
    if constexpr (kTaps > 0) {
#pragma GCC unroll 64
      for (int t = 0; t < kTaps + kRows - 1; ++t) add(t);
    } else {
      for (int t = 0; t < w.size() + kRows - 1; ++t) add(t);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) store(out + r * out_pitch + j, mean[r]);
  }
}

// kBlock rows of the output, from row `first` on. Their centre is subtracted while they are summed. With `kNested`, the
// values of the rows have variances, which are added to the squares.
template <int kTaps, bool kNested>
void block_moments(const ColumnRows& rows, int first, const Taps& taps, int64_t count, ColumnMoments out) {
  const Window<kTaps> w(taps);
  const int middle = first + (w.size() + kBlock) / 2 - 1;
  const auto shown = [&](int64_t t) { return most(rows.shown_begin, least(t, rows.shown_end - 1)); };
  const float *above = rows.values[shown(middle)], *below = rows.values[shown(middle + 1)];
  const float* const* values = rows.values + first;
  const float* const* variances = kNested ? rows.variances + first : nullptr;
  for (int64_t j = 0; j < count; j += kLanes) {
    Floats mean[kBlock] = {}, square[kBlock] = {};
    const Floats centre = centre_of(load(above + j), load(below + j));
    const auto add = [&](int t) __attribute__((always_inline)) {
      const Floats value = load(values[t] + j) - centre;
      Floats squared = value * value;
      if constexpr (kNested) squared += load(variances[t] + j);
      add_row<kTaps, kBlock, true>(value, squared, t, w, mean, square);
    };
    if constexpr (kTaps > 0) {
#pragma GCC unroll 64
      for (int t = 0; t < kTaps + kBlock - 1; ++t) add(t);
    } else {
      for (int t = 0; t < w.size() + kBlock - 1; ++t) add(t);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kBlock; ++r) {
      const int64_t at = (first + r) * out.pitch + j;
      const Floats all = mean[r] + centre, variance = square[r] - mean[r] * mean[r];
      store(out.mean + at, all);
      store(out.variance + at, variance);
      if (out.square) store(out.square + at, variance + all * all);
    }
  }
}

template <int kTaps>
void column_moments(const ColumnRows& rows, const Taps& taps, int64_t count, ColumnMoments out) {
  for (int first = 0; first < kRows; first += kBlock)
    if (rows.variances) block_moments<kTaps, true>(rows, first, taps, count, out);
    else block_moments<kTaps, false>(rows, first, taps, count, out);
}

// The same for narrow windows, whose V may be a hundredth of the differences inside a block of rows. So each row of the
// output is computed about the middle of its own window.
template <bool kNested>
void narrow_moments(const ColumnRows& rows, const Taps& taps, int64_t count, ColumnMoments out) {
  const Window<0> w(taps);
  for (int64_t j = 0; j < count; j += kLanes)
    for (int r = 0; r < kRows; ++r) {
      const Floats centre = load(rows.values[r + taps.count / 2] + j);
      Floats mean = {}, square = {};
      for (int k = 0; k < taps.count; ++k) {
        const Floats value = load(rows.values[r + k] + j) - centre;
        Floats squared = value * value;
        if constexpr (kNested) squared += load(rows.variances[r + k] + j);
        mean += w[k] * value;
        square += w[k] * squared;
      }
      const Floats all = mean + centre, variance = square - mean * mean;
      const int64_t at = r * out.pitch + j;
      store(out.mean + at, all);
      store(out.variance + at, variance);
      if (out.square) store(out.square + at, variance + all * all);
    }
}

void narrow_column_moments(const ColumnRows& rows, const Taps& taps, int64_t count, ColumnMoments out) {
  if (rows.variances) narrow_moments<true>(rows, taps, count, out);
  else narrow_moments<false>(rows, taps, count, out);
}

#if defined(__AVX512F__)
// Unaligned loads of 64 bytes mostly touch two cache lines. Some taps are therefore shifted out of two adjacent
// vectors, as many as balance the load ports with the shuffle port.
constexpr int kShuffledTaps = 6;

// Tap kTap of a row.
template <int kStride, int kTap>
SPLAT_INLINE Floats row_tap(const float* p, const Floats* vectors) {
  constexpr int kOffset = kTap * kStride, kVector = kOffset / kLanes;
  if constexpr (kTap == 0 || kTap > kShuffledTaps) return load(p + kOffset);
  return (Floats)_mm512_maskz_alignr_epi32(0xffff, (__m512i)vectors[kVector + 1], (__m512i)vectors[kVector],
                                           kOffset % kLanes);
}

// The weighted sum over the taps [kTap, kTaps - kTap). Values with equal weights are added first. Some processors have
// separate ports for additions; on others this costs as much as it saves.
template <int kTaps, int kStride, int kTap>
SPLAT_INLINE Floats add_taps(const float* p, const Floats* vectors, const Window<kTaps>& w) {
  if constexpr (kTap == kTaps / 2) {
    return w[kTap] * row_tap<kStride, kTap>(p, vectors);
  } else {
    const Floats both = row_tap<kStride, kTap>(p, vectors) + row_tap<kStride, kTaps - 1 - kTap>(p, vectors);
    return add_taps<kTaps, kStride, kTap + 1>(p, vectors, w) + w[kTap] * both;
  }
}

template <int kTaps, int kStride>
SPLAT_INLINE Floats shuffled_row_sum(const float* p, const Window<kTaps>& w) {
  constexpr int kVectors = kShuffledTaps * kStride / kLanes + 2;
  Floats vectors[kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) vectors[i] = load(p + i * kLanes);
  return add_taps<kTaps, kStride, 0>(p, vectors, w);
}
#endif

// sum_m = Σ_k w_k maps[m * pitch + k * stride]: lanes of kMaps maps along a row.
template <int kTaps, int kStride, int kMaps>
SPLAT_INLINE void row_sums(const float* maps, int64_t pitch, int64_t stride, const Window<kTaps>& w, Floats* sum) {
#if defined(__AVX512F__)
  if constexpr (kTaps > 0 && kStride > 0) {
#pragma GCC unroll 4
    for (int m = 0; m < kMaps; ++m) sum[m] = shuffled_row_sum<kTaps, kStride>(maps + m * pitch, w);
    return;
  }
#endif
  if (kStride > 0) stride = kStride;
  const int middle = w.size() / 2;
#pragma GCC unroll 4
  for (int m = 0; m < kMaps; ++m) {
    const float* centre = maps + m * pitch + middle * stride;
    sum[m] = w[middle] * load(centre);
    // Values with equal weights are added first, see add_taps.
    const auto add = [&](int k) __attribute__((always_inline)) {
      sum[m] += w[middle - k] * (load(centre - k * stride) + load(centre + k * stride));
    };
    if constexpr (kTaps > 0) {
#pragma GCC unroll 16
      for (int k = 1; k <= kTaps / 2; ++k) add(k);
    } else {
      for (int k = 1; k <= middle; ++k) add(k);
    }
  }
}

// c_s, c_d and centre_d of kLanes columns.
struct LaneConstants {
  Floats sum, difference, centre_d;

  SPLAT_INLINE explicit LaneConstants(const ColumnConstants& columns)
      : sum(2.0f * load(columns.each)), difference(load(columns.difference)), centre_d(load(columns.centre_d)) {}
};

// The constants of the columns from j on. In planar images one vector serves all columns: `first`, loaded before the
// loop.
template <int kStride>
SPLAT_INLINE LaneConstants lane_constants(const ColumnConstants& columns, int64_t j, const LaneConstants& first) {
  return kStride == 1 ? first : LaneConstants(columns.from(j));
}

// The means of s - c_s and d - c_d, and their variances.
struct Moments {
  Floats s, d, var_s, var_d;
};

// 1 - S, S and CS themselves, and their derivatives by the moments, combined for the gradients by x and y:
//   dL/dx = w * mean_1 + s (w * square_s) + d (w * square_d),  dL/dy = w * mean_2 + s (w * square_s) - d (w * square_d)
// where s is shifted and centre_d is subtracted from d. With one gradient, mean_1 and square_d carry its sign.
//
// S and CS are not computed as 1 - (1 - S) and 1 - (1 - CS), because MS-SSIM divides by their means, which may be
// nearly 0.
struct Point {
  Floats dssim, ssim, contrast, mean_1, mean_2, square_s, square_d;
};

template <int kPartials>
SPLAT_INLINE Point evaluate(const Moments& m, const PointConstants& c, const LaneConstants& lanes) {
  Point p;
  const Floats mu_s = m.s + lanes.sum, mu_d = m.d + lanes.difference;
  const Floats dd = mu_d * mu_d;
  const Floats a = mu_s * mu_s + (dd + c.c1_twice), b = m.var_s + (m.var_d + c.c2_twice);
  const Floats r = reciprocal(a * b);
  const Floats over_a = b * r, over_b = a * r;
  const Floats u = 2.0f * dd * over_a, v = 2.0f * m.var_d * over_b;
  p.dssim = v + (u - u * v);
  p.contrast = (m.var_s - m.var_d + c.c2_twice) * over_b;
  p.ssim = p.contrast * ((mu_s * mu_s - dd + c.c1_twice) * over_a);
  // With `eps` in the denominator S becomes q S, q = ab / (ab + eps), and dq = q (1 - q) (da / a + db / b).
  Floats slope = broadcast(c.a), lost = {};
  if (c.eps > 0) {
    const Floats product = a * b, over_all = 1.0f / (product + c.eps), missing = c.eps * over_all;
    const Floats kept =
        product * over_all;  // not 1 - missing, because kept is nearly 0 if eps dominates the denominator
    slope = c.a * kept;
    lost = slope * ((1.0f - p.dssim) * missing);
    p.dssim = missing + kept * p.dssim;
  }
  if constexpr (kPartials > 0) {
    const Floats by_b = (slope - slope * u) + c.b;
    const Floats by_a = (slope - slope * v);
    const Floats by_dd = 2.0f * over_b * (by_b * (2.0f - v) - lost), by_ss = -2.0f * over_b * (by_b * v + lost);
    const Floats by_d = 2.0f * over_a * mu_d * (by_a * (2.0f - u) - lost) - (m.d - lanes.centre_d) * by_dd;
    const Floats by_s = -2.0f * over_a * mu_s * (by_a * u + lost) - m.s * by_ss;
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

// The mean and variance along a row, from the means and variances of its columns, summed about the window's middle
// column.
template <int kTaps, int kStride>
SPLAT_INLINE void local_moments(const float* means, const float* variances, int64_t stride, const Window<kTaps>& w,
                                Floats& mean, Floats& variance) {
  if (kStride > 0) stride = kStride;
  const int middle = w.size() / 2;
  const Floats centre = load(means + middle * stride);
  Floats sum = {}, squares;
  row_sums<kTaps, kStride, 1>(variances, 0, stride, w, &squares);
#pragma GCC unroll 16
  for (int k = 0; k < middle; ++k) {
    const Floats left = load(means + k * stride) - centre, right = load(means + (2 * middle - k) * stride) - centre;
    sum += w[k] * (left + right);
    squares += w[k] * (left * left + right * right);
  }
  mean = centre + sum;
  variance = squares - sum * sum;
}

// Replaces mean and variance where squares of means exceed `enough`. It is a separate function, so that the loop, which
// seldom calls it, keeps all registers.
template <int kTaps, int kStride>
__attribute__((noinline)) void replace_cancelled(const float* sums, int64_t pitch, int64_t stride, const Taps& taps,
                                                 const Floats* enough, Floats* mean, Floats* variance) {
  const Window<kTaps> w(taps);
  for (int m = 0; m < 2; ++m) {
    const Ints cancels = (Ints)(mean[m] * mean[m] > *enough);
    if (!any(cancels)) continue;
    Floats local_mean, local_variance;
    local_moments<kTaps, kStride>(sums + m * pitch, sums + (4 + m) * pitch, stride, w, local_mean, local_variance);
    mean[m] = select(cancels, local_mean, mean[m]);
    variance[m] = select(cancels, local_variance, variance[m]);
  }
}

// The moments of some lanes of a row, with variances exact to about 10⁻⁶ of B. Whether a lane is summed again depends
// on that lane only, so a result depends neither on its neighbours nor on where a tile begins. In narrow windows all
// lanes are summed about the window's middle.
template <int kTaps, int kStride, bool kNarrow>
SPLAT_INLINE Moments row_moments(const float* sums, int64_t pitch, int64_t stride, const Window<kTaps>& w,
                                 const Taps& taps, float c2_twice) {
  if constexpr (kNarrow) {
    Moments m;
    local_moments<kTaps, kStride>(sums, sums + 4 * pitch, stride, w, m.s, m.var_s);
    local_moments<kTaps, kStride>(sums + pitch, sums + 5 * pitch, stride, w, m.d, m.var_d);
    return m;
  }
  Floats mean[4];
  row_sums<kTaps, kStride, 4>(sums, pitch, stride, w, mean);
  const Floats squared_s = mean[0] * mean[0], squared_d = mean[1] * mean[1];
  const Moments moments = {mean[0], mean[1], mean[2] - squared_s, mean[3] - squared_d};
  const Floats enough = kCancellation * (moments.var_s + moments.var_d + c2_twice);
  if (!any((Ints)(squared_s > enough) | (Ints)(squared_d > enough))) return moments;
  Floats means[2] = {moments.s, moments.d}, found[2] = {moments.var_s, moments.var_d};
  replace_cancelled<kTaps, kStride>(sums, pitch, stride, taps, &enough, means, found);
  return {means[0], means[1], found[0], found[1]};
}

// There are two loops, each short enough for the processor to overlap its iterations. The first one replaces the row's
// sums.
template <int kTaps, int kStride, bool kNarrow, int kPartials>
void point_row(const PointRow& work, const Taps& taps, const PointConstants& values) {
  const PointRow row = work;  // so that what is stored cannot change them
  const PointConstants constants = values;
  const Window<kTaps> w(taps);
  const int64_t from = row.sums_pitch, to = row.partials_pitch;
  for (int64_t j = 0; j < row.count; j += kLanes) {
    if (row.next1) {
      __builtin_prefetch(row.next1 + j * row.bytes1, 0, 2);
      __builtin_prefetch(row.next2 + j * row.bytes2, 0, 2);
    }
    const Moments m = row_moments<kTaps, kStride, kNarrow>(row.sums + j, from, row.stride, w, taps, constants.c2_twice);
    store(row.sums + j, m.s);
    store(row.sums + from + j, m.d);
    store(row.sums + 2 * from + j, m.var_s);
    store(row.sums + 3 * from + j, m.var_d);
  }
  const LaneConstants first(row.columns);
  for (int64_t j = 0; j < row.count; j += kLanes) {
    const float* sums = row.sums + j;
    const Point p = evaluate<kPartials>({load(sums), load(sums + from), load(sums + 2 * from), load(sums + 3 * from)},
                                        constants, lane_constants<kStride>(row.columns, j, first));
    store(row.dssim + j, p.dssim);
    if (row.ssim) {
      store(row.ssim + j, p.ssim);
      store(row.contrast + j, p.contrast);
    }
    if constexpr (kPartials > 0) {
      store(row.partials + j, p.mean_1);
      store(row.partials + to + j, p.square_s);
      store(row.partials + 2 * to + j, p.square_d);
      if constexpr (kPartials == 4) store(row.partials + 3 * to + j, p.mean_2);
    }
  }
}

template <int kTaps, int kStride, int kPartials>
SPLAT_INLINE void gradient_lanes(const GradientRow& row, const Window<kTaps>& w, int64_t j, Floats slope,
                                 const LaneConstants& first, Floats* out) {
  Floats mean[kPartials];
  row_sums<kTaps, kStride, kPartials>(row.sums + j, row.sums_pitch, row.stride, w, mean);
  const LaneConstants lanes = lane_constants<kStride>(row.columns, j, first);
  const Floats d = load(row.d + j), from_s = load(row.s + j) * mean[1];
  const Floats from_d = (d - lanes.centre_d) * mean[2], difference = d + lanes.difference;
  const Ints unequal = (Ints)(difference != 0.0f);
  const Ints sign = bits_as<Ints>(difference) & (Ints{} + INT32_MIN);
  const Floats from_l1 = bits_as<Floats>((bits_as<Ints>(slope) ^ sign) & unequal);
  out[0] = mean[0] + from_s + from_d + from_l1;
  if constexpr (kPartials == 4) out[1] = mean[3] + from_s - from_d - from_l1;
}

template <int kTaps, int kStride, int kPartials>
void gradient_row(const GradientRow& row, const Taps& taps) {
  constexpr bool kBoth = kPartials == 4;
  const Window<kTaps> w(taps);
  const LaneConstants first(row.columns);
  const float* weights = row.weights;
  Floats result[2];
  int64_t j = 0;
  for (; j + kLanes <= row.count; j += kLanes) {
    const Floats slope = weights ? row.slope * load(weights + j) : broadcast(row.slope);
    __builtin_prefetch(row.out1 + j + row.ahead1, 1, 2);
    gradient_lanes<kTaps, kStride, kPartials>(row, w, j, slope, first, result);
    store(row.out1 + j, result[0]);
    if constexpr (kBoth) store(row.out2 + j, result[1]);
  }
  if (j == row.count) return;
  float last[kLanes] = {};
  const size_t rest = size_t(row.count - j) * sizeof(float);
  if (weights) std::memcpy(last, weights + j, rest);
  const Floats slope = weights ? row.slope * load(last) : broadcast(row.slope);
  gradient_lanes<kTaps, kStride, kPartials>(row, w, j, slope, first, result);
  std::memcpy(row.out1 + j, &result[0], rest);
  if constexpr (kBoth) std::memcpy(row.out2 + j, &result[1], rest);
}

template <int kTaps, int kStride, bool kNarrow>
Passes passes_for(int partials) {
  Passes passes = {column_sums<kTaps>, kNarrow ? narrow_column_moments : column_moments<kTaps>,
                   point_row<kTaps, kStride, kNarrow, 0>, nullptr};
  if (partials == 3) {
    passes.point_row = point_row<kTaps, kStride, kNarrow, 3>;
    passes.gradient_row = gradient_row<kTaps, kStride, 3>;
  } else if (partials == 4) {
    passes.point_row = point_row<kTaps, kStride, kNarrow, 4>;
    passes.gradient_row = gradient_row<kTaps, kStride, 4>;
  }
  return passes;
}

}  // namespace

// 11 taps, and one or three channels in a row, have compiled instances. Windows of 3 taps or sigma below 0.95 are
// narrow.
extern "C" Passes SPLAT_KERNEL(ssim_passes)(const Taps& taps, int64_t stride, int partials) {
  if (taps.count == 3 || taps.weight[taps.count / 2] > 0.42f) return passes_for<0, 0, true>(partials);
  if (taps.count != 11) return passes_for<0, 0, false>(partials);
  if (stride == 1) return passes_for<11, 1, false>(partials);
  if (stride == 3) return passes_for<11, 3, false>(partials);
  return passes_for<11, 0, false>(partials);
}
