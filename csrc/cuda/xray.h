// X-ray pictures of 3D Gaussians on a GPU, and the gradients. There are no atomics, and every sum has a fixed order. So
// results repeat bit by bit. ../xray_math.h has the formulas, which the CPU kernels share.
//
// Forward has one block for each tile of 16x16 pixels. The block adds the shadows that touch the tile, in their order.
// Torch sorts the pairs of tile and shadow beforehand, with a stable sort that keeps this order. Backward has one warp
// for each Gaussian, which walks over the Gaussian's shadows in the order of the views. Every lane sums over columns of
// a shadow's box, then the lanes' sums are added pairwise. One thread for each Gaussian then computes the gradients of
// the parameters in double precision.
#pragma once
#include "device.h"
#include "xray_problem.h"

namespace {

constexpr float kXrayCut = 9.f;                            // kXrayCutoff for pixels, which are float32
constexpr int kXrayRows = 2;                               // pixels that a thread renders, one below the other
constexpr int kXrayStaged = 64;                            // shadows that a block holds at a time
constexpr int kXrayWarpRows = 32 / kXrayTile * kXrayRows;  // rows of a tile that a warp renders
static_assert(kXrayThreads * kXrayRows == kXrayTile * kXrayTile, "a block renders a tile");
static_assert(kXrayTile / kXrayWarpRows == kXrayThreads / 32, "its warps share the rows");

// ---- one thread a Gaussian and view

SPLAT_DEVICE void load_body(const XrayProblem& a, Int64 i, XrayBody& body) {
  double mean[3], quat[4], scale[3];
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    mean[k] = static_cast<double>(load_global(a.means + i * 3 + k));
    scale[k] = static_cast<double>(load_global(a.scales + i * 3 + k));
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) quat[k] = static_cast<double>(load_global(a.quats + i * 4 + k));
  make_body(mean, quat, scale, body);
}

SPLAT_DEVICE void store_shadow(const XrayShadow& shadow, XrayShadow* to) {
  store_global(&to->factor, Real(shadow.factor));
  store_global(&to->p, Real(shadow.p));
  store_global(&to->r, Real(shadow.r));
  store_global(&to->s, Real(shadow.s));
#pragma unroll
  for (int k = 0; k < 5; ++k) {
    store_global(&to->B[k], Real(shadow.B[k]));
    store_global(&to->D[k], Real(shadow.D[k]));
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    store_global(&to->offset[k], Real(shadow.offset[k]));
    store_global(&to->center[k], shadow.center[k]);
    store_global(&to->low[k], shadow.low[k]);
    store_global(&to->high[k], shadow.high[k]);
  }
}

SPLAT_DEVICE void xray_prepare(const XrayProblem& a) {
  const unsigned blocks = static_cast<unsigned>((a.count + kXrayThreads - 1) / kXrayThreads);  // of a view
  const int view = static_cast<int>(block_index() / blocks);
  const Int64 i = static_cast<Int64>(block_index() % blocks) * kXrayThreads + thread_index();
  if (i >= a.count) return;
  XrayBody body;
  ShadowFrame frame;
  XrayShadow shadow = {};
  load_body(a, i, body);
  Int64 tiles = 1;
  if (make_shadow(body, a.views[view], a.detector, frame, shadow)) {
#pragma unroll
    for (int k = 0; k < 2; ++k) tiles *= shadow.high[k] / kXrayTile - shadow.low[k] / kXrayTile + 1;
  } else {
    tiles = 0;
    shadow = {};
    shadow.low[0] = shadow.low[1] = 1;
  }
  store_shadow(shadow, a.shadows + view * a.count + i);
  store_global(a.tile_counts + view * a.count + i, tiles);
}

