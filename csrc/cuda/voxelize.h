// The voxeliser on a GPU: volumes from 3D Gaussians, and the gradients. There are no atomics, and every sum has a fixed
// order. So results repeat bit by bit, and a voxel has the same bits in every crop that contains it.
//
// Forward has one block for each brick of 8x8x8 voxels. The block adds the Gaussians that touch the brick, in their
// order. Torch sorts the pairs of brick and Gaussian beforehand, with a stable sort that keeps this order. Backward has
// one warp for each Gaussian. Every lane sums over columns of the Gaussian's box, then the lanes' sums are added
// pairwise.
#pragma once
#include "../gaussian.h"
#include "device.h"
#include "voxel_problem.h"

namespace {

constexpr double kFactorScale = 0.84932180028801907;               // sqrt(log2(e) / 2)
constexpr float kVoxelCutoff = 6.4921276840003353f;                // 9 log2(e) / 2
constexpr int kColumn = kBrick * kBrick * kBrick / kVoxelThreads;  // voxels a thread renders, two planes apart
constexpr int kMoments = 9;
static_assert(kBrick == 8 && kVoxelThreads == 2 * kBrick * kBrick, "a block is two planes of a brick");

// ---- one thread a Gaussian

// The rotation of a Gaussian in double precision, and its axes in index space.
struct VoxelFrame {
  double unit[4], norm;
  double rotation[9];  // row-major, columns are the axes of the Gaussian
  double axes[9];      // [k][c]: to_world' * rotation
  double inverse_scale[3];
};

SPLAT_DEVICE void make_frame(const VoxelProblem& a, Int64 i, VoxelFrame& frame) {
  double q[4], squares = 0.;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    q[k] = static_cast<double>(load_global(a.quats + i * 4 + k));
    squares += q[k] * q[k];
  }
  frame.norm = sqrt(squares);
#pragma unroll
  for (int k = 0; k < 4; ++k) frame.unit[k] = q[k] / frame.norm;
  rotation_of(frame.unit, frame.rotation);
  const double* R = frame.rotation;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    frame.inverse_scale[c] = 1.0 / static_cast<double>(load_global(a.scales + i * 3 + c));
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      frame.axes[k * 3 + c] = a.to_world[k] * R[c] + a.to_world[3 + k] * R[3 + c] + a.to_world[6 + k] * R[6 + c];
    }
  }
}

SPLAT_DEVICE double dot3(const double (&u)[3], const double (&v)[3]) { return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]; }

// Removes from v its part along the unit vector u. Returns the signed length of that part.
SPLAT_DEVICE double take_out(const double (&u)[3], double (&v)[3]) {
  const double along = dot3(u, v);
#pragma unroll
  for (int c = 0; c < 3; ++c) v[c] -= along * u[c];
  return along;
}

// Makes v a unit vector. Returns its former length.
SPLAT_DEVICE double normalise(double (&v)[3]) {
  const double length = sqrt(dot3(v, v));
#pragma unroll
  for (int c = 0; c < 3; ++c) v[c] /= length;
  return length;
}

// Factorises the exponent q = |W d|^2 by making the columns of the whitening matrix W orthogonal in the order z, y, x.
// Returns false if column z or y vanishes, or if a factor is not finite or too large.
SPLAT_DEVICE bool factorise(const VoxelFrame& frame, double (&factor)[6]) {
  double column[3][3];
#pragma unroll
  for (int k = 0; k < 3; ++k) {
#pragma unroll
    for (int c = 0; c < 3; ++c) column[k][c] = frame.axes[k * 3 + c] * frame.inverse_scale[c];
  }
  factor[0] = normalise(column[2]);
  factor[1] = take_out(column[2], column[1]);
  factor[3] = normalise(column[1]);
  factor[2] = take_out(column[2], column[0]);
  factor[4] = take_out(column[1], column[0]);
  factor[5] = sqrt(dot3(column[0], column[0]));
  bool finite = factor[0] > 0. && factor[3] > 0.;
#pragma unroll
  for (int k = 0; k < 6; ++k) finite = finite && fabs(factor[k]) < 1e30;
  return finite;
}

