// SSIM of volumes in two kernels that march through the slices: forward (sums, map, or adjoint maps), then backward.
//
// A block of 256 threads owns a tile of 32 columns and Tile::kRows rows and walks through `segment` slices. It loads
// each slice with its halo once, as shifted s = x + y and d = x - y, into shared memory. There all threads filter the
// slice along the width (four adjacent outputs each). Then each thread filters along the height for its own kOutputs
// voxels and feeds the result to the filter along the slices in registers (filter.h). There are two barriers a slice.
// The loads of the next slice are issued before the first one. A segment starts kTaps - 1 slices early to fill the
// filter.
//
// Bytes a voxel, float32, of the kernels for plain images: forward reads 8 and the halo and writes 12 with adjoint
// maps; backward reads 20 and writes 4. The kernels for any tensor have one adjoint map more.
#pragma once
#include "ssim2d.h"

namespace {

constexpr int kThreads3d = 256, kTileColumns = 32, kGroup = 4, kGroups = kTileColumns / kGroup;

// The sizes that depend on the window.
template <int kTaps>
struct Tile {
  static constexpr int kHalo = kTaps - 1, kRadius = kTaps / 2;
  static constexpr int kOutputs = kTaps <= 11 ? 2 : 1;  // voxels a thread, one above the other
  static constexpr int kRows = kThreads3d / kTileColumns * kOutputs;
  static constexpr int kLoadedRows = kRows + kHalo, kLoadedColumns = kTileColumns + kHalo;
  // Distances between rows. They are an odd number of vectors of four, which keeps vector loads aligned and spreads
  // them over the banks.
  static constexpr int kPairPitch = (kLoadedColumns / 2 | 1) * 2, kMapPitch = ((kLoadedColumns + 3) / 4 | 1) * 4;
  static constexpr int kQuadPitch = kTileColumns + 1;
  static constexpr int kFilteredPitch = kTileColumns + 4;
};

struct Block3d {
  int batch, channel, x0, y0, z0;
  Int64 plane;
};

template <int kRows>
SPLAT_DEVICE Block3d block3d(const SsimProblem& a) {
  unsigned i = block_index();
  Block3d b;
  b.x0 = static_cast<int>(i % a.strips) * kTileColumns;
  i /= a.strips;
  b.y0 = static_cast<int>(i % a.tiles) * kRows;
  i /= a.tiles;
  b.z0 = static_cast<int>(i % a.segments) * a.segment;
  b.plane = i / a.segments;
  b.batch = static_cast<int>(b.plane / a.size[1]);
  b.channel = static_cast<int>(b.plane - static_cast<Int64>(b.batch) * a.size[1]);
  return b;
}

// The type of an index in a slice. An int suffices for plain images, because the launcher sends slices of 2^31 voxels
// and more to the kernels for any tensor.
template <bool kPlain>
struct SliceIndex {
  typedef Int64 Type;
};
template <>
struct SliceIndex<true> {
  typedef int Type;
};

// The elements of a slice that one thread loads, the same for the whole walk. `where` is the element's index in the
// slice for plain images, and (row << 8 | column) in the halo tile otherwise. It is -1 outside the image.
template <bool kPlain, int kCount, class Index = int>
struct SliceLoads {
  Index where[kCount];

