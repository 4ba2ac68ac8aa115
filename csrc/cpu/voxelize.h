// A 3D Gaussian on a voxel lattice: its footprint, and the walk over the voxels inside it.
//
//   g(x) = exp(-q(x)/2),  q(x) = (x - mean)' Sigma^-1 (x - mean),  g = 0 where q > 9 (Mahalanobis distance 3)
//
// All computation happens in index space. An affine map takes voxel indices to the world in which the Gaussians are
// given. The order of axes here is x (the array's last, contiguous axis), y, z. A crop is a window of the infinite
// lattice, and a voxel gets the same bits from every crop that contains it.
#pragma once
#include "../gaussian.h"
#include "layout.h"
#include "simd.h"

namespace {

constexpr float kCutoff = 9.0f;                  // squared Mahalanobis distance
constexpr float kSmallest = 0.011108996538242f;  // exp(-kCutoff / 2)
constexpr int kTable = 64;                       // most rows of the factorised walk, and planes handled at once
// Largest exponent of one factor in the factorised walk. Its rounding, 32 * 2^-24, bounds the relative error of g.
constexpr double kFactorBound = 32.0;

// The part of the lattice that is rendered, x, y, z.
struct Crop {
  int start[3];
  int size[3];
};

// Voxel indices to world and back: world = to_world (row-major 3x3) * index + origin.
struct Lattice {
  const double* to_world;
  const double* to_index;
  const double* origin;
};

// The rotation of a Gaussian, and other values that backward needs again.
struct Frame {
  double rotation[9];  // row-major, columns are the axes of the Gaussian
  double unit[4];      // normalised quaternion w, x, y, z
  double norm;         // of the quaternion
  double axes[9];      // [k][c]: to_world' * rotation
  double inverse_scale[3];
};

struct Footprint {
  int center[3];        // voxel nearest to the mean
  float offset[3];      // mean - center
  float precision[6];   // xx xy xz yy yz zz
  float whitening[9];   // [c][k]: q = sum over c of (whitening_c . d)^2
  int low[3], high[3];  // bounding box inside the crop, inclusive
  int bottom;           // lowest plane of the Gaussian, inside the crop or not
  float slope;          // the y interval of the ellipsoid's shadow on (y, z) is slope * dz +- a half width:
  float y_variance;     // half^2 = y_variance * (cutoff - dz^2 * inverse_zz)
  float inverse_zz;
  bool factorised;  // exponent bounds and row count permit the factorised walk
  bool narrow;      // at most Narrow::kWidth voxels wide
};

SPLAT_INLINE double square(double a) { return a * a; }
SPLAT_INLINE int smaller(int a, int b) { return a < b ? a : b; }
SPLAT_INLINE int larger(int a, int b) { return a > b ? a : b; }

inline void make_frame(const float* quat, const float* scale, const Lattice& lattice, Frame& frame) {
  const double q[4] = {quat[0], quat[1], quat[2], quat[3]};
  frame.norm = __builtin_sqrt(square(q[0]) + square(q[1]) + square(q[2]) + square(q[3]));
  const double inverse = 1.0 / frame.norm;
  for (int i = 0; i < 4; ++i) frame.unit[i] = q[i] * inverse;
  rotation_of(frame.unit, frame.rotation);
  for (int c = 0; c < 3; ++c) {
    frame.inverse_scale[c] = 1.0 / scale[c];
    for (int k = 0; k < 3; ++k) {
      double sum = 0;
      for (int a = 0; a < 3; ++a) sum += lattice.to_world[a * 3 + k] * frame.rotation[a * 3 + c];
      frame.axes[k * 3 + c] = sum;
    }
  }
}

// Covariance in index space, xx xy xz yy yz zz.
inline void index_covariance(const Frame& frame, const float* scale, const Lattice& lattice, double* covariance) {
  double M[9];
  for (int k = 0; k < 3; ++k) {
    for (int c = 0; c < 3; ++c) {
      double sum = 0;
      for (int a = 0; a < 3; ++a) sum += lattice.to_index[k * 3 + a] * frame.rotation[a * 3 + c];
      M[k * 3 + c] = sum * scale[c];
    }
  }
  for (int i = 0, entry = 0; i < 3; ++i) {
    for (int j = i; j < 3; ++j, ++entry) {
      covariance[entry] = M[i * 3] * M[j * 3] + M[i * 3 + 1] * M[j * 3 + 1] + M[i * 3 + 2] * M[j * 3 + 2];
    }
  }
}

// Whether g may be split into factors of x and y, of x and z, and of y and z without losing precision.
inline bool can_factorise(const double* precision, const double* extent) {
  const double xz = __builtin_fabs(precision[2]) * extent[0] * extent[2] + 0.5 * precision[5] * square(extent[2]);
  const double yz = __builtin_fabs(precision[4]) * extent[1] * extent[2];
  const double xy = 0.5 * precision[0] * square(extent[0]) + __builtin_fabs(precision[1]) * extent[0] * extent[1] +
                    0.5 * precision[3] * square(extent[1]);
  return xy < kFactorBound && xz < kFactorBound && yz < kFactorBound && 2 * extent[1] + 2 < kTable;
}

// Fills the footprint. Returns false if the Gaussian touches no voxel of the crop or is not finite.
inline bool make_footprint(const float* mean, const float* quat, const float* scale, const Lattice& lattice,
                           const Crop& crop, Frame& frame, Footprint& footprint) {
  make_frame(quat, scale, lattice, frame);
  double covariance[6], precision[6] = {}, extent[3];
  index_covariance(frame, scale, lattice, covariance);
  const int diagonal[3] = {0, 3, 5};
  for (int k = 0; k < 3; ++k) {
    double at = 0;
    for (int a = 0; a < 3; ++a) at += lattice.to_index[k * 3 + a] * (mean[a] - lattice.origin[a]);
    // Written so that NaN fails.
    if (!(__builtin_fabs(at) < 5e8)) return false;
    extent[k] = 3.0 * __builtin_sqrt(covariance[diagonal[k]]);
    // A little wider than exact: the test on g must decide, not rounding here.
    const double low = __builtin_ceil(at - extent[k] - 1e-5), high = __builtin_floor(at + extent[k] + 1e-5);
    const int first = crop.start[k], last = crop.start[k] + crop.size[k] - 1;
    if (!(low <= last && high >= first)) return false;
    footprint.low[k] = low > first ? static_cast<int>(low) : first;
    footprint.high[k] = high < last ? static_cast<int>(high) : last;
    const double nearest = __builtin_floor(at + 0.5);
    footprint.center[k] = static_cast<int>(nearest);
    footprint.offset[k] = static_cast<float>(at - nearest);
    if (k == 0) footprint.narrow = high - low < Narrow::kWidth;
    if (k == 2) footprint.bottom = low > -1e9 ? static_cast<int>(low) : -1000000000;
  }
  for (int c = 0; c < 3; ++c) {
    double row[3];
    for (int k = 0; k < 3; ++k) {
      row[k] = frame.axes[k * 3 + c] * frame.inverse_scale[c];
      footprint.whitening[c * 3 + k] = static_cast<float>(row[k]);
    }
    for (int i = 0, entry = 0; i < 3; ++i) {
      for (int j = i; j < 3; ++j, ++entry) precision[entry] += row[i] * row[j];
    }
  }
  for (int i = 0; i < 6; ++i) footprint.precision[i] = static_cast<float>(precision[i]);
  const double inverse_zz = 1.0 / covariance[5];
  footprint.slope = static_cast<float>(covariance[4] * inverse_zz);
  footprint.y_variance = static_cast<float>(covariance[3] - square(covariance[4]) * inverse_zz);
  footprint.inverse_zz = static_cast<float>(inverse_zz);
  footprint.factorised = can_factorise(precision, extent);
  return true;
}

// Converts to int. Very large values are clamped, because their conversion would be undefined.
SPLAT_INLINE int to_int(float a) { return static_cast<int>(a < -5e8f ? -5e8f : a > 5e8f ? 5e8f : a); }

// For up to kTable planes from plane z on, the rows [first, last] that the ellipsoid may touch.
struct RowRanges {
  int first[kTable];
  int last[kTable];
  SPLAT_INLINE RowRanges(const Footprint& f, int z, int planes) {
    for (int i = 0; i < planes; ++i) {
      const float dz = static_cast<float>(z + i - f.center[2]) - f.offset[2];
      const float square_half = f.y_variance * (kCutoff - dz * dz * f.inverse_zz);
      const float half = __builtin_sqrtf(square_half > 0.0f ? square_half : 0.0f) + 1e-3f;
      const float middle = f.offset[1] + f.slope * dz;
      const int low = f.center[1] + to_int(__builtin_ceilf(middle - half));
      const int high = f.center[1] + to_int(__builtin_floorf(middle + half));
      first[i] = low > f.low[1] ? low : f.low[1];
      last[i] = high < f.high[1] ? high : f.high[1];
    }
  }
};

// table[i - low] = exp(a + b t - c t^2 / 2) with t = i - offset, for low <= i <= high. Each step to the next i
// multiplies the value by a ratio, and the ratio by exp(-c): two multiplications instead of an exponential. The steps
// start at multiples of 16 and are at most kReach in number. This bounds the rounding, and makes crops agree.
template <class V>
SPLAT_INLINE void fill_table(typename V::F* table, int low, int high, float offset, typename V::F a, typename V::F b,
                             float c, typename V::I valid) {
  typedef typename V::F F;
  constexpr int kReach = 8;
  const F second = exponential<V>(broadcast<V>(-c));
  for (int start = (low + kReach) & ~(2 * kReach - 1); start - kReach <= high; start += 2 * kReach) {
    const float t = static_cast<float>(start) - offset;
    const F value = keep_bits(valid, exponential<V>(b * t + a + broadcast<V>(-0.5f * c * t * t)));
    F up = value, ratio = exponential<V>(b - c * (t + 0.5f));
    for (int i = start; i <= smaller(high, start + kReach - 1); ++i, up *= ratio, ratio *= second) {
      if (i >= low) table[i - low] = up;
    }
    F down = value;
    ratio = exponential<V>(c * (t - 0.5f) - b);
    for (int i = start - 1; i >= larger(low, start - kReach); --i) {
      down *= ratio;
      ratio *= second;
      if (i <= high) table[i - low] = down;
    }
  }
}

// g over one vector-wide chunk of columns, from tables: with d = (dx, dy, dz) and P the precision,
//   g = xy[y] * xz[z] * yz(y, z),  xy = exp(-(Pxx dx^2 + 2 Pxy dx dy + Pyy dy^2)/2),
//   xz = exp(-(2 Pxz dx dz + Pzz dz^2)/2),  yz = exp(-Pyz dy dz).
// Inside the footprint, xy <= 1 and the other factors are below exp(kFactorBound). Outside, xy = 0, and a product that
// is not a number fails the comparison with the cut-off. From plane to plane, yz is updated by a multiplication. It is
// computed afresh every kRestart planes, counted from the Gaussian's own lowest plane, so that crops agree.
template <class V>
struct FactorisedRows {
  typedef typename V::F F;
  static constexpr int kRestart = 8;
  static constexpr int kRowVectors = kTable / V::kWidth;
  const Footprint& f;
  F xy[kTable], xz[kTable];
  F yz[kRowVectors], yz_step[kRowVectors];
  int row_vectors;
  const F* xy_first;
  const float* yz_first;

