// Volumes from 3D Gaussians, and the gradients: V_c(x) = sum over i of values_ic * g_i(x), see voxelize.h.
//
// Forward: every thread owns a slab of planes and adds the Gaussians that touch it in their order, so the result does
// not depend on the number of threads. Backward: every Gaussian gathers its own gradient, always in the same order.
// Gaussians that are close in space should be close in memory (sorted along a Morton curve), because the voxels that
// they share are then in cache.
#include "voxelize.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "parallel.h"

namespace {

constexpr int kGroup = 4;         // channels rendered at once
constexpr int64_t kBatch = 64;    // Gaussians a backward task takes
constexpr int kMaxThreads = 256;  // slabs at most
static_assert(kVoxelMinWidth >= kLanes, "the narrowest crop holds a vector");
constexpr double kRowCost = 1.0, kGaussianCost = 24.0;  // measured costs, in rows

struct Gaussians {
  const float* means;   // (N, 3) world x, y, z as `Lattice` maps them
  const float* quats;   // (N, 4) w, x, y, z, of any length
  const float* scales;  // (N, 3) standard deviations, positive
  const float* values;  // (N, C)
  int64_t count;
  int64_t channels;
};

bool read_geometry(const double* geometry, const int64_t* window, Lattice& lattice, Crop& crop) {
  lattice = {geometry, geometry + 9, geometry + 18};
  for (int k = 0; k < 3; ++k) {
    const int64_t start = window[k], size = window[3 + k];
    if (size < 1 || size > (1 << 24) || start < -(1 << 28) || start > (1 << 28)) return false;
    crop.start[k] = static_cast<int>(start);
    crop.size[k] = static_cast<int>(size);
  }
  return crop.size[0] >= kVoxelMinWidth;
}

// Picks the walk for a footprint.
template <template <class> class VisitorFor, class State>
SPLAT_INLINE void walk(const Footprint& f, const Crop& crop, int z_begin, int z_end, State& state) {
  if (f.narrow) {
    VisitorFor<Narrow> visitor(state);
    if (f.factorised) walk_rows<Narrow, FactorisedRows<Narrow>>(f, crop, z_begin, z_end, visitor);
    else walk_rows<Narrow, DirectRows<Narrow>>(f, crop, z_begin, z_end, visitor);
  } else {
    VisitorFor<Wide> visitor(state);
    if (f.factorised) walk_rows<Wide, FactorisedRows<Wide>>(f, crop, z_begin, z_end, visitor);
    else walk_rows<Wide, DirectRows<Wide>>(f, crop, z_begin, z_end, visitor);
  }
}

// ---- forward

struct Target {
  float* volume;    // first channel of the group
  int64_t channel;  // voxels of a channel
  float values[kGroup];
};

template <int kChannels>
struct Add {
  template <class V>
  struct Visitor {
    const Target target;
    SPLAT_INLINE explicit Visitor(const Target& t) : target(t) {}
    SPLAT_INLINE void begin() {}
    SPLAT_INLINE void row(int64_t offset, typename V::F g, typename V::I, float) {
      for (int c = 0; c < kChannels; ++c) {
        float* p = target.volume + c * target.channel + offset;
        store<V>(p, g * target.values[c] + load<V>(p));
      }
    }
    SPLAT_INLINE void plane(float) {}
    SPLAT_INLINE void end(typename V::F) {}
  };
};

template <int kChannels>
void add_group(const Gaussians& gaussians, const Footprint* footprints, const Crop& crop, int z_begin, int z_end,
               int64_t first_channel, float* volume) {
  const int64_t channel = static_cast<int64_t>(crop.size[0]) * crop.size[1] * crop.size[2];
  Target target{volume + first_channel * channel, channel, {}};
  for (int64_t i = 0; i < gaussians.count; ++i) {
    const Footprint& f = footprints[i];
    if (f.high[2] < z_begin || f.low[2] >= z_end) continue;
    for (int c = 0; c < kChannels; ++c) {
      target.values[c] = gaussians.values[i * gaussians.channels + first_channel + c];
    }
    walk<Add<kChannels>::template Visitor>(f, crop, z_begin, z_end, target);
  }
}

void clear_planes(const Crop& crop, int64_t channels, int z_begin, int z_end, float* volume) {
  const int64_t plane = static_cast<int64_t>(crop.size[0]) * crop.size[1];
  for (int64_t c = 0; c < channels; ++c) {
    float* first = volume + (c * crop.size[2] + (z_begin - crop.start[2])) * plane;
    __builtin_memset(first, 0, static_cast<uint64_t>(plane * (z_end - z_begin)) * sizeof(float));
  }
}

void add_slab(const Gaussians& gaussians, const Footprint* footprints, const Crop& crop, int z_begin, int z_end,
              float* volume) {
  clear_planes(crop, gaussians.channels, z_begin, z_end, volume);
  for (int64_t c = 0; c < gaussians.channels;) {
    if (gaussians.channels - c >= kGroup) {
      add_group<kGroup>(gaussians, footprints, crop, z_begin, z_end, c, volume);
      c += kGroup;
    } else {
      add_group<1>(gaussians, footprints, crop, z_begin, z_end, c++, volume);
    }
  }
}

// Asks for pages of 2 MiB, if the system has them. A large new volume costs more in page faults than in Gaussians.
void prefer_huge_pages(float* volume, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(volume) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(volume) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
  // A refusal changes only the speed.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)volume, (void)bytes;
#endif
}

// Cuts the planes into `slabs` runs of about equal cost. `cost` has room for size[2] + 1 numbers.
void balance(const Gaussians& gaussians, const Footprint* footprints, const Crop& crop, int slabs, double* cost,
             int* boundaries) {
  const int first = crop.start[2], depth = crop.size[2];
  for (int z = 0; z <= depth; ++z) cost[z] = 0;
  for (int64_t i = 0; i < gaussians.count; ++i) {
    const Footprint& f = footprints[i];
    if (f.high[2] < f.low[2]) continue;
    // The cost is spread evenly over the planes. `cost` is a difference array here, which is summed below.
    const double planes = f.high[2] - f.low[2] + 1;
    const double each = kRowCost * (f.high[1] - f.low[1] + 1) + kGaussianCost / planes;
    cost[f.low[2] - first] += each;
    cost[f.high[2] - first + 1] -= each;
  }
  // Even an empty plane has a cost: it must be cleared.
  double running = 0, total = 0;
  for (int z = 0; z < depth; ++z) {
    running += cost[z];
    cost[z] = running + 1.0;
    total += cost[z];
  }
  boundaries[0] = first;
  double sum = 0;
  int slab = 1;
  for (int z = 0; z < depth && slab < slabs; ++z) {
    sum += cost[z];
    while (slab < slabs && sum * slabs >= total * slab) boundaries[slab++] = first + z + 1;
  }
  while (slab <= slabs) boundaries[slab++] = first + depth;
  boundaries[slabs] = first + depth;
}

// ---- backward

struct Moments {
  const float* gradient;  // first channel of the group
  int64_t channel;        // voxels of a channel
  float values[kGroup];
  double w, x, y, z, xx, xy, xz, yy, yz, zz;  // sums of w, w d and w d d' with w = g * sum over c of values_c dL/dV_c
  double by_value[kGroup];                    // sums of g * dL/dV_c
};

// With one channel, its value is left out of w, and by_value is the sum of w. This saves one multiplication a voxel.
template <int kChannels>
struct Gather {
  template <class V>
  struct Visitor {
    typedef typename V::F F;
    Moments& moments;
    F m0, my, mz, myy, myz, mzz;  // sums over a chunk, for each column
    F row0, row_y, row_yy;        // sums over a plane
    F by_value[kChannels];
    SPLAT_INLINE explicit Visitor(Moments& m) : moments(m) {}
    SPLAT_INLINE void begin() {
      m0 = my = mz = myy = myz = mzz = row0 = row_y = row_yy = F{};
      for (int c = 0; c < kChannels; ++c) by_value[c] = F{};
    }
    SPLAT_INLINE void row(int64_t offset, F g, typename V::I inside, float dy) {
      F weight{};
      for (int c = 0; c < kChannels; ++c) {
        // The product is masked instead of g, because infinities in lanes outside would make the product NaN.
        const F part = keep_bits(inside, g * load<V>(moments.gradient + c * moments.channel + offset));
        if (kChannels > 1) by_value[c] += part;
        weight = kChannels > 1 ? part * moments.values[c] + weight : part;
      }
      const F weight_y = weight * dy;
      row0 += weight;
      row_y += weight_y;
      row_yy = weight_y * dy + row_yy;
    }
    SPLAT_INLINE void plane(float dz) {
      const F weight_z = row0 * dz;
      m0 += row0;
      my += row_y;
      myy += row_yy;
      mz += weight_z;
      mzz = weight_z * dz + mzz;
      myz = row_y * dz + myz;
      row0 = row_y = row_yy = F{};
    }
    SPLAT_INLINE void end(F dx) {
      const F mx = m0 * dx;
      moments.w += sum_lanes(m0);
      moments.x += sum_lanes(mx);
      moments.y += sum_lanes(my);
      moments.z += sum_lanes(mz);
      moments.xx += sum_lanes(mx * dx);
      moments.xy += sum_lanes(my * dx);
      moments.xz += sum_lanes(mz * dx);
      moments.yy += sum_lanes(myy);
      moments.yz += sum_lanes(myz);
      moments.zz += sum_lanes(mzz);
      for (int c = 0; kChannels > 1 && c < kChannels; ++c) moments.by_value[c] += sum_lanes(by_value[c]);
    }
  };
};

struct Gradients {
  float* means;
  float* quats;
  float* scales;
  float* values;
};

struct Sums {
  double first[3];   // sum of w d
  double second[9];  // sum of w d d'
};

template <int kChannels>
SPLAT_INLINE void gather_group(const Footprint& f, const Crop& crop, const float* values, const float* gradient,
                               int64_t channel, Sums& sums, float* by_value) {
  Moments m{gradient, channel, {}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {}};
  for (int c = 0; c < kChannels; ++c) m.values[c] = values[c];
  walk<Gather<kChannels>::template Visitor>(f, crop, f.low[2], f.high[2] + 1, m);
  if (kChannels == 1) m.by_value[0] = m.w;
  const double factor = kChannels == 1 ? values[0] : 1.0;
  const double first[3] = {m.x, m.y, m.z};
  const double second[9] = {m.xx, m.xy, m.xz, m.xy, m.yy, m.yz, m.xz, m.yz, m.zz};
  for (int i = 0; i < 3; ++i) sums.first[i] += factor * first[i];
  for (int i = 0; i < 9; ++i) sums.second[i] += factor * second[i];
  for (int c = 0; c < kChannels; ++c) by_value[c] = static_cast<float>(m.by_value[c]);
}

// Computes the gradients of the parameters from the sums over voxels in index space. With P the precision and F =
// to_world' R,
//   dL/dmean = to_index' P S1,  G = dL/dP = -S2/2,  dL/ds_c = -2 F_c' G F_c / s_c^3,  dL/dF_c = 2 G F_c / s_c^2.
void chain(const Footprint& f, const Frame& frame, const Lattice& lattice, const Sums& sums, int64_t i,
           const Gradients& out) {
  const float* P = f.precision;
  const double* S = sums.first;
  const double by_index[3] = {P[0] * S[0] + P[1] * S[1] + P[2] * S[2], P[1] * S[0] + P[3] * S[1] + P[4] * S[2],
                              P[2] * S[0] + P[4] * S[1] + P[5] * S[2]};
  for (int a = 0; a < 3; ++a) {
    double sum = 0;
    for (int k = 0; k < 3; ++k) sum += lattice.to_index[k * 3 + a] * by_index[k];
    out.means[i * 3 + a] = static_cast<float>(sum);
  }
  double dR[9];
  for (int c = 0; c < 3; ++c) {
    const double inverse = frame.inverse_scale[c];
    double GF[3], along = 0;
    for (int k = 0; k < 3; ++k) {
      double sum = 0;
      for (int l = 0; l < 3; ++l) sum += sums.second[k * 3 + l] * frame.axes[l * 3 + c];
      GF[k] = -0.5 * sum;
      along += frame.axes[k * 3 + c] * GF[k];
    }
    out.scales[i * 3 + c] = static_cast<float>(-2.0 * along * inverse * inverse * inverse);
    for (int a = 0; a < 3; ++a) {
      double sum = 0;
      for (int k = 0; k < 3; ++k) sum += lattice.to_world[a * 3 + k] * GF[k];
      dR[a * 3 + c] = 2.0 * sum * inverse * inverse;
    }
  }
  double dq[4];
  rotation_gradient(frame.unit, dR, dq);
  for (int k = 0; k < 4; ++k) out.quats[i * 4 + k] = static_cast<float>(dq[k] / frame.norm);
}

void gather_one(const Gaussians& gaussians, const Lattice& lattice, const Crop& crop, const float* gradient, int64_t i,
                const Gradients& out) {
  const int64_t channels = gaussians.channels;
  const int64_t channel = static_cast<int64_t>(crop.size[0]) * crop.size[1] * crop.size[2];
  float* by_value = out.values + i * channels;
  Frame frame;
  Footprint f;
  if (!make_footprint(gaussians.means + i * 3, gaussians.quats + i * 4, gaussians.scales + i * 3, lattice, crop, frame,
                      f)) {
    for (int k = 0; k < 3; ++k) out.means[i * 3 + k] = out.scales[i * 3 + k] = 0.0f;
    for (int k = 0; k < 4; ++k) out.quats[i * 4 + k] = 0.0f;
    for (int64_t c = 0; c < channels; ++c) by_value[c] = 0.0f;
    return;
  }
  Sums sums{};
  for (int64_t c = 0; c < channels;) {
    const float* values = gaussians.values + i * channels + c;
    const float* group = gradient + c * channel;
    if (channels - c >= kGroup) {
      gather_group<kGroup>(f, crop, values, group, channel, sums, by_value + c);
      c += kGroup;
    } else {
      gather_group<1>(f, crop, values, group, channel, sums, by_value + c++);
    }
  }
  chain(f, frame, lattice, sums, i, out);
}

}  // namespace