SPLAT_DEVICE void xray_pairs(const XrayProblem& a) {
  const Int64 shadow = a.begin + static_cast<Int64>(block_index()) * kXrayThreads + thread_index();
  if (shadow >= a.end) return;
  const Int64 before = a.begin > 0 ? load_global(a.pair_ends + a.begin - 1) : 0;
  Int64 at = (shadow > 0 ? load_global(a.pair_ends + shadow - 1) : 0) - before;
  const int view = static_cast<int>(shadow / a.count);
  int first[2], last[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    first[k] = load_global(&a.shadows[shadow].low[k]);
    last[k] = load_global(&a.shadows[shadow].high[k]);
    if (first[k] > last[k]) return;
    first[k] /= kXrayTile;
    last[k] /= kXrayTile;
  }
  for (int y = first[1]; y <= last[1]; ++y) {
    for (int x = first[0]; x <= last[0]; ++x, ++at) {
      store_global(a.pair_tiles + at, (view * a.tiles[1] + y) * a.tiles[0] + x);
      store_global(a.pair_shadows + at, static_cast<int>(shadow));
    }
  }
}

// ---- forward

// A shadow in shared memory. A block holds 64 of them at a time (6 KiB), and a number for each (256 bytes).
struct StagedShadow {
  Quad place;    // center counted from the tile's corner and offset, along x, then along y
  Quad form;     // p, r, s, and factor times the first value
  Quad B;        // B0 to B3
  Quad between;  // B4, D0 to D2
  Quad D;        // D3, D4
  Quad values;   // factor times the values of the group of channels
};

// Puts a shadow into shared memory. Sets *warps to the warps with rows that it touches, a bit for each.
template <int kGroup>
SPLAT_DEVICE void stage_shadow(const XrayProblem& a, Int64 shadow, Int64 gaussian, const int (&corner)[2], int channel,
                               StagedShadow* staged, int* warps) {
  const XrayShadow* f = a.shadows + shadow;
  const Real factor = load_global(&f->factor), zero = 0.f;
  Real center[2], value[4], B[5], D[5];
#pragma unroll
  for (int k = 0; k < 2; ++k) center[k] = Real(static_cast<float>(load_global(&f->center[k]) - corner[k]));
#pragma unroll
  for (int k = 0; k < 5; ++k) {
    B[k] = load_global(&f->B[k]);
    D[k] = load_global(&f->D[k]);
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const bool given = c < kGroup && channel + c < a.channels;
    value[c] = given ? factor * load_global(a.values + gaussian * a.channels + channel + c) : zero;
  }
  const Real offset[2] = {load_global(&f->offset[0]), load_global(&f->offset[1])};
  store_shared(&staged->place, Quad{center[0], offset[0], center[1], offset[1]});
  store_shared(&staged->form, Quad{load_global(&f->p), load_global(&f->r), load_global(&f->s), value[0]});
  if (a.detector.cone) {
    store_shared(&staged->B, Quad{B[0], B[1], B[2], B[3]});
    store_shared(&staged->between, Quad{B[4], D[0], D[1], D[2]});
    store_shared(&staged->D, Quad{D[3], D[4], zero, zero});
  }
  if (kGroup > 1) store_shared(&staged->values, Quad{value[0], value[1], value[2], value[3]});
  const int top = load_global(&f->low[1]) - corner[1], bottom = load_global(&f->high[1]) - corner[1];
  const int first = (top > 0 ? top : 0) / kXrayWarpRows;
  const int last = (bottom < kXrayTile ? bottom : kXrayTile - 1) / kXrayWarpRows;
  store_shared(warps, (2 << last) - (1 << first));
}

// The polynomials B and D of a shadow in a cone, along one column of pixels: a0 + a1 dy + a2 dy^2.
struct ColumnOfCone {
  Real B[3], D[3];