  SPLAT_INLINE FactorisedRows(const Footprint& footprint, F dx, typename V::I valid, int first_z, int planes)
      : f(footprint) {
    const float* P = f.precision;
    const int low = f.low[1] - f.center[1], high = f.high[1] - f.center[1], bottom = first_z - f.center[2];
    fill_table<V>(xy, low, high, f.offset[1], dx * dx * (-0.5f * P[0]), dx * -P[1], P[3], valid);
    fill_table<V>(xz, bottom, bottom + planes - 1, f.offset[2], F{}, dx * -P[2], P[5], ~typename V::I{});
    row_vectors = (high - low + V::kWidth) / V::kWidth;
    for (int i = 0; i < row_vectors; ++i) yz_step[i] = exponential<V>(dy_vector(i) * -P[4]);
    const int start = first_z - (first_z - f.bottom) % kRestart;
    restart(start);
    for (int z = start; z < first_z; ++z) step();
  }
  SPLAT_INLINE F dy_vector(int i) const {
    return lane_numbers<V>() + static_cast<float>(f.low[1] + i * V::kWidth - f.center[1]) - f.offset[1];
  }
  SPLAT_INLINE void restart(int z) {
    const float dz = static_cast<float>(z - f.center[2]) - f.offset[2];
    for (int i = 0; i < row_vectors; ++i) yz[i] = exponential<V>(dy_vector(i) * (-f.precision[4] * dz));
  }
  SPLAT_INLINE void step() {
    for (int i = 0; i < row_vectors; ++i) yz[i] *= yz_step[i];
  }
  SPLAT_INLINE void begin_plane(float, int first) {
    xy_first = xy + (first - f.low[1]);
    yz_first = reinterpret_cast<const float*>(yz) + (first - f.low[1]);
  }
  SPLAT_INLINE void end_plane(int z) {
    if ((z + 1 - f.bottom) % kRestart == 0) restart(z + 1);
    else step();
  }
  SPLAT_INLINE F row(int plane, int i, float) const { return xy_first[i] * xz[plane] * yz_first[i]; }
};

// The same with one exponential a voxel, from whitened coordinates. This is exact for thin and for large Gaussians too.
template <class V>
struct DirectRows {
  typedef typename V::F F;
  const Footprint& f;
  F u[3];
  typename V::I valid;
  float plane[3];