// Sets the position and the bounding box in the crop along axis k. Returns false if the Gaussian does not touch the
// crop or is not finite.
SPLAT_DEVICE bool place(const VoxelProblem& a, const VoxelFrame& frame, Int64 i, int k, VoxelRecord& record) {
  double at = 0., variance = 0.;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    at += a.to_index[k * 3 + c] * (static_cast<double>(load_global(a.means + i * 3 + c)) - a.origin[c]);
    const double axis = a.to_index[k * 3] * frame.rotation[c] + a.to_index[k * 3 + 1] * frame.rotation[3 + c] +
                        a.to_index[k * 3 + 2] * frame.rotation[6 + c];
    const double reach = axis * static_cast<double>(load_global(a.scales + i * 3 + c));
    variance += reach * reach;
  }
  const double extent = 3. * sqrt(variance);
  // A little wider than exact: the test on q must decide, not rounding here.
  const double low = ceil(at - extent - 1e-5), high = floor(at + extent + 1e-5), nearest = floor(at + 0.5);
  const int first = a.start[k], last = a.start[k] + a.size[k] - 1;
  // Written so that NaN fails.
  if (!(fabs(at) < 5e8) || !(low <= last && high >= first)) return false;
  record.center[k] = static_cast<int>(nearest);
  record.offset[k] = static_cast<float>(at - nearest);
  record.low[k] = low > first ? static_cast<int>(low) : first;
  record.high[k] = high < last ? static_cast<int>(high) : last;
  return true;
}

SPLAT_DEVICE void voxel_prepare(const VoxelProblem& a) {
  const Int64 i = static_cast<Int64>(block_index()) * kVoxelThreads + thread_index();
  if (i >= a.count) return;
  VoxelFrame frame;
  VoxelRecord record;
  double factor[6];
  make_frame(a, i, frame);
  bool touches = factorise(frame, factor);
#pragma unroll
  for (int k = 0; k < 3; ++k) touches = place(a, frame, i, k, record) && touches;
  Int64 bricks = touches ? 1 : 0;
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const int first = touches ? record.low[k] : 1, last = touches ? record.high[k] : 0;
    if (touches) bricks *= (last - a.start[k]) / kBrick - (first - a.start[k]) / kBrick + 1;
    store_global(&a.records[i].center[k], touches ? record.center[k] : 0);
    store_global(&a.records[i].offset[k], Real(touches ? record.offset[k] : 0.f));
    store_global(&a.records[i].low[k], first);
    store_global(&a.records[i].high[k], last);
  }
#pragma unroll
  for (int k = 0; k < 6; ++k) {
    store_global(&a.records[i].factor[k], Real(touches ? static_cast<float>(factor[k] * kFactorScale) : 0.f));
  }
  store_global(a.brick_counts + i, bricks);
}

SPLAT_DEVICE void voxel_pairs(const VoxelProblem& a) {
  const Int64 i = static_cast<Int64>(block_index()) * kVoxelThreads + thread_index();
  if (i >= a.count) return;
  Int64 at = i > 0 ? load_global(a.pair_ends + i - 1) : 0;
  int first[3], last[3];
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    first[k] = load_global(&a.records[i].low[k]) - a.start[k];
    last[k] = load_global(&a.records[i].high[k]) - a.start[k];
    if (first[k] > last[k]) return;
    first[k] /= kBrick;
    last[k] /= kBrick;
  }
  for (int z = first[2]; z <= last[2]; ++z) {
    for (int y = first[1]; y <= last[1]; ++y) {
      for (int x = first[0]; x <= last[0]; ++x, ++at) {
        store_global(a.pair_bricks + at, (z * a.bricks[1] + y) * a.bricks[0] + x);
        store_global(a.pair_gaussians + at, static_cast<int>(i));
      }
    }
  }
}

// ---- forward

// A Gaussian in shared memory. A block holds 128 of them at a time (8 KiB).
struct Staged {
  Quad place;   // center counted from the brick's corner, offset along x
  Quad middle;  // offset along y and z, factors a and b
  Quad factor;  // c, d, e, f
  Quad values;  // of the group of channels
};

template <int kGroup>
SPLAT_DEVICE void stage(const VoxelProblem& a, int gaussian, const int (&corner)[3], int channel, Staged* staged) {
  const VoxelRecord* r = a.records + gaussian;
  Real center[3], offset[3], factor[6], value[4];
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    center[k] = Real(static_cast<float>(load_global(&r->center[k]) - corner[k]));
    offset[k] = load_global(&r->offset[k]);
  }