  SPLAT_DEVICE ColumnOfCone(Real dx, const Real (&b)[5], const Real (&d)[5])
      : B{multiply_add(multiply_add(b[2], dx, b[0]), dx, Real(1.f)), multiply_add(b[3], dx, b[1]), b[4]},
        D{multiply_add(multiply_add(d[2], dx, d[0]), dx, Real(1.f)), multiply_add(d[3], dx, d[1]), d[4]} {}
  SPLAT_DEVICE static Real at(const Real (&a)[3], Real dy) {
    return multiply_add(multiply_add(a[2], dy, a[1]), dy, a[0]);
  }
};

// y = (9 - q) / 2 from q, at least 0: rounding may leave q a little above 9.
SPLAT_DEVICE Real inside_of(Real q) {
  const Real y = multiply_add(Real(-0.5f), q, Real(0.5f * kXrayCut));
  return Real(0.f) <= y ? y : Real(0.f);
}

// Adds one shadow to a thread's pixels (x, y) and (x, y + 1) of the tile.
template <int kGroup>
SPLAT_DEVICE void add_shadow(const StagedShadow* staged, bool cone, Real x, Real y, Real (&sum)[kXrayRows][kGroup]) {
  const Quad place = load_shared(&staged->place), form = load_shared(&staged->form);
  Quad b{0.f, 0.f, 0.f, 0.f}, between = b, d = b;
  if (cone) {
    b = load_shared(&staged->B);
    between = load_shared(&staged->between);
    d = load_shared(&staged->D);
  }
  const Real dx = x - place.x - place.y, along = form.x * dx;
  const ColumnOfCone column(dx, {b.x, b.y, b.z, b.w, between.x}, {between.y, between.z, between.w, d.x, d.y});
#pragma unroll
  for (int k = 0; k < kXrayRows; ++k) {
    const Real dy = y + Real(static_cast<float>(k)) - place.z - place.w;
    const Real across = multiply_add(form.y, dy, along), down = form.z * dy;
    const Real N = multiply_add(across, across, down * down), B = ColumnOfCone::at(column.B, dy);
    // Written so that NaN fails. B is above 0.
    if (!(N <= Real(kXrayCut) * B)) continue;
    Real inside;
    if (cone) {
      const Real inverse = reciprocal(B), rest = inside_of(N * inverse);
      inside = square_root(rest * (ColumnOfCone::at(column.D, dy) * inverse)) * through(rest);
    } else {
      const Real rest = inside_of(N);
      inside = square_root(rest) * through(rest);
    }
    if (kGroup == 1) {
      sum[k][0] = multiply_add(inside, form.w, sum[k][0]);
    } else {
      const Quad value = load_shared(&staged->values);
      const Real values[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
      for (int c = 0; c < kGroup; ++c) sum[k][c] = multiply_add(inside, values[c], sum[k][c]);
    }
  }
}

// Adds to a tile of a picture, with one walk over the tile's list for every kGroup channels. Synchronises after a batch
// is staged and before the next one overwrites it.
template <int kGroup>
SPLAT_DEVICE void xray_render(const XrayProblem& a) {
  SPLAT_SHARED(StagedShadow, staged, kXrayStaged);
  SPLAT_SHARED(int, warps, kXrayStaged);
  const int tile = static_cast<int>(block_index());
  const Int64 begin = load_global(a.tile_starts + tile), end = load_global(a.tile_starts + tile + 1);
  if (begin == end) return;
  const int thread = thread_index(), own_warp = 1 << thread / 32;
  const int view = tile / a.tiles[0] / a.tiles[1];
  const int corner[2] = {tile % a.tiles[0] * kXrayTile, tile / a.tiles[0] % a.tiles[1] * kXrayTile};
  const int x = thread % kXrayTile, y = thread / kXrayTile * kXrayRows;
  const Int64 plane = static_cast<Int64>(a.detector.width) * a.detector.height;
  float* const pixel =
      a.pictures + view * a.channels * plane + static_cast<Int64>(corner[1] + y) * a.detector.width + corner[0] + x;
  for (int channel = 0; channel < a.channels; channel += kGroup) {
    bool given[kXrayRows][kGroup];
    Real sum[kXrayRows][kGroup];
#pragma unroll
    for (int k = 0; k < kXrayRows; ++k) {
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        given[k][c] =
            corner[0] + x < a.detector.width && corner[1] + y + k < a.detector.height && channel + c < a.channels;
        sum[k][c] = given[k][c] ? load_own(pixel + (channel + c) * plane + k * a.detector.width) : Real(0.f);
      }
    }
    for (Int64 first = begin; first < end; first += kXrayStaged) {
      const int batch = end - first < kXrayStaged ? static_cast<int>(end - first) : kXrayStaged;
      if (thread < batch) {
        const Int64 shadow = load_global(a.tile_shadows + first + thread);
        stage_shadow<kGroup>(a, shadow, shadow - view * a.count, corner, channel, staged + thread, warps + thread);
      }
      barrier();
      for (int i = 0; i < batch; ++i) {
        if ((load_shared(warps + i) & own_warp) == 0) continue;
        add_shadow<kGroup>(staged + i, a.detector.cone != 0, Real(static_cast<float>(x)), Real(static_cast<float>(y)),
                           sum);
      }
      barrier();
    }
#pragma unroll
    for (int k = 0; k < kXrayRows; ++k) {
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        if (given[k][c]) store_global(pixel + (channel + c) * plane + k * a.detector.width, sum[k][c]);
      }
    }
  }
}

