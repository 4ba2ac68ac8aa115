// The loss of images (a mean, or weighted by maps) and its gradient with respect to the first image, in one kernel. The
// two halves of its warps have different roles.
//
// A block of 256 threads owns a strip of 246 columns (all numbers here are for 11 taps) and walks down `segment` rows.
// Threads 0-127 filter the loaded rows and form the loss and the adjoint maps. Threads 128-255 load the next rows and
// filter the adjoint maps of the previous row into the gradient. All threads meet at one barrier a row. Shared memory
// holds a ring of 13 rows of (s, d), since the gradient of a row needs its s and d eleven rows later, and two rows of
// three adjoint maps: together 33,808 bytes, to which the block's sums add a little.
//
// Images of 247 to 256 columns are one strip, which has its own kernel (kLone). There the block filters only columns of
// the image, since outside it the adjoint maps are zero. It stores and loads fewer values at once, because the columns
// of those maps are not aligned.
//
// Step r of the walk loads row r, completes the moments of row r - 5, and completes the gradient of row r - 11.
//
// Bytes an element, float32: the kernel reads 8, and 4 for each weight, and writes 4. Nothing else is kept.
#pragma once
#include "ssim2d.h"

namespace {

constexpr int kFusedThreads = 256, kFusedColumns = 2, kFusedWidth = kThreads2d * kFusedColumns;

// The sizes that depend on the window and on kLone: whether the strip is the whole width of the image.
template <int kTaps, bool kLone>
struct Fused {
  static constexpr int kHalo = kTaps - 1, kRadius = kTaps / 2;
  static constexpr int kRow = kFusedWidth + kHalo;                            // columns that are loaded
  static constexpr int kOutputs = kLone ? kFusedWidth : kFusedWidth - kHalo;  // columns that are made
  static constexpr int kRing = kTaps + 2;                                     // rows
  // Columns of the adjoint maps to the left of the strip's first output: the ones that threads form, and the zeros.
  static constexpr int kFormed = kLone ? 0 : kRadius, kZeros = kRadius - kFormed;
  static constexpr int kAdjointRow = kFusedWidth + (kLone ? 2 * kRadius + 2 : 0);  // a multiple of 16 bytes
};

// Whether voxels have weights: for 1 - S (SsimProblem::weight) and for |x - y| (l1_weight). Most kernels for 11 taps
// know at compile time. The one for RGBA and those for narrower windows look at run time (kMaybeWeights), and either
// weight may then be missing.
enum Weights { kNoWeights, kGivenWeights, kMaybeWeights };

// Reads columns x and x + 1 of a float32 weight while walking down its rows. The launcher checks that the steps fit an
// int.
struct WeightCursor {
  const float* here;
  int row, column;  // steps