#pragma unroll
  for (int k = 0; k < 6; ++k) factor[k] = load_global(&r->factor[k]);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const bool given = c < kGroup && channel + c < a.channels;
    value[c] = given ? load_global(a.values + static_cast<Int64>(gaussian) * a.channels + channel + c) : Real(0.f);
  }
  store_shared(&staged->place, Quad{center[0], center[1], center[2], offset[0]});
  store_shared(&staged->middle, Quad{offset[1], offset[2], factor[0], factor[1]});
  store_shared(&staged->factor, Quad{factor[2], factor[3], factor[4], factor[5]});
  store_shared(&staged->values, Quad{value[0], value[1], value[2], value[3]});
}

// Adds one Gaussian to a thread's column of voxels (x, y, z + 2k) of the brick.
template <int kGroup>
SPLAT_DEVICE void add_gaussian(const Staged* staged, Real x, Real y, Real z, Real (&sum)[kColumn][kGroup]) {
  const Quad place = load_shared(&staged->place), middle = load_shared(&staged->middle);
  const Quad factor = load_shared(&staged->factor);
  const Real dx = x - place.x - place.w, dy = y - place.y - middle.x;
  const Real u = multiply_add(factor.y, dy, factor.z * dx), v = factor.w * dx;
  const Real base = multiply_add(u, u, v * v), along = multiply_add(middle.w, dy, factor.x * dx);
  if (!(base <= Real(kVoxelCutoff))) return;
  const Quad value = load_shared(&staged->values);
  const Real values[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int k = 0; k < kColumn; ++k) {
    const Real dz = z + Real(2.f * k) - place.z - middle.y;
    const Real t = multiply_add(middle.z, dz, along), q = multiply_add(t, t, base);
    if (q <= Real(kVoxelCutoff)) {
      const Real g = power_of_two(-q);
#pragma unroll
      for (int c = 0; c < kGroup; ++c) sum[k][c] = multiply_add(values[c], g, sum[k][c]);
    }
  }
}

// Renders a brick, with one walk over its list for every kGroup channels. Synchronises after a batch is staged and
// before the next one overwrites it.
template <int kGroup>
SPLAT_DEVICE void voxel_render(const VoxelProblem& a) {
  SPLAT_SHARED(Staged, staged, kVoxelThreads);
  const int thread = thread_index();
  const int brick = static_cast<int>(block_index());
  const int brick_at[3] = {brick % a.bricks[0], brick / a.bricks[0] % a.bricks[1], brick / a.bricks[0] / a.bricks[1]};
  int corner[3];
#pragma unroll
  for (int k = 0; k < 3; ++k) corner[k] = a.start[k] + brick_at[k] * kBrick;
  const int x = thread % kBrick, y = thread / kBrick % kBrick, z = thread / (kBrick * kBrick);
  const Int64 begin = load_global(a.brick_starts + brick), end = load_global(a.brick_starts + brick + 1);
  for (int channel = 0; channel < a.channels; channel += kGroup) {
    Real sum[kColumn][kGroup];
#pragma unroll
    for (int k = 0; k < kColumn; ++k) {
#pragma unroll
      for (int c = 0; c < kGroup; ++c) sum[k][c] = 0.f;
    }
    for (Int64 first = begin; first < end; first += kVoxelThreads) {
      const int batch = end - first < kVoxelThreads ? static_cast<int>(end - first) : kVoxelThreads;
      if (thread < batch) {
        stage<kGroup>(a, load_global(a.brick_gaussians + first + thread), corner, channel, staged + thread);
      }
      barrier();
      for (int i = 0; i < batch; ++i) {
        add_gaussian<kGroup>(staged + i, Real(static_cast<float>(x)), Real(static_cast<float>(y)),
                             Real(static_cast<float>(z)), sum);
      }
      barrier();
    }
    const int at[3] = {brick_at[0] * kBrick + x, brick_at[1] * kBrick + y, brick_at[2] * kBrick + z};
#pragma unroll
    for (int k = 0; k < kColumn; ++k) {
      if (at[0] >= a.size[0] || at[1] >= a.size[1] || at[2] + 2 * k >= a.size[2]) continue;
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        if (channel + c >= a.channels) continue;
        const Int64 plane = static_cast<Int64>(channel + c) * a.size[2] + at[2] + 2 * k;
        store_global(a.volume + (plane * a.size[1] + at[1]) * a.size[0] + at[0], sum[k][c]);
      }
    }
  }
}