// ---- backward

// The shadow of a lane, in registers.
struct LaneShadow {
  int center[2], low[2], high[2];
  Real offset[2], p, r, s, factor, B[5], D[5];

  SPLAT_DEVICE explicit LaneShadow(const XrayShadow* f)
      : p(load_global(&f->p)), r(load_global(&f->r)), s(load_global(&f->s)), factor(load_global(&f->factor)) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      center[k] = load_global(&f->center[k]);
      low[k] = load_global(&f->low[k]);
      high[k] = load_global(&f->high[k]);
      offset[k] = load_global(&f->offset[k]);
    }
#pragma unroll
    for (int k = 0; k < 5; ++k) {
      B[k] = load_global(&f->B[k]);
      D[k] = load_global(&f->D[k]);
    }
  }
  SPLAT_DEVICE Real distance(int k, int at) const { return Real(static_cast<float>(at - center[k])) - offset[k]; }
};

// Let G = sum over c of values_c dL/dP_c, I the integral without the shadow's factor, and N and B relative to B(0).
// The sums of G dI/dN and of G dI/dB over a column, each times 1, dy and dy^2. If there is one channel, its value is
// left out of G.
struct ColumnSums {
  Real n[3], b[3];
};

// Adds the sums of a column, times 1, dx and dx^2, in the order 1, dx, dy, dx^2, dx dy, dy^2.
SPLAT_DEVICE void add_moments(const Real (&m)[3], Real dx, Real* sums) {
  const Real x = m[0] * dx;
  sums[0] = sums[0] + m[0];
  sums[1] = sums[1] + x;
  sums[2] = sums[2] + m[1];
  sums[3] = multiply_add(x, dx, sums[3]);
  sums[4] = multiply_add(m[1], dx, sums[4]);
  sums[5] = sums[5] + m[2];
}