  // With kSpares, `spare_rows` rows and `spare_columns` columns at every edge of the tile are not read.
  template <int kLoadedRows, int kPitch, int kLoadedColumns, bool kSpares>
  SPLAT_DEVICE void aim(int first_y, int first_x, int height, int width, Int64 row_stride, int spare_rows,
                        int spare_columns) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int i = thread_index() + k * kThreads3d, row = i / kPitch, column = i - row * kPitch;
      const int y = first_y + row, x = first_x + column;
      const bool spare = kSpares && (row < spare_rows || row >= kLoadedRows - spare_rows || column < spare_columns ||
                                     column >= kLoadedColumns - spare_columns);
      const bool inside = row < kLoadedRows && column < kLoadedColumns && !spare &&
                          static_cast<unsigned>(y) < static_cast<unsigned>(height) &&
                          static_cast<unsigned>(x) < static_cast<unsigned>(width);
      where[k] = !inside ? -1 : kPlain ? static_cast<Index>(y * row_stride) + x : row << 8 | column;
    }
  }

  // For plain images. `slice` is the slice's first element. The values are 0 if the slice is not `inside` the volume.
  SPLAT_DEVICE void read(const float* slice, bool inside, Real (&values)[kCount]) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      values[k] = 0.f;
      if (inside && where[k] >= 0) values[k] = load_global(slice + where[k]);
    }
  }

  // For any tensor. `corner` is the offset of the halo tile's first element.
  SPLAT_DEVICE void read(const SsimTensor& tensor, Int64 corner, bool inside, Real (&values)[kCount]) const {
    Int64 offset[kCount];
    bool wanted[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      offset[k] = corner + (where[k] >> 8) * tensor.stride[3] + (where[k] & 255) * tensor.stride[4];
      wanted[k] = inside && where[k] >= 0;
    }
    load_elements(tensor, offset, wanted, values);
  }
};

// The window's radius along the slices, and the rows and columns at each edge of the tile's halo that it does not
// reach.
template <int kTaps, bool kAxes>
struct Reach {
  int slices, spare_rows, spare_columns;

  SPLAT_DEVICE explicit Reach(const SsimProblem& a)
      : slices(kAxes ? a.radius[0] : kTaps / 2), spare_rows(kAxes ? kTaps / 2 - a.radius[1] : 0),
        spare_columns(kAxes ? kTaps / 2 - a.radius[2] : 0) {}
};

// One step of the filter along the slices, see filter.h.
template <bool kAxes, int kState>
SPLAT_DEVICE Real slice_step(const SsimProblem& a, Real (&state)[kState], Real v) {
  if constexpr (kAxes) return axis_filter_step(a, state, v);
  return filter_step(state, v, a.taps);
}

// Filters along the width: rows of (s, d) become rows of four moments.
template <int kTaps, bool kAxes>
SPLAT_DEVICE void filter_rows_of_moments(const SsimProblem& a, const Pair* slice, Quad* filtered) {
  using T = Tile<kTaps>;
#pragma unroll
  for (int k = 0; k < (T::kLoadedRows * kGroups + kThreads3d - 1) / kThreads3d; ++k) {
    const int i = thread_index() + k * kThreads3d;
    if (i >= T::kLoadedRows * kGroups) break;
    const int group = i / T::kLoadedRows, row = i - group * T::kLoadedRows;
    const Pair* const from = slice + row * T::kPairPitch + group * kGroup;
    Real h[kGroup][4];
    if constexpr (kAxes) axis_row_moments<kTaps>(a, from, h);
    else row_moments<kTaps>(a, from, h);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      store_shared(filtered + row * T::kQuadPitch + group * kGroup + j, Quad{h[j][0], h[j][1], h[j][2], h[j][3]});
    }
  }
}

// Filters along the height: the four moments of a thread's own outputs, which lie one above the other.
template <int kTaps, bool kAxes>
SPLAT_DEVICE void filter_columns_of_moments(const SsimProblem& a, const Quad* filtered,
                                            Real (&moment)[Tile<kTaps>::kOutputs][4]) {
  using T = Tile<kTaps>;
  if constexpr (kAxes) {
    Real in[4][T::kOutputs + T::kHalo], sums[T::kOutputs];
#pragma unroll
    for (int c = 0; c < T::kOutputs + T::kHalo; ++c) {
      const Quad v = load_shared(filtered + c * T::kQuadPitch);
      in[0][c] = v.x, in[1][c] = v.y, in[2][c] = v.z, in[3][c] = v.w;
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      axis_filter<kTaps>(a, kHeight, in[m], sums);
#pragma unroll
      for (int j = 0; j < T::kOutputs; ++j) moment[j][m] = sums[j];
    }
    return;
  }
#pragma unroll
  for (int c = 0; c < T::kOutputs + T::kHalo; ++c) {
    const Quad v = load_shared(filtered + c * T::kQuadPitch);
#pragma unroll
    for (int j = 0; j < T::kOutputs; ++j) {
      const int t = c - j;
      if (t >= 0 && t < kTaps) {
        const float w = tap<kTaps>(a, t);
        add_tap(moment[j][0], v.x, w, t == 0);
        add_tap(moment[j][1], v.y, w, t == 0);
        add_tap(moment[j][2], v.z, w, t == 0);
        add_tap(moment[j][3], v.w, w, t == 0);
      }
    }
  }
}