  SPLAT_DEVICE WeightCursor(const SsimTensor& weight, const Block2d& b, int y, int x)
      : here(static_cast<const float*>(weight.data) + plane_offset(weight, b.batch, b.channel) + y * weight.stride[3] +
             x * weight.stride[4]),
        row(static_cast<int>(weight.stride[3])), column(static_cast<int>(weight.stride[4])) {}
  // Returns 0 if the voxel is not `wanted`, and 1 if no weight is given.
  SPLAT_DEVICE Real read(int j, bool wanted, bool given = true) const {
    if (!given) return wanted ? 1.f : 0.f;
    return wanted ? load_global(here + j * column) : Real(0.f);
  }
  SPLAT_DEVICE void advance() { ::advance(here, row); }
};

// The role of the first half of the block: moments, loss, adjoint maps. Returns this thread's sum of 1 - S.
template <int kTaps, Weights kWeights, bool kLone>
SPLAT_DEVICE Real fused_forward_role(const SsimProblem& a, const Block2d& b, int y1, const Shift& shift,
                                     const Pair* ring, Real* adjoint) {
  using F = Fused<kTaps, kLone>;
  const int first = kFusedColumns * thread_index();
  Real state[kFusedColumns][4][F::kHalo], scale[kFusedColumns], owned[kFusedColumns], sum = 0.f;
  bool in_map[kFusedColumns];
#pragma unroll
  for (int j = 0; j < kFusedColumns; ++j) {
    const int x = b.x0 - F::kFormed + first + j;
    in_map[j] = static_cast<unsigned>(x - a.lead[2]) < static_cast<unsigned>(a.map_size[2]);
    scale[j] = in_map[j] ? a.dssim_scale : 0.f;
    owned[j] = in_map[j] && x >= b.x0 && x < b.x0 + F::kOutputs ? 1.f : 0.f;
    clear(state[j]);
  }
  WeightCursor weight(a.weight, b, b.y0 - F::kHalo - F::kRadius - a.lead[1], b.x0 - F::kFormed + first - a.lead[2]);
  const Pair *row = ring + first, *const end = row + F::kRing * F::kRow;
  Real *const place = adjoint + F::kZeros + first, *const place_end = place + 3 * F::kAdjointRow;
  Real* here = place;
#pragma unroll 1
  for (int r = b.y0 - F::kHalo; r < y1 + F::kRadius + 1 + F::kRadius; ++r) {
    const int y = r - F::kRadius;
    const bool map_row = static_cast<unsigned>(y - a.lead[1]) < static_cast<unsigned>(a.map_size[1]);
    Real share[kFusedColumns];
    if (kWeights != kNoWeights) {
      const bool given = kWeights == kGivenWeights || a.weight.data;
#pragma unroll
      for (int j = 0; j < kFusedColumns; ++j) share[j] = weight.read(j, map_row && in_map[j], given);
      weight.advance();
    }
    barrier_of_roles(kFusedThreads);
    Real h[kFusedColumns][4], by[kFusedColumns][4];
    row_moments<kTaps>(a, row, h);
    const Real row_in_map = map_row ? 1.f : 0.f;
    const Real row_owned = y >= b.y0 && y < y1 ? row_in_map : Real(0.f);
#pragma unroll
    for (int j = 0; j < kFusedColumns; ++j) {
      Real moment[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) moment[m] = filter_step(state[j][m], h[j][m], a.taps);
      const Similarity similar = similarity(a, moment, shift);
      dssim_derivatives<true>(similar, moment, by[j]);
      const Real counted = owned[j] * row_owned;
      sum = multiply_add(kWeights != kNoWeights ? counted * share[j] : counted, similar.dssim, sum);
      const Real v = scale[j] * (kWeights != kNoWeights ? share[j] : row_in_map);
      by[j][0] = by[j][0] * v;
      by[j][2] = by[j][2] * v;
      by[j][3] = by[j][3] * v;
    }
#pragma unroll
    for (int m = 0; m < 3; ++m) {
      Real* const map = here + m * F::kAdjointRow;
      const int moment = m == 0 ? 0 : m + 1;
      if (F::kZeros % 2 == 0) {
        store_shared(reinterpret_cast<Pair*>(map), Pair{by[0][moment], by[1][moment]});
      } else {
        store_shared(map, by[0][moment]);
        store_shared(map + 1, by[1][moment]);
      }
    }
    here = here == place ? place_end : place;
    row += F::kRow;
    if (row == end) row = ring + first;
  }
  return sum;
}

// The cursor of the second image.
template <class Target, bool kPlain>
SPLAT_DEVICE Target target(const SsimProblem& a, const Block2d& b, const Cursor<kPlain>& cursor) {
  if constexpr (Target::kComposites) {
    return Target(cursor, Over(a, b.batch, b.channel));
  } else {
    return cursor;
  }
}

// Loads both images row by row into the ring: the columns of one thread of the second half, fetched one row ahead.
template <int kTaps, bool kPlain, bool kLone, class Target>
struct FusedRows {
  using F = Fused<kTaps, kLone>;
  Cursor<kPlain> x;
  Target y;
  Real next_x[kFusedColumns + 1], next_y[kFusedColumns + 1];
  bool loads[kFusedColumns + 1];

  // Begins at row `first_row`. t is the thread's number in its half of the block.
  SPLAT_DEVICE FusedRows(const SsimProblem& a, const Block2d& b, int t, int first_row)
      : x(start(a.image[0], b, first_column(b) + t, first_row)),
        y(target<Target>(a, b, start(a.image[1], b, first_column(b) + t, first_row))) {
    const int load_x = first_column(b) + t;
#pragma unroll
    for (int k = 0; k <= kFusedColumns; ++k) {
      loads[k] = static_cast<unsigned>(load_x + k * kThreads2d) < static_cast<unsigned>(a.size[4]) &&
                 (k < kFusedColumns || t < F::kHalo);
    }
  }
  static SPLAT_DEVICE int first_column(const Block2d& b) { return b.x0 - F::kFormed - F::kRadius; }
  static SPLAT_DEVICE Cursor<kPlain> start(const SsimTensor& image, const Block2d& b, int load_x, int row) {
    const Int64 at = plane_offset(image, b.batch, b.channel) + row * image.stride[3];
    return Cursor<kPlain>(image, at + load_x * image.stride[4], image.stride[3]);
  }