  SPLAT_INLINE DirectRows(const Footprint& footprint, F dx, typename V::I valid_, int, int)
      : f(footprint), valid(valid_) {
    for (int c = 0; c < 3; ++c) u[c] = dx * f.whitening[c * 3];
  }
  SPLAT_INLINE void begin_plane(float dz, int) {
    for (int c = 0; c < 3; ++c) plane[c] = f.whitening[c * 3 + 2] * dz;
  }
  SPLAT_INLINE void end_plane(int) {}
  SPLAT_INLINE F row(int, int, float dy) const {
    F q{};
    for (int c = 0; c < 3; ++c) {
      const F t = u[c] + (f.whitening[c * 3 + 1] * dy + plane[c]);
      q = t * t + q;
    }
    // Past the cut-off only the result of the comparison matters. The limit keeps the exponential in its range.
    q = q < broadcast<V>(2 * kCutoff) ? q : broadcast<V>(2 * kCutoff);
    return keep_bits(valid, exponential<V>(q * -0.5f));
  }
};

// Visits the rows of the footprint in planes [z_begin, z_end), one vector-wide chunk of columns after the other:
//   visitor.begin(), for each plane visitor.row(offset, g, inside, dy) ... visitor.plane(dz), and visitor.end(dx).
// `offset` is the position of the chunk's first voxel in a channel of the crop. `inside` marks the lanes where g
// counts; g is 0 in the others. A chunk at the end of a row is shifted left, so that whole vectors may be loaded and
// stored. So the crop must be at least kLanes wide.
template <class V, class Rows, class Visitor>
SPLAT_INLINE void walk_rows(const Footprint& footprint, const Crop& window, int z_begin, int z_end, Visitor& visitor) {
  typedef typename V::F F;
  typedef typename V::I I;
  // Nothing points to these copies, so they stay in registers whatever the visitor stores.
  const Footprint f = footprint;
  const Crop crop = window;
  const int bottom = larger(f.low[2], z_begin), top = smaller(f.high[2], z_end - 1);
  const int last_start = crop.start[0] + crop.size[0] - V::kWidth;
  for (int block = bottom; block <= top; block += kTable) {
    const int planes = smaller(kTable, top - block + 1);
    const RowRanges ranges(f, block, planes);
    for (int begin = f.low[0]; begin <= f.high[0]; begin += V::kWidth) {
      const int x0 = smaller(begin, last_start);
      const F column = lane_numbers<V>() + static_cast<float>(x0 - f.center[0]);
      const I valid = (I)(column >= broadcast<V>(static_cast<float>(begin - f.center[0]))) &
                      (I)(column <= broadcast<V>(static_cast<float>(f.high[0] - f.center[0])));
      const F dx = column - f.offset[0];
      Rows rows(f, dx, valid, block, planes);
      visitor.begin();
      for (int i = 0; i < planes; ++i) {
        const int z = block + i, first = ranges.first[i], count = ranges.last[i] - first + 1;
        const float dz = static_cast<float>(z - f.center[2]) - f.offset[2];
        rows.begin_plane(dz, first);
        const int64_t row = static_cast<int64_t>(z - crop.start[2]) * crop.size[1] + (first - crop.start[1]);
        int64_t offset = row * crop.size[0] + (x0 - crop.start[0]);
        float steps = static_cast<float>(first - f.center[1]);
        for (int j = 0; j < count; ++j, offset += crop.size[0], steps += 1.0f) {
          const float dy = steps - f.offset[1];
          const F g = rows.row(i, j, dy);
          const I inside = (I)(g >= broadcast<V>(kSmallest));
          visitor.row(offset, keep_bits(inside, g), inside, dy);
        }
        rows.end_plane(z);
        visitor.plane(dz);
      }
      visitor.end(dx);
    }
  }
}

}  // namespace