// Loads both images slice by slice into shared memory: the elements of one thread, fetched one slice ahead.
template <int kTaps, bool kPlain, bool kAxes>
struct ImageSlices {
  using T = Tile<kTaps>;
  static constexpr int kElements = T::kLoadedRows * T::kPairPitch;
  static constexpr int kLoads = (kElements + kThreads3d - 1) / kThreads3d;
  SliceLoads<kPlain, kLoads> loads;
  Int64 at_x, at_y;
  const float *plain_x, *plain_y;
  Real next_x[kLoads], next_y[kLoads];

  SPLAT_DEVICE ImageSlices(const SsimProblem& a, const Block3d& b) {
    const Reach<kTaps, kAxes> reach(a);
    const int load_z = b.z0 - reach.slices + a.lead[0], load_y = b.y0 - T::kRadius + a.lead[1];
    const int load_x = b.x0 - T::kRadius + a.lead[2];
    loads.template aim<T::kLoadedRows, T::kPairPitch, T::kLoadedColumns, kAxes>(
        load_y, load_x, a.size[3], a.size[4], a.image[0].stride[3], reach.spare_rows, reach.spare_columns);
    auto start = [&](const SsimTensor& image) {
      const Int64 at = plane_offset(image, b.batch, b.channel) + load_z * image.stride[2];
      return kPlain ? at : at + load_y * image.stride[3] + load_x * image.stride[4];
    };
    at_x = start(a.image[0]), at_y = start(a.image[1]);
    plain_x = plain_y = nullptr;
    if (kPlain) {
      plain_x = static_cast<const float*>(a.image[0].data) + at_x;
      plain_y = static_cast<const float*>(a.image[1].data) + at_y;
    }
  }

  // Fetches the next slice, which is slice z of the map.
  SPLAT_DEVICE void fetch(const SsimProblem& a, int z) {
    const bool inside = static_cast<unsigned>(z + a.lead[0]) < static_cast<unsigned>(a.size[2]);
    if constexpr (kPlain) {
      loads.read(plain_x, inside, next_x);
      loads.read(plain_y, inside, next_y);
      plain_x += a.image[0].stride[2];
      plain_y += a.image[1].stride[2];
    } else {
      loads.read(a.image[0], at_x, inside, next_x);
      loads.read(a.image[1], at_y, inside, next_y);
      at_x += a.image[0].stride[2];
      at_y += a.image[1].stride[2];
    }
  }

  SPLAT_DEVICE void put(Pair* slice, const Shift& shift) const {
    const int t = thread_index();
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if ((k + 1) * kThreads3d <= kElements || t + k * kThreads3d < kElements) {
        store_shared(slice + t + k * kThreads3d, shifted(next_x[k], next_y[k], shift));
      }
    }
  }
};

// Processes one voxel in the kernels for plain images: adds its 1 - S to dssim and stores its values of the three
// adjoint maps, unless only the `value` is wanted. `at` is the voxel's index in an adjoint map.
SPLAT_DEVICE void add_plain_voxel(const SsimProblem& a, const Real (&moment)[4], const Shift& shift, Int64 at,
                                  bool value, bool weighted, Real& dssim) {
  const Similarity r = similarity(a, moment, shift);
  if (value) {
    dssim = dssim + r.dssim;
    return;
  }
  Real by[4], v = a.dssim_scale;
  dssim_derivatives<true>(r, moment, by);
  if (weighted) {
    const Real share = load_global(static_cast<const float*>(a.weight.data) + at);  // laid out like an adjoint map
    v = share * a.dssim_scale;
    dssim = multiply_add(share, r.dssim, dssim);
  } else {
    dssim = dssim + r.dssim;
  }
  float* const here = a.partials + at;
  store_global(here, by[0] * v);
  store_global(here + a.partial_stride, by[2] * v);
  store_global(here + 2 * a.partial_stride, by[3] * v);
}