  SPLAT_DEVICE void fetch(const SsimProblem& a, int row) {
#pragma unroll
    for (int k = 0; k <= kFusedColumns; ++k) next_x[k] = next_y[k] = 0.f;
    if (static_cast<unsigned>(row) < static_cast<unsigned>(a.size[3])) {
      x.read(a.image[0], kThreads2d, loads, next_x);
      y.read(a.image[1], kThreads2d, loads, next_y);
    }
    x.advance();
    y.advance();
  }

  // `row` is the thread's first place in a row of the ring.
  SPLAT_DEVICE void put(Pair* row, int t, const Shift& shift) const {
#pragma unroll
    for (int k = 0; k <= kFusedColumns; ++k) {
      if (k < kFusedColumns || t < F::kHalo) {
        store_shared(row + k * kThreads2d, shifted(next_x[k], next_y[k], shift));
      }
    }
  }
};

// A thread's columns of the gradient, written row by row.
template <bool kPlain>
struct FusedGradient {
  Int64 at;
  float* plain_out;
  bool pairs;  // two columns may be written at once
  bool stores[kFusedColumns];

  SPLAT_DEVICE FusedGradient(const SsimProblem& a, const Block2d& b, int first, bool active) {
    const SsimTensor& grad = a.grad[0];
#pragma unroll
    for (int j = 0; j < kFusedColumns; ++j) stores[j] = active && b.x0 + first + j < a.size[4];
    at = plane_offset(grad, b.batch, b.channel) + b.y0 * grad.stride[3] + (b.x0 + first) * grad.stride[4];
    plain_out = static_cast<float*>(grad.data) + at;
    pairs = kPlain && ((a.size[4] | grad.stride[3]) & 1) == 0 && (reinterpret_cast<Int64>(plain_out) & 7) == 0;
  }