// ---- backward

// The sums of w, w dz and w dz^2 over a column, with w = g sum_c values_c dL/dV_c.
struct Column {
  Real w, z, zz;
};

// The Gaussian of a lane: its record in registers.
struct Lane {
  int center[3], low[3], high[3];
  Real offset[3], factor[6];

  SPLAT_DEVICE explicit Lane(const VoxelRecord* r) {
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      center[k] = load_global(&r->center[k]);
      low[k] = load_global(&r->low[k]);
      high[k] = load_global(&r->high[k]);
      offset[k] = load_global(&r->offset[k]);
    }
#pragma unroll
    for (int k = 0; k < 6; ++k) factor[k] = load_global(&r->factor[k]);
  }
  SPLAT_DEVICE Real distance(int k, int at) const { return Real(static_cast<float>(at - center[k])) - offset[k]; }
};

// Walks the column of voxels at (x, y), from the lowest to the highest. If kGroup is 1, the value is left out of w.
// Otherwise by_value also receives the sums of g dL/dV_c.
template <int kGroup>
SPLAT_DEVICE Column walk_column(const VoxelProblem& a, const Lane& lane, Real dx, Real dy, int x, int y, int channel,
                                const Real (&values)[kGroup], Real (&by_value)[kGroup]) {
  Column column{0.f, 0.f, 0.f};
  const Real u = multiply_add(lane.factor[3], dy, lane.factor[4] * dx), v = lane.factor[5] * dx;
  const Real base = multiply_add(u, u, v * v);
  if (!(base <= Real(kVoxelCutoff))) return column;
  const Real along = multiply_add(lane.factor[1], dy, lane.factor[2] * dx);
  const Int64 slice = static_cast<Int64>(a.size[0]) * a.size[1], volume = slice * a.size[2];
  const float* gradient = a.gradient + channel * volume + (lane.low[2] - a.start[2]) * slice +
                          static_cast<Int64>(y - a.start[1]) * a.size[0] + (x - a.start[0]);
  for (int z = lane.low[2]; z <= lane.high[2]; ++z, gradient += slice) {
    const Real dz = lane.distance(2, z);
    const Real t = multiply_add(lane.factor[0], dz, along), q = multiply_add(t, t, base);
    if (!(q <= Real(kVoxelCutoff))) continue;
    const Real g = power_of_two(-q);
    Real w = 0.f;
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      if (channel + c >= a.channels) continue;
      const Real part = g * load_global(gradient + c * volume);
      if (kGroup > 1) by_value[c] = by_value[c] + part;
      w = kGroup > 1 ? multiply_add(part, values[c], w) : part;
    }
    const Real weighted = w * dz;
    column.w = column.w + w;
    column.z = column.z + weighted;
    column.zz = multiply_add(weighted, dz, column.zz);
  }
  return column;
}

SPLAT_DEVICE void add_column(const Column& column, Real dx, Real dy, Real (&moments)[kMoments + 1]) {
  const Real x = column.w * dx, y = column.w * dy;
  moments[0] = moments[0] + x;
  moments[1] = moments[1] + y;
  moments[2] = moments[2] + column.z;
  moments[3] = multiply_add(x, dx, moments[3]);
  moments[4] = multiply_add(x, dy, moments[4]);
  moments[5] = multiply_add(column.z, dx, moments[5]);
  moments[6] = multiply_add(y, dy, moments[6]);
  moments[7] = multiply_add(column.z, dy, moments[7]);
  moments[8] = moments[8] + column.zz;
  moments[9] = moments[9] + column.w;
}

