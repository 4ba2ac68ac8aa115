// SSIM of images in two kernels that march down the rows: forward (sums, map, or the adjoint maps), then backward.
//
// A block of 128 threads owns a strip of 128·kColumns output columns and walks down `segment` rows of it. It loads each
// row once, as shifted s = x + y and d = x - y, into one of two row buffers in shared memory. There each thread filters
// the row for its own columns and feeds the result to the vertical filter in registers (filter.h). One barrier a row
// suffices: while a row is read from one buffer, the next one is written to the other. The loads of the next row are
// issued before the barrier. A segment starts kTaps - 1 rows early to fill the filter.
//
// Bytes an element, float32: forward reads 8 and writes 16 with adjoint maps; backward reads 24 and writes 4.
#pragma once
#include "filter.h"
#include "pointwise.h"
#include "reduce.h"
#include "shift.h"
#include "tensor.h"

namespace {

// What a forward kernel makes. All kinds but kAny are for plain float32 images, and kPartials, kWeighted and kPlain
// exist for volumes only.
//     kValue     the sums of 1 - S and |x - y|
//     kPartials  the sum of 1 - S and three adjoint maps
//     kWeighted  the same, where every voxel has a weight
//     kPlain     one of these three, decided at run time; narrow windows have the registers for that
//     kAny       any type and layout; decides at run time between sums, map and the four adjoint maps that the
//                gradients of both images need
enum Forward { kValue, kPartials, kWeighted, kPlain, kAny };

constexpr int kThreads2d = 128;

struct Block2d {
  int batch, channel, x0, y0;
  Int64 plane;
};

template <int kWidth>
SPLAT_DEVICE Block2d block2d(const SsimProblem& a) {
  unsigned i = block_index();
  Block2d b;
  b.x0 = static_cast<int>(i % a.strips) * kWidth;
  i /= a.strips;
  b.y0 = static_cast<int>(i % a.segments) * a.segment;
  b.plane = i / a.segments;
  b.batch = static_cast<int>(b.plane / a.size[1]);
  b.channel = static_cast<int>(b.plane - static_cast<Int64>(b.batch) * a.size[1]);
  return b;
}

// Where this block's sum of one kind goes.
SPLAT_DEVICE float* block_sum_place(const SsimProblem& a, int kind) {
  const Int64 blocks = static_cast<Int64>(a.strips) * a.tiles * a.segments * a.size[0] * a.size[1];
  return a.block_sums + kind * blocks + block_index();
}

// Derivatives of the loss with respect to the four moments of one voxel. The upstream gradients are v for its 1 - S and
// c for its 1 - CS.
SPLAT_DEVICE void any_derivatives(const Similarity& r, const Real (&moment)[4], Real v, Real c, Real (&by)[4]) {
  const Real t = multiply_add(v, 1.f - r.a, c) * r.inverse_b;
  derivatives<false>(r, moment, t, v * multiply_add(-r.dcs, r.inverse_a, r.inverse_a), by);
}

// Processes voxels in the kAny kernels: voxel (z, y, x) of the map, which has index `place` in an adjoint map.
struct AnyVoxel {
  Real dssim = 0.f, contrast = 0.f;  // running sums of 1 - S, or with `similarities` of S and CS

  SPLAT_DEVICE void add(const SsimProblem& a, const Real (&moment)[4], const Shift& shift, int batch, int channel,
                        int z, int y, int x, Int64 place) {
    const Similarity r = similarity(a, moment, shift);
    Damping damping;
    if (a.eps > 0.f) damping.set(a, r);
    const Real missed = multiply_add(damping.kept, r.dssim, damping.missing);  // 1 - S
    Real share = 1.f;
    if (a.weight.data) {
      const Int64 at = plane_offset(a.weight, batch, channel) + z * a.weight.stride[2] + y * a.weight.stride[3];
      share = load_element(a.weight, at + x * a.weight.stride[4]);
    }
    if (a.similarities) {
      dssim = multiply_add(damping.kept, similarity_itself(a, r), dssim);
      contrast = contrast + contrast_structure(a, r);
    } else {
      dssim = multiply_add(share, missed, dssim);
    }
    if (a.map.data) {
      const Int64 at = plane_offset(a.map, batch, channel) + z * a.map.stride[2] + y * a.map.stride[3];
      store_element(a.map, at + x * a.map.stride[4], 1.f - missed);
    }
    if (a.partials) {
      Real v = share * a.dssim_scale, c = 0.f, by[4];
      if (a.plane_weight) {
        const float* scale = a.plane_weight + 2 * (static_cast<Int64>(batch) * a.size[1] + channel);
        v = share * load_global(scale);
        c = share * load_global(scale + 1);
      }
      v = v * damping.kept;
      any_derivatives(r, moment, v, c, by);
      if (a.eps > 0.f) add_damping(r, moment, v * damping.missing * (1.f - r.dssim), by);
#pragma unroll
      for (int m = 0; m < 4; ++m) store_global(a.partials + m * a.partial_stride + place, by[m]);
    }
  }
};

// The sizes that depend on the window.
template <int kTaps, int kColumns>
struct Strip {
  static constexpr int kHalo = kTaps - 1, kRadius = kTaps / 2;
  static constexpr int kWidth = kThreads2d * kColumns, kRow = kWidth + kHalo;  // columns that are made and loaded
};

// Loads both images row by row into shared memory: the columns of one thread, fetched one row ahead.
template <int kTaps, int kColumns, bool kPlain>
struct ImageRows {
  using S = Strip<kTaps, kColumns>;
  Cursor<kPlain> x, y;
  int loaded_rows[kColumns + 1];  // the image's height if the thread loads the column, else 0
  Real next_x[kColumns + 1], next_y[kColumns + 1];