// With kAxes, the window may be any that has at most kTaps along each axis.
template <int kTaps, Forward kMode, bool kAxes = false>
SPLAT_DEVICE void forward3d(const SsimProblem& a) {
  using T = Tile<kTaps>;
  constexpr bool kPlainImages = kMode != kAny;
  using Images = ImageSlices<kTaps, kPlainImages, kAxes>;
  SPLAT_SHARED(Pair, slice, Images::kElements);
  SPLAT_SHARED(Quad, filtered, T::kLoadedRows * T::kQuadPitch);
  const Block3d b = block3d<T::kRows>(a);
  const int radius = Reach<kTaps, kAxes>(a).slices;
  const int t = thread_index(), lane = t & 31, row0 = (t >> 5) * T::kOutputs;
  const int z1 = b.z0 + a.segment < a.map_size[0] ? b.z0 + a.segment : a.map_size[0];
  Images images(a, b);
  const Shift shift = plane_shift<kPlainImages>(a, b.batch, b.channel);
  const bool value = kMode == kValue || (kMode == kPlain && !a.partials);
  const bool weighted = kMode == kWeighted || (kMode == kPlain && a.weight.data);
  Real state[T::kOutputs][4][T::kHalo], dssim = 0.f, l1 = 0.f;
  AnyVoxel any;
  bool stores[T::kOutputs];
#pragma unroll
  for (int j = 0; j < T::kOutputs; ++j) {
    clear(state[j]);
    stores[j] = b.y0 + row0 + j < a.map_size[1] && b.x0 + lane < a.map_size[2];
  }
  // Index of the thread's first output in an adjoint map.
  Int64 place =
      (b.plane * a.map_size[0] + b.z0) * a.map_slice + static_cast<Int64>(b.y0 + row0) * a.map_size[2] + b.x0 + lane;
  auto step = [&](int z, bool emits) {
    images.put(slice, shift);
    images.fetch(a, z + 1);
    barrier();
    filter_rows_of_moments<kTaps, kAxes>(a, slice, filtered);
    if (value && z >= b.z0 && z < z1) {
#pragma unroll
      for (int j = 0; j < T::kOutputs; ++j) {
        const Pair* own = slice + (row0 + j + T::kRadius) * T::kPairPitch + lane + T::kRadius;
        l1 = l1 + absolute(shift.d + load_shared(&own->y));
      }
    }
    barrier();
    Real h[T::kOutputs][4];
    filter_columns_of_moments<kTaps, kAxes>(a, filtered + row0 * T::kQuadPitch + lane, h);
#pragma unroll
    for (int j = 0; j < T::kOutputs; ++j) {
      Real moment[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) moment[m] = slice_step<kAxes>(a, state[j][m], h[j][m]);
      if (!emits || !stores[j]) continue;
      const Int64 at = place + j * static_cast<Int64>(a.map_size[2]);
      if (kMode == kAny) {
        any.add(a, moment, shift, b.batch, b.channel, z - radius, b.y0 + row0 + j, b.x0 + lane, at);
      } else {
        add_plain_voxel(a, moment, shift, at, value, weighted, dssim);
      }
    }
    if (emits) place += a.map_slice;
  };
  images.fetch(a, b.z0 - radius);
#pragma unroll 1
  for (int z = b.z0 - radius; z < b.z0 + radius; ++z) step(z, false);
#pragma unroll 1
  for (int z = b.z0 + radius; z < z1 + radius; ++z) step(z, true);
  if (!a.block_sums) return;
  block_sum<kThreads3d>(kMode == kAny ? any.dssim : dssim, block_sum_place(a, kSumDssim));
  if (kMode == kAny && a.similarities) block_sum<kThreads3d>(any.contrast, block_sum_place(a, kSumContrast));
  if (value) block_sum<kThreads3d>(l1, block_sum_place(a, kSumL1));
}