  SPLAT_DEVICE void write(const SsimTensor& grad, const Real (&gradient)[kFusedColumns]) {
    if (kPlain) {
      if (pairs) {
        if (stores[0]) store_global_pair(plain_out, gradient[0], gradient[1]);
      } else {
#pragma unroll
        for (int j = 0; j < kFusedColumns; ++j) {
          if (stores[j]) store_global(plain_out + j, gradient[j]);
        }
      }
      plain_out += grad.stride[3];
    } else {
#pragma unroll
      for (int j = 0; j < kFusedColumns; ++j) {
        if (stores[j]) store_element(grad, at + j * grad.stride[4], gradient[j]);
      }
      at += grad.stride[3];
    }
  }
};

// Two consecutive pairs in shared memory, loaded at once if they are aligned.
template <bool kAligned>
SPLAT_DEVICE Quad two_pairs(const Pair* p) {
  if (kAligned) return load_shared(reinterpret_cast<const Quad*>(p));
  const Pair first = load_shared(p), second = load_shared(p + 1);
  return {first.x, first.y, second.x, second.y};
}

// The gradient of two columns from their (s, d) and the filtered adjoint maps f; adds |d| to l1.
template <Weights kWeights>
SPLAT_DEVICE void combine(const SsimProblem& a, const Shift& shift, const Quad& own, const Real (&f)[kFusedColumns][3],
                          const Real (&share)[kFusedColumns], const bool (&stores)[kFusedColumns],
                          Real (&gradient)[kFusedColumns], Real& l1) {
  const Real s[kFusedColumns] = {own.x, own.z}, d[kFusedColumns] = {own.y, own.w};
#pragma unroll
  for (int j = 0; j < kFusedColumns; ++j) {
    const Real ssim = multiply_add(2.f, multiply_add(d[j], f[j][2], s[j] * f[j][1]), f[j][0]);
    const Real difference = d[j] + shift.d;
    if (kWeights != kNoWeights) {
      gradient[j] = ssim + times_sign(share[j] * a.l1_scale, difference);
      l1 = multiply_add(share[j], absolute(difference), l1);
    } else {
      gradient[j] = ssim + times_sign(a.l1_scale, difference);
      if (stores[j]) l1 = l1 + absolute(difference);
    }
  }
}

// The role of the second half of the block: loads the next rows, filters the adjoint maps, writes the gradient. Returns
// this thread's sum of |d|.
template <int kTaps, bool kPlain, Weights kWeights, bool kLone, class Target>
SPLAT_DEVICE Real fused_backward_role(const SsimProblem& a, const Block2d& b, int y1, const Shift& shift, Pair* ring,
                                      const Real* adjoint) {
  using F = Fused<kTaps, kLone>;
  const int t = thread_index() - kThreads2d, first = kFusedColumns * t, first_row = b.y0 - F::kHalo;
  const bool active = first < F::kOutputs;
  FusedRows<kTaps, kPlain, kLone, Target> images(a, b, t, first_row);
  FusedGradient<kPlain> out(a, b, first, active);
  WeightCursor l1_weight(a.l1_weight, b, b.y0, b.x0 + first);
  Real state[kFusedColumns][3][F::kHalo], l1 = 0.f;
#pragma unroll
  for (int j = 0; j < kFusedColumns; ++j) clear(state[j]);
  // Idle threads (the last five) read the same as thread 0, which keeps them inside the arrays.
  const int column = active ? first : 0;
  Pair *row = ring + t, *const end = row + F::kRing * F::kRow;
  const int own = first + F::kFormed + F::kRadius;  // column of the ring
  const Pair *old = ring + 2 * F::kRow + own, *const old_end = old + (F::kRing - 2) * F::kRow;
  const Real *const place = adjoint + column, *const place_end = place + 3 * F::kAdjointRow, *here = place_end;
  images.fetch(a, first_row);
#pragma unroll 1
  for (int r = first_row; r < y1 + F::kRadius + 1 + F::kRadius; ++r) {
    images.put(row, t, shift);
    barrier_of_roles(kFusedThreads);
    images.fetch(a, r + 1);
    Real share[kFusedColumns];
    if (kWeights != kNoWeights && r - kTaps >= b.y0) {
      const bool given = kWeights == kGivenWeights || a.l1_weight.data;
#pragma unroll
      for (int j = 0; j < kFusedColumns; ++j) {
        share[j] = l1_weight.read(j, out.stores[j] && (kWeights != kGivenWeights || a.l1_weight.data), given);
      }
      l1_weight.advance();
    }
    if (r > b.y0) {
      Real h[3][kFusedColumns], f[kFusedColumns][3];
#pragma unroll
      for (int m = 0; m < 3; ++m) row_filter<kTaps>(a, here + m * F::kAdjointRow, h[m]);
#pragma unroll
      for (int j = 0; j < kFusedColumns; ++j) {
#pragma unroll
        for (int m = 0; m < 3; ++m) f[j][m] = filter_step(state[j][m], h[m][j], a.taps);
      }
      if (r - kTaps >= b.y0) {
        Real gradient[kFusedColumns];
        combine<kWeights>(a, shift, two_pairs<(F::kFormed + F::kRadius) % 2 == 0>(old), f, share, out.stores, gradient,
                          l1);
        out.write(a.grad[0], gradient);
      }
    }
    here = here == place ? place_end : place;
    row += F::kRow;
    if (row == end) row = ring + t;
    old += F::kRow;
    if (old == old_end) old = ring + own;
  }
  return l1;
}

template <int kTaps, bool kPlain, Weights kWeights, bool kLone = false, class Target = Cursor<kPlain>>
SPLAT_DEVICE void fused2d(const SsimProblem& a) {
  using F = Fused<kTaps, kLone>;
  SPLAT_SHARED(Pair, ring, F::kRing * F::kRow);
  SPLAT_SHARED(Real, adjoint, 2 * 3 * F::kAdjointRow);
  if (kLone) {
    for (int i = thread_index(); i < 2 * 3 * F::kAdjointRow; i += kFusedThreads) store_shared(adjoint + i, Real(0.f));
    barrier();
  }
  const Block2d b = block2d<F::kOutputs>(a);
  const int y1 = b.y0 + a.segment < a.size[3] ? b.y0 + a.segment : a.size[3];
  const Shift shift = plane_shift<kPlain, Target::kComposites>(a, b.batch, b.channel);
  Real dssim = 0.f, l1 = 0.f;
  if (thread_index() < kThreads2d) {
    dssim = fused_forward_role<kTaps, kWeights, kLone>(a, b, y1, shift, ring, adjoint);
  } else {
    l1 = fused_backward_role<kTaps, kPlain, kWeights, kLone, Target>(a, b, y1, shift, ring, adjoint);
  }
  block_sum<kFusedThreads>(dssim, block_sum_place(a, kSumDssim));
  block_sum<kFusedThreads>(l1, block_sum_place(a, kSumL1));
  reduce_in_last_block(a, static_cast<unsigned>(a.strips) * a.segments * a.size[0] * a.size[1]);
}

}  // namespace