  // Begins at row load_y.
  SPLAT_DEVICE ImageRows(const SsimProblem& a, const Block2d& b, int load_x, int load_y)
      : x(start(a.image[0], b, load_x, load_y)), y(start(a.image[1], b, load_x, load_y)) {
    const int t = thread_index();
#pragma unroll
    for (int k = 0; k <= kColumns; ++k) {
      const bool loads = static_cast<unsigned>(load_x + k * kThreads2d) < static_cast<unsigned>(a.size[4]) &&
                         (k < kColumns || t < S::kHalo);
      loaded_rows[k] = loads ? a.size[3] : 0;
    }
  }
  static SPLAT_DEVICE Cursor<kPlain> start(const SsimTensor& image, const Block2d& b, int load_x, int load_y) {
    const Int64 at = plane_offset(image, b.batch, b.channel) + (load_y - 1) * image.stride[3];  // fetch advances first
    return Cursor<kPlain>(image, at + load_x * image.stride[4], image.stride[3]);
  }

  // Fetches the next row, which is `row` of the image.
  SPLAT_DEVICE void fetch(const SsimProblem& a, int row) {
    bool wanted[kColumns + 1];
#pragma unroll
    for (int k = 0; k <= kColumns; ++k) {
      next_x[k] = next_y[k] = 0.f;
      wanted[k] = static_cast<unsigned>(row) < static_cast<unsigned>(loaded_rows[k]);
    }
    x.advance();
    y.advance();
    x.read(a.image[0], kThreads2d, wanted, next_x);
    y.read(a.image[1], kThreads2d, wanted, next_y);
  }

  SPLAT_DEVICE void put(Pair* row, const Shift& shift) const {
    const int t = thread_index();
#pragma unroll
    for (int k = 0; k <= kColumns; ++k) {
      if (k < kColumns || t < S::kHalo) store_shared(row + t + k * kThreads2d, shifted(next_x[k], next_y[k], shift));
    }
  }
};

template <int kTaps, int kColumns, Forward kMode>
SPLAT_DEVICE void forward2d(const SsimProblem& a) {
  using S = Strip<kTaps, kColumns>;
  SPLAT_SHARED(Pair, rows, 2 * S::kRow);
  const Block2d b = block2d<S::kWidth>(a);
  const int t = thread_index(), first = kColumns * t;
  const int y1 = b.y0 + a.segment < a.map_size[1] ? b.y0 + a.segment : a.map_size[1];
  const int load_x = b.x0 - S::kRadius + t + a.lead[2], load_y = b.y0 - S::kRadius + a.lead[1];
  const Shift shift = plane_shift<kMode != kAny>(a, b.batch, b.channel);
  ImageRows<kTaps, kColumns, kMode != kAny> images(a, b, load_x, load_y);
  bool stores[kColumns];
  Real state[kColumns][4][S::kHalo], dssim[kColumns], l1 = 0.f;
  AnyVoxel any;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    stores[j] = b.x0 + first + j < a.map_size[2];
    dssim[j] = 0.f;
    clear(state[j]);
  }
  Int64 place = (b.plane * a.map_size[1] + b.y0) * a.map_size[2] + b.x0 + first;
  int buffer = 0;
  // Filters the fetched row and fetches row `next`.
  auto step = [&](int next, bool emits, bool counts) {
    images.put(rows + buffer, shift);
    images.fetch(a, next);
    barrier();
    Real h[kColumns][4];
    const Real own = row_moments<kTaps, kMode == kValue>(a, rows + buffer + first, h, shift.d);
    if (kMode == kValue && counts) l1 = l1 + own;
    buffer = S::kRow - buffer;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      Real moment[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) moment[m] = filter_step(state[j][m], h[j][m], a.taps);
      if (!emits) continue;
      if (kMode == kAny) {
        const int y = next - 1 - S::kRadius - a.lead[1];
        if (stores[j]) any.add(a, moment, shift, b.batch, b.channel, 0, y, b.x0 + first + j, place + j);
        continue;
      }
      dssim[j] = dssim[j] + similarity(a, moment, shift).dssim;  // columns outside are left out at the end
    }
    if (kMode == kAny && emits) place += a.map_size[2];
  };
  images.fetch(a, load_y);
  int next = load_y + 1;