// One warp processes one Gaussian. Its lanes are 8 columns along x by 4 along y. There is no shared memory and no
// barrier.
template <int kGroup>
SPLAT_DEVICE void voxel_gather(const VoxelProblem& a) {
  const int index = thread_index() % 32;
  const Int64 i = static_cast<Int64>(block_index()) * (kVoxelThreads / 32) + thread_index() / 32;
  if (i >= a.count) return;
  const Lane lane(a.records + i);
  Real moments[kMoments + 1];
#pragma unroll
  for (int k = 0; k <= kMoments; ++k) moments[k] = 0.f;
  for (int channel = 0; channel < a.channels; channel += kGroup) {
    Real values[kGroup], by_value[kGroup];
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      values[c] = channel + c < a.channels ? load_global(a.values + i * a.channels + channel + c) : Real(0.f);
      by_value[c] = 0.f;
    }
    for (int y = lane.low[1] + index / kBrick; y <= lane.high[1]; y += 32 / kBrick) {
      for (int x = lane.low[0] + index % kBrick; x <= lane.high[0]; x += kBrick) {
        const Real dx = lane.distance(0, x), dy = lane.distance(1, y);
        add_column(walk_column<kGroup>(a, lane, dx, dy, x, y, channel, values, by_value), dx, dy, moments);
      }
    }
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      const Real total = warp_sum(kGroup > 1 ? by_value[c] : moments[kMoments]);
      if (index == 0 && channel + c < a.channels) store_global(a.grad_values + i * a.channels + channel + c, total);
    }
    if (kGroup == 1) {
#pragma unroll
      for (int k = 0; k < kMoments; ++k) moments[k] = moments[k] * values[0];
    }
  }
#pragma unroll
  for (int k = 0; k < kMoments; ++k) {
    const Real total = warp_sum(moments[k]);
    if (index == 0) store_global(a.sums + i * kMoments + k, total);
  }
}

// Computes the gradients of the parameters from the sums S1 of w d and S2 of w d d' in index space. With P the
// precision and F = to_world' R,
//   dL/dmean = to_index' P S1,  G = dL/dP = -S2/2,  dL/ds_c = -2 F_c' G F_c / s_c^3,  dL/dF_c = 2 G F_c / s_c^2.
SPLAT_DEVICE void voxel_chain(const VoxelProblem& a) {
  const Int64 i = static_cast<Int64>(block_index()) * kVoxelThreads + thread_index();
  if (i >= a.count) return;
  VoxelFrame frame;
  make_frame(a, i, frame);
  double S[kMoments];
#pragma unroll
  for (int k = 0; k < kMoments; ++k) S[k] = static_cast<double>(load_global(a.sums + i * kMoments + k));
  // A Gaussian that touched nothing may have a frame that is not finite. Its gradient is zero nevertheless.
  const bool touches = load_global(&a.records[i].low[0]) <= load_global(&a.records[i].high[0]);
  const double second[9] = {S[3], S[4], S[5], S[4], S[6], S[7], S[5], S[7], S[8]};
  double by_index[3] = {0., 0., 0.}, dR[9];
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const double inverse = frame.inverse_scale[c], square = inverse * inverse;
    const double F[3] = {frame.axes[c], frame.axes[3 + c], frame.axes[6 + c]};
    const double first = (F[0] * S[0] + F[1] * S[1] + F[2] * S[2]) * square;
    double GF[3], along = 0.;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      by_index[k] += F[k] * first;
      GF[k] = -0.5 * (second[k * 3] * F[0] + second[k * 3 + 1] * F[1] + second[k * 3 + 2] * F[2]);
      along += F[k] * GF[k];
    }
    store_global(a.grad_scales + i * 3 + c, Real(touches ? static_cast<float>(-2. * along * square * inverse) : 0.f));
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const double* row = a.to_world + k * 3;
      dR[k * 3 + c] = 2. * (row[0] * GF[0] + row[1] * GF[1] + row[2] * GF[2]) * square;
    }
  }
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const double sum = a.to_index[k] * by_index[0] + a.to_index[3 + k] * by_index[1] + a.to_index[6 + k] * by_index[2];
    store_global(a.grad_means + i * 3 + k, Real(touches ? static_cast<float>(sum) : 0.f));
  }
  if (touches) {
    double dq[4];
    rotation_gradient(frame.unit, dR, dq);
#pragma unroll
    for (int k = 0; k < 4; ++k) store_global(a.grad_quats + i * 4 + k, Real(static_cast<float>(dq[k] / frame.norm)));
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) store_global(a.grad_quats + i * 4 + k, Real(0.f));
  }
}

}  // namespace