// Filters one adjoint map along the width: kGroup adjacent outputs of a row.
template <int kTaps, bool kAxes>
SPLAT_DEVICE void filter_rows_of_map(const SsimProblem& a, const Real* slice, Real* filtered, int row, int group) {
  using T = Tile<kTaps>;
  constexpr int kReads = (kGroup + T::kHalo + 3) / 4;
  Real in[4 * kReads], sums[kGroup];
#pragma unroll
  for (int k = 0; k < kReads; ++k) {
    const Quad v = load_shared(reinterpret_cast<const Quad*>(slice + row * T::kMapPitch + group * kGroup) + k);
    in[4 * k] = v.x;
    in[4 * k + 1] = v.y;
    in[4 * k + 2] = v.z;
    in[4 * k + 3] = v.w;
  }
  if constexpr (kAxes) {
    axis_filter<kTaps>(a, kWidth, in, sums);
  } else {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
#pragma unroll
      for (int t = 0; t < kTaps; ++t) add_tap(sums[j], in[j + t], tap<kTaps>(a, t), t == 0);
    }
  }
  store_shared(reinterpret_cast<Quad*>(filtered + row * T::kFilteredPitch + group * kGroup),
               Quad{sums[0], sums[1], sums[2], sums[3]});
}

// Filters one adjoint map along the height: a thread's own outputs.
template <int kTaps, bool kAxes>
SPLAT_DEVICE void filter_columns_of_map(const SsimProblem& a, const Real* filtered,
                                        Real (&sums)[Tile<kTaps>::kOutputs]) {
  using T = Tile<kTaps>;
  if constexpr (kAxes) {
    Real in[T::kOutputs + T::kHalo];
#pragma unroll
    for (int c = 0; c < T::kOutputs + T::kHalo; ++c) in[c] = load_shared(filtered + c * T::kFilteredPitch);
    axis_filter<kTaps>(a, kHeight, in, sums);
    return;
  }
#pragma unroll
  for (int c = 0; c < T::kOutputs + T::kHalo; ++c) {
    const Real v = load_shared(filtered + c * T::kFilteredPitch);
#pragma unroll
    for (int j = 0; j < T::kOutputs; ++j) {
      const int t = c - j;
      if (t >= 0 && t < kTaps) add_tap(sums[j], v, tap<kTaps>(a, t), t == 0);
    }
  }
}

// Loads the adjoint maps (three for plain images, else four) slice by slice into shared memory: the elements of one
// thread, fetched one slice ahead.
template <int kTaps, bool kPlain, bool kAxes>
struct AdjointSlices {
  using T = Tile<kTaps>;
  static constexpr int kMaps = kPlain ? 3 : 4, kElements = T::kLoadedRows * T::kMapPitch;
  static constexpr int kLoads = (kElements + kThreads3d - 1) / kThreads3d;
  SliceLoads<true, kLoads, typename SliceIndex<kPlain>::Type> loads;
  Int64 slice_voxels;
  const float* maps[kMaps];
  Real next[kMaps][kLoads];