#pragma unroll 1
  for (; next <= load_y + S::kHalo; ++next) step(next, false, next > b.y0 && next <= y1);
  const int last = y1 + S::kRadius + a.lead[1];
#pragma unroll 1
  for (; next <= last; ++next) step(next, true, next <= y1);
  if (!a.block_sums) return;
  Real sum = 0.f;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) sum = sum + (stores[j] ? dssim[j] : Real(0.f));
  block_sum<kThreads2d>(kMode == kAny ? any.dssim : sum, block_sum_place(a, kSumDssim));
  if (kMode == kAny && a.similarities) block_sum<kThreads2d>(any.contrast, block_sum_place(a, kSumContrast));
  if (kMode == kValue) block_sum<kThreads2d>(l1, block_sum_place(a, kSumL1));
}

constexpr int kAdjointMaps = 4;

// Loads the adjoint maps row by row into shared memory: the columns of one thread, fetched one row ahead.
template <int kTaps, int kColumns>
struct AdjointRows {
  using S = Strip<kTaps, kColumns>;
  const float* maps[kAdjointMaps];
  bool loads[kColumns + 1];
  Real next[kAdjointMaps][kColumns + 1];

  SPLAT_DEVICE AdjointRows(const SsimProblem& a, const Block2d& b, int load_x, int load_y) {
    const int t = thread_index();
#pragma unroll
    for (int m = 0; m < kAdjointMaps; ++m) {
      maps[m] = a.partials + m * a.partial_stride + (b.plane * a.map_size[1] + load_y) * a.map_size[2] + load_x;
    }
#pragma unroll
    for (int k = 0; k <= kColumns; ++k) {
      loads[k] = static_cast<unsigned>(load_x + k * kThreads2d) < static_cast<unsigned>(a.map_size[2]) &&
                 (k < kColumns || t < S::kHalo);
    }
  }

  SPLAT_DEVICE void fetch(const SsimProblem& a, int row) {
    const bool inside = static_cast<unsigned>(row - a.lead[1]) < static_cast<unsigned>(a.map_size[1]);
#pragma unroll
    for (int m = 0; m < kAdjointMaps; ++m) {
#pragma unroll
      for (int k = 0; k <= kColumns; ++k) {
        next[m][k] = 0.f;
        if (inside && loads[k]) next[m][k] = load_global(maps[m] + k * kThreads2d);
      }
      maps[m] += a.map_size[2];
    }
  }

  SPLAT_DEVICE void put(Real* buffer) const {
    const int t = thread_index();
#pragma unroll
    for (int m = 0; m < kAdjointMaps; ++m) {
#pragma unroll
      for (int k = 0; k <= kColumns; ++k) {
        if (k < kColumns || t < S::kHalo) store_shared(buffer + m * S::kRow + t + k * kThreads2d, next[m][k]);
      }
    }
  }
};

// A thread's own columns in the row of the next output, of both images, both gradients and the weight.
template <int kColumns>
struct OwnColumns {
  Int64 at_x, at_y, at_1, at_2, at_weight;
  bool stores[kColumns];