// geometry: 9 doubles index to world, 9 world to index (row-major, index order x, y, z), 3 origin.
// window: start x, y, z and size x, y, z of the crop; size x at least 16. volume: (C, size z, size y, size x).
extern "C" SPLAT_EXPORT Status SPLAT_KERNEL(voxelize_forward)(const float* means, const float* quats,
                                                              const float* scales, const float* values, int64_t count,
                                                              int64_t channels, const double* geometry,
                                                              const int64_t* window, float* volume, int threads) {
  const Gaussians gaussians{means, quats, scales, values, count, channels};
  Lattice lattice;
  Crop crop;
  if (!read_geometry(geometry, window, lattice, crop)) return kBadArgument;
  if (count < 0 || channels < 1 || threads < 1) return kBadArgument;
  const int slabs = smaller(smaller(splat_ssim_usable_threads(threads), kMaxThreads), crop.size[2]);
  const int64_t footprint_bytes = count * static_cast<int64_t>(sizeof(Footprint));
  const int64_t cost_bytes = (crop.size[2] + 1) * static_cast<int64_t>(sizeof(double));
  char* scratch = static_cast<char*>(splat_ssim_scratch(footprint_bytes + cost_bytes));
  if (scratch == nullptr) return kOutOfMemory;
  double* cost = reinterpret_cast<double*>(scratch);
  Footprint* footprints = reinterpret_cast<Footprint*>(scratch + cost_bytes);
  parallel_for((count + kBatch - 1) / kBatch, threads, [&](int64_t batch, int) {
    const int64_t end = (batch + 1) * kBatch < count ? (batch + 1) * kBatch : count;
    Frame frame;
    for (int64_t i = batch * kBatch; i < end; ++i) {
      if (!make_footprint(means + i * 3, quats + i * 4, scales + i * 3, lattice, crop, frame, footprints[i])) {
        // This lies above every slab, so the footprint is skipped. Nothing else of it is set.
        footprints[i].low[2] = INT32_MAX;
        footprints[i].high[2] = INT32_MIN;
      }
    }
  });
  prefer_huge_pages(volume,
                    channels * crop.size[0] * crop.size[1] * crop.size[2] * static_cast<int64_t>(sizeof(float)));
  int boundaries[kMaxThreads + 1];
  balance(gaussians, footprints, crop, slabs, cost, boundaries);
  parallel_for(slabs, threads, [&](int64_t slab, int) {
    if (boundaries[slab] < boundaries[slab + 1]) {
      add_slab(gaussians, footprints, crop, boundaries[slab], boundaries[slab + 1], volume);
    }
  });
  return kOk;
}

// gradient: dL/dV, (C, size z, size y, size x). The outputs have the shapes of their inputs and are overwritten.
extern "C" SPLAT_EXPORT Status SPLAT_KERNEL(voxelize_backward)(const float* means, const float* quats,
                                                               const float* scales, const float* values, int64_t count,
                                                               int64_t channels, const double* geometry,
                                                               const int64_t* window, const float* gradient,
                                                               float* grad_means, float* grad_quats, float* grad_scales,
                                                               float* grad_values, int threads) {
  const Gaussians gaussians{means, quats, scales, values, count, channels};
  Lattice lattice;
  Crop crop;
  if (!read_geometry(geometry, window, lattice, crop)) return kBadArgument;
  if (count < 0 || channels < 1 || threads < 1) return kBadArgument;
  const Gradients out{grad_means, grad_quats, grad_scales, grad_values};
  parallel_for((count + kBatch - 1) / kBatch, threads, [&](int64_t batch, int) {
    const int64_t end = (batch + 1) * kBatch < count ? (batch + 1) * kBatch : count;
    for (int64_t i = batch * kBatch; i < end; ++i) gather_one(gaussians, lattice, crop, gradient, i, out);
  });
  return kOk;
}