  SPLAT_DEVICE AdjointSlices(const SsimProblem& a, const Block3d& b) {
    const Reach<kTaps, kAxes> reach(a);
    loads.template aim<T::kLoadedRows, T::kMapPitch, T::kLoadedColumns, kAxes>(
        b.y0 - T::kRadius - a.lead[1], b.x0 - T::kRadius - a.lead[2], a.map_size[1], a.map_size[2], a.map_size[2],
        reach.spare_rows, reach.spare_columns);
    // This equals a.map_slice. If that is used instead, ptxas 13.0 runs out of registers and spills.
    slice_voxels = static_cast<Int64>(a.map_size[1]) * a.map_size[2];
    const int load_z = b.z0 - reach.slices - a.lead[0];
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
      maps[m] = a.partials + m * a.partial_stride + (b.plane * a.map_size[0] + load_z) * slice_voxels;
    }
  }

  SPLAT_DEVICE void fetch(const SsimProblem& a, int z) {
    const bool inside = static_cast<unsigned>(z - a.lead[0]) < static_cast<unsigned>(a.map_size[0]);
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
      loads.read(maps[m], inside, next[m]);
      maps[m] += slice_voxels;
    }
  }

  SPLAT_DEVICE void put(Real* slice) const {
    const int t = thread_index();
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (t + k * kThreads3d < kElements) {
#pragma unroll
        for (int m = 0; m < kMaps; ++m) store_shared(slice + m * kElements + t + k * kThreads3d, next[m][k]);
      }
    }
  }
};

// A thread's own voxels, one above the other, in the slice of the next output, of both images, both gradients and the
// weight.
template <int kTaps, bool kPlain>
struct OwnVoxels {
  static constexpr int kOutputs = Tile<kTaps>::kOutputs, kMaps = kPlain ? 3 : 4;
  Int64 at_x, at_y, at_1, at_2, at_weight;
  bool stores[kOutputs];

  SPLAT_DEVICE OwnVoxels(const SsimProblem& a, const Block3d& b, int row0, int lane) {
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) stores[j] = b.y0 + row0 + j < a.size[3] && b.x0 + lane < a.size[4];
    auto start = [&](const SsimTensor& tensor) {
      return plane_offset(tensor, b.batch, b.channel) + b.z0 * tensor.stride[2] + (b.y0 + row0) * tensor.stride[3] +
             (b.x0 + lane) * tensor.stride[4];
    };
    at_x = start(a.image[0]), at_y = start(a.image[1]), at_1 = start(a.grad[0]), at_2 = start(a.grad[1]);
    at_weight = start(a.l1_weight);
  }

  static SPLAT_DEVICE Real load(const SsimTensor& image, Int64 at, int j) {
    at += j * image.stride[3];
    return kPlain ? load_global(static_cast<const float*>(image.data) + at) : load_element(image, at);
  }

  // Reads s, shifted, and d, not shifted. They are 0 outside the images and if the slice is not `wanted`.
  SPLAT_DEVICE void read(const SsimProblem& a, const Shift& shift, bool wanted, Real (&s)[kOutputs],
                         Real (&d)[kOutputs]) const {
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      s[j] = d[j] = 0.f;
      if (wanted && stores[j]) {
        const Real x = load(a.image[0], at_x, j), y = load(a.image[1], at_y, j);
        s[j] = shifted_sum(x, y, shift);
        d[j] = x - y;
      }
    }
  }

  // Stores the gradients of voxel j from its filtered adjoint maps f, and adds |d| to l1.
  SPLAT_DEVICE void store(const SsimProblem& a, const Shift& shift, int j, Real s, Real d, const Real (&f)[kMaps],
                          Real& l1) const {
    Real share = 1.f;
    if (!kPlain && a.l1_weight.data) share = load_element(a.l1_weight, at_weight + j * a.l1_weight.stride[3]);
    const Real sign = times_sign(kPlain ? Real(a.l1_scale) : share * a.l1_scale, d);
    l1 = multiply_add(share, absolute(d), l1);
    if (kPlain) {
      const Real gradient = multiply_add(2.f, multiply_add(d - shift.d, f[2], s * f[1]), f[0]) + sign;
      store_global(static_cast<float*>(a.grad[0].data) + at_1 + j * a.grad[0].stride[3], gradient);
    } else {
      const Real by_s = multiply_add(2.f, s * f[2], f[0]);
      const Real by_d = multiply_add(2.f, (d - shift.d) * f[kMaps - 1], f[1]) + sign;
      if (a.grad[0].data) store_element(a.grad[0], at_1 + j * a.grad[0].stride[3], by_s + by_d);
      if (a.grad[1].data) store_element(a.grad[1], at_2 + j * a.grad[1].stride[3], by_s - by_d);
    }
  }

  SPLAT_DEVICE void advance(const SsimProblem& a) {
    at_x += a.image[0].stride[2];
    at_y += a.image[1].stride[2];
    at_1 += a.grad[0].stride[2];
    if (!kPlain) {
      at_2 += a.grad[1].stride[2];
      at_weight += a.l1_weight.stride[2];
    }
  }
};