  SPLAT_DEVICE OwnColumns(const SsimProblem& a, const Block2d& b, int first) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) stores[j] = b.x0 + first + j < a.size[4];
    auto start = [&](const SsimTensor& tensor) {
      return plane_offset(tensor, b.batch, b.channel) + b.y0 * tensor.stride[3] + (b.x0 + first) * tensor.stride[4];
    };
    at_x = start(a.image[0]), at_y = start(a.image[1]), at_1 = start(a.grad[0]), at_2 = start(a.grad[1]);
    at_weight = start(a.l1_weight);
  }

  // Reads s, shifted, and d, not shifted. They are 0 outside the images and if the row is not `wanted`.
  SPLAT_DEVICE void read(const SsimProblem& a, const Shift& shift, bool wanted, Real (&s)[kColumns],
                         Real (&d)[kColumns]) const {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      s[j] = d[j] = 0.f;
      if (wanted && stores[j]) {
        const Real x = load_element(a.image[0], at_x + j * a.image[0].stride[4]);
        const Real y = load_element(a.image[1], at_y + j * a.image[1].stride[4]);
        s[j] = shifted_sum(x, y, shift);
        d[j] = x - y;
      }
    }
  }

  // Stores the gradients from the filtered adjoint maps f, and adds |d| to l1.
  SPLAT_DEVICE void store(const SsimProblem& a, const Shift& shift, const Real (&s)[kColumns],
                          const Real (&d)[kColumns], const Real (&f)[kColumns][kAdjointMaps], Real& l1) const {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (!stores[j]) continue;
      Real share = 1.f;
      if (a.l1_weight.data) share = load_element(a.l1_weight, at_weight + j * a.l1_weight.stride[4]);
      l1 = multiply_add(share, absolute(d[j]), l1);
      const Real by_s = multiply_add(2.f, s[j] * f[j][2], f[j][0]);
      const Real by_d = multiply_add(2.f, (d[j] - shift.d) * f[j][3], f[j][1]) + times_sign(share * a.l1_scale, d[j]);
      if (a.grad[0].data) store_element(a.grad[0], at_1 + j * a.grad[0].stride[4], by_s + by_d);
      if (a.grad[1].data) store_element(a.grad[1], at_2 + j * a.grad[1].stride[4], by_s - by_d);
    }
  }

  SPLAT_DEVICE void advance(const SsimProblem& a) {
    at_x += a.image[0].stride[3];
    at_y += a.image[1].stride[3];
    at_1 += a.grad[0].stride[3];
    at_2 += a.grad[1].stride[3];
    at_weight += a.l1_weight.stride[3];
  }
};

// Gradients from the adjoint maps. It filters the maps like the forward kernel filters images, then computes
//     dL/dx = F[E_s] + F[E_d] + 2 s F[E_s²] + 2 d F[E_d²] + l1_scale·sign(d),   dL/dy = F[E_s] - F[E_d] + ... - ...
// where F is the filter. With zeros outside the map, F is its own adjoint. Takes any type and layout, and makes one
// gradient or both.
template <int kTaps, int kColumns>
SPLAT_DEVICE void backward2d(const SsimProblem& a) {
  using S = Strip<kTaps, kColumns>;
  SPLAT_SHARED(Real, rows, 2 * kAdjointMaps * S::kRow);
  const Block2d b = block2d<S::kWidth>(a);
  const int t = thread_index(), first = kColumns * t;
  const int y1 = b.y0 + a.segment < a.size[3] ? b.y0 + a.segment : a.size[3];
  const Shift shift = plane_shift<false>(a, b.batch, b.channel);
  AdjointRows<kTaps, kColumns> adjoint(a, b, b.x0 - S::kRadius + t - a.lead[2], b.y0 - S::kRadius - a.lead[1]);
  Real state[kColumns][kAdjointMaps][S::kHalo], l1 = 0.f;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) clear(state[j]);
  OwnColumns<kColumns> columns(a, b, first);
  auto step = [&](int row, bool emits) {
    Real* buffer = rows + (row & 1) * kAdjointMaps * S::kRow;
    adjoint.put(buffer);
    adjoint.fetch(a, row + 1);
    Real s[kColumns], d[kColumns];
    columns.read(a, shift, emits, s, d);
    barrier();
    Real h[kAdjointMaps][kColumns], f[kColumns][kAdjointMaps];
#pragma unroll
    for (int m = 0; m < kAdjointMaps; ++m) row_filter<kTaps>(a, buffer + m * S::kRow + first, h[m]);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int m = 0; m < kAdjointMaps; ++m) f[j][m] = filter_step(state[j][m], h[m][j], a.taps);
    }
    if (!emits) return;
    columns.store(a, shift, s, d, f, l1);
    columns.advance(a);
  };
  adjoint.fetch(a, b.y0 - S::kRadius);
#pragma unroll 1
  for (int row = b.y0 - S::kRadius; row < b.y0 + S::kRadius; ++row) step(row, false);
#pragma unroll 1
  for (int row = b.y0 + S::kRadius; row < y1 + S::kRadius; ++row) step(row, true);
  if (a.block_sums) block_sum<kThreads2d>(l1, block_sum_place(a, kSumL1));
}

}  // namespace