// Walks over every fourth pixel of a column, from `row` on. `gradient` points to the first pixel of the group's first
// channel. by_value receives the sums of I dL/dP_c.
template <int kGroup>
SPLAT_DEVICE ColumnSums walk_rows(const XrayProblem& a, const LaneShadow& f, int x, int row, Real dx,
                                  const float* gradient, int channels, const Real (&values)[kGroup],
                                  Real (&by_value)[kGroup]) {
  ColumnSums sums{{0.f, 0.f, 0.f}, {0.f, 0.f, 0.f}};
  const ColumnOfCone column(dx, f.B, f.D);
  const Real along = f.p * dx;
  const Int64 plane = static_cast<Int64>(a.detector.width) * a.detector.height;
  for (int y = row; y <= f.high[1]; y += 4) {
    const Real dy = f.distance(1, y);
    const Real across = multiply_add(f.r, dy, along), down = f.s * dy;
    const Real N = multiply_add(across, across, down * down), B = ColumnOfCone::at(column.B, dy);
    if (!(N <= Real(kXrayCut) * B)) continue;
    Real inverse = 1.f, ratio = 1.f;
    if (a.detector.cone) {
      inverse = reciprocal(B);
      ratio = ColumnOfCone::at(column.D, dy) * inverse;
    }
    const Real rest = inside_of(N * inverse), size = square_root(rest * ratio), integral = size * through(rest);
    const float* at = gradient + static_cast<Int64>(y) * a.detector.width + x;
    Real upstream = 0.f;
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      if (c >= channels) continue;
      const Real part = load_global(at + c * plane);
      by_value[c] = multiply_add(integral, part, by_value[c]);
      upstream = kGroup > 1 ? multiply_add(part, values[c], upstream) : part;
    }
    // With Z = G sqrt(y D / B), G dI/dy = Z (M + 1/(2y)). Besides, I has a factor 1/sqrt(B) of its own: G dI/dB is
    // q/(2B) times this slope, minus 1/(2B) times G I.
    const Real bounded = Real(kRim) <= rest ? rest : Real(kRim), half = Real(-0.5f) * inverse;
    const Real slope = upstream * multiply_add(size * Real(0.5f), reciprocal(bounded), integral);
    const Real n = half * slope, q = multiply_add(Real(-2.f), rest, Real(kXrayCut));
    const Real b = multiply_add(-n, q, half * (upstream * integral));
    const Real ny = n * dy, by = b * dy;
    sums.n[0] = sums.n[0] + n;
    sums.n[1] = sums.n[1] + ny;
    sums.n[2] = multiply_add(ny, dy, sums.n[2]);
    sums.b[0] = sums.b[0] + b;
    sums.b[1] = sums.b[1] + by;
    sums.b[2] = multiply_add(by, dy, sums.b[2]);
  }
  return sums;
}

// Adds `sum`, which the first lane of the warp has, to *total.
SPLAT_DEVICE void add_total(double* total, Real sum, Real factor) {
  store_global(total, load_own(total) + static_cast<double>(factor) * static_cast<double>(sum));
}

// One warp processes one Gaussian, one view after the other. Its lanes are 8 columns by 4 rows. There is no shared
// memory and no barrier.
template <int kGroup>
SPLAT_DEVICE void xray_gather(const XrayProblem& a) {
  const int index = thread_index() % 32;
  const Int64 i = static_cast<Int64>(block_index()) * (kXrayThreads / 32) + thread_index() / 32;
  if (i >= a.count) return;
  const Int64 plane = static_cast<Int64>(a.detector.width) * a.detector.height;
  for (int view = 0; view < a.view_count; ++view) {
    const Int64 shadow = view * a.count + i;
    const LaneShadow f(a.shadows + shadow);
    if (f.low[1] > f.high[1]) continue;
    Real sums[kXraySums];
#pragma unroll
    for (int k = 0; k < kXraySums; ++k) sums[k] = 0.f;
    for (int channel = 0; channel < a.channels; channel += kGroup) {
      const float* gradient = a.gradient + (static_cast<Int64>(view) * a.channels + channel) * plane;
      Real values[kGroup], by_value[kGroup];
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        values[c] = channel + c < a.channels ? load_global(a.values + i * a.channels + channel + c) : Real(0.f);
        by_value[c] = 0.f;
      }
      for (int x = f.low[0] + index % 8; x <= f.high[0]; x += 8) {
        const Real dx = f.distance(0, x);
        const ColumnSums column =
            walk_rows<kGroup>(a, f, x, f.low[1] + index / 8, dx, gradient, a.channels - channel, values, by_value);
        add_moments(column.n, dx, sums);
        add_moments(column.b, dx, sums + 6);
      }
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        const Real total = warp_sum(by_value[c]);
        if (index == 0 && channel + c < a.channels) {
          add_total(a.value_totals + i * a.channels + channel + c, total, f.factor);
        }
      }
      if (kGroup == 1) {
#pragma unroll
        for (int k = 0; k < kXraySums; ++k) sums[k] = sums[k] * values[0];
      }
    }