// Filters all adjoint maps along the width. The threads divide the rows and groups of columns among themselves.
template <int kTaps, int kMaps, bool kAxes>
SPLAT_DEVICE void filter_rows_of_maps(const SsimProblem& a, const Real* slice, Real* filtered) {
  using T = Tile<kTaps>;
  constexpr int kItems = T::kLoadedRows * kGroups;
#pragma unroll
  for (int k = 0; k < (kItems + kThreads3d - 1) / kThreads3d; ++k) {
    const int i = thread_index() + k * kThreads3d, group = i / T::kLoadedRows, row = i - group * T::kLoadedRows;
    if (i < kItems) {
#pragma unroll
      for (int m = 0; m < kMaps; ++m) {
        filter_rows_of_map<kTaps, kAxes>(a, slice + m * T::kLoadedRows * T::kMapPitch,
                                         filtered + m * T::kLoadedRows * T::kFilteredPitch, row, group);
      }
    }
  }
}

// Gradients from the adjoint maps, as in backward2d.
template <int kTaps, bool kPlain, bool kAxes = false>
SPLAT_DEVICE void backward3d(const SsimProblem& a) {
  using T = Tile<kTaps>;
  using Maps = AdjointSlices<kTaps, kPlain, kAxes>;
  constexpr int kMaps = Maps::kMaps, kFiltered = T::kLoadedRows * T::kFilteredPitch;
  SPLAT_SHARED(Real, slice, kMaps * Maps::kElements);
  SPLAT_SHARED(Real, filtered, kMaps * kFiltered);
  const Block3d b = block3d<T::kRows>(a);
  const int radius = Reach<kTaps, kAxes>(a).slices;
  const int t = thread_index(), lane = t & 31, row0 = (t >> 5) * T::kOutputs;
  const int z1 = b.z0 + a.segment < a.size[2] ? b.z0 + a.segment : a.size[2];
  Maps adjoint(a, b);
  const Shift shift = plane_shift<kPlain>(a, b.batch, b.channel);
  Real state[T::kOutputs][kMaps][T::kHalo], l1 = 0.f;
#pragma unroll
  for (int j = 0; j < T::kOutputs; ++j) clear(state[j]);
  OwnVoxels<kTaps, kPlain> voxels(a, b, row0, lane);
  auto step = [&](int z, bool emits) {
    Real s[T::kOutputs], d[T::kOutputs];
    voxels.read(a, shift, emits, s, d);
    adjoint.put(slice);
    adjoint.fetch(a, z + 1);
    barrier();
    filter_rows_of_maps<kTaps, kMaps, kAxes>(a, slice, filtered);
    barrier();
    Real h[kMaps][T::kOutputs];
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
      filter_columns_of_map<kTaps, kAxes>(a, filtered + m * kFiltered + row0 * T::kFilteredPitch + lane, h[m]);
    }
#pragma unroll
    for (int j = 0; j < T::kOutputs; ++j) {
      Real f[kMaps];
#pragma unroll
      for (int m = 0; m < kMaps; ++m) f[m] = slice_step<kAxes>(a, state[j][m], h[m][j]);
      if (emits && voxels.stores[j]) voxels.store(a, shift, j, s[j], d[j], f, l1);
    }
    if (emits) voxels.advance(a);
  };
  adjoint.fetch(a, b.z0 - radius);
#pragma unroll 1
  for (int z = b.z0 - radius; z < b.z0 + radius; ++z) step(z, false);
#pragma unroll 1
  for (int z = b.z0 + radius; z < z1 + radius; ++z) step(z, true);
  if (a.block_sums) block_sum<kThreads3d>(l1, block_sum_place(a, kSumL1));
}

}  // namespace