#pragma unroll
    for (int k = 0; k < kXraySums; ++k) {
      const Real total = warp_sum(sums[k]);
      if (index == 0) store_global(a.sums + shadow * kXraySums + k, total);
    }
  }
}

// Writes the gradients of the parameters from those by W and by the mean. If all of these are 0, the Gaussian touched
// nothing, and its body may not be finite. Its gradients are zero nevertheless.
SPLAT_DEVICE void write_gradients(const XrayProblem& a, Int64 i, const XrayBody& body, const double (&by_W)[9],
                                  const double (&by_mean)[3]) {
  bool touched = false;
#pragma unroll
  for (int k = 0; k < 9; ++k) touched = touched || by_W[k] != 0.;
#pragma unroll
  for (int k = 0; k < 3; ++k) touched = touched || by_mean[k] != 0.;
  double by_scale[3] = {0., 0., 0.}, by_quat[4] = {0., 0., 0., 0.};
  if (touched) chain_body(body, by_W, by_scale, by_quat);
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    store_global(a.grad_means + i * 3 + k, Real(static_cast<float>(by_mean[k])));
    store_global(a.grad_scales + i * 3 + k, Real(static_cast<float>(by_scale[k])));
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) store_global(a.grad_quats + i * 4 + k, Real(static_cast<float>(by_quat[k])));
}

// Adds the gradients by W and by the mean of this call's views to those of earlier calls.
SPLAT_DEVICE void xray_chain(const XrayProblem& a) {
  const Int64 i = static_cast<Int64>(block_index()) * kXrayThreads + thread_index();
  if (i >= a.count) return;
  XrayBody body;
  load_body(a, i, body);
  double by_W[9], by_mean[3];
  double* const totals = a.totals + i * kXraySums;
#pragma unroll
  for (int k = 0; k < 9; ++k) by_W[k] = load_own(totals + k);
#pragma unroll
  for (int k = 0; k < 3; ++k) by_mean[k] = load_own(totals + 9 + k);
  for (int view = 0; view < a.view_count; ++view) {
    const Int64 shadow = view * a.count + i;
    const XrayShadow* f = a.shadows + shadow;
    if (load_global(&f->low[1]) > load_global(&f->high[1])) continue;
    const double factor = static_cast<double>(load_global(&f->factor));
    double by_N[6], by_B[6], at[2];
#pragma unroll
    for (int k = 0; k < 6; ++k) {
      by_N[k] = factor * static_cast<double>(load_global(a.sums + shadow * kXraySums + k));
      by_B[k] = factor * static_cast<double>(load_global(a.sums + shadow * kXraySums + 6 + k));
    }
    ShadowFrame frame;
    const double depth = project_mean(body, a.views[view], a.detector.cone, at);
    make_frame(body, a.views[view], a.detector.cone, depth, at, frame);
    chain_view(by_N, by_B, body, a.views[view], frame, a.detector.cone, by_W, by_mean);
  }
  if (a.is_last) {
    write_gradients(a, i, body, by_W, by_mean);
    return;
  }
#pragma unroll
  for (int k = 0; k < 9; ++k) store_global(totals + k, by_W[k]);
#pragma unroll
  for (int k = 0; k < 3; ++k) store_global(totals + 9 + k, by_mean[k]);
}

}  // namespace
