// Projected Gaussians packed to one cache line each, and a bound of the tiles each can meet.
#include "raster_bins.h"

namespace {

struct Inputs {
  const float *means2d, *conics, *opacities, *colors;
  const int32_t* radii;
  int channels;
};

// kMaxExtent of the projection: its radii reach this many standard deviations at most.
constexpr float kRadiusExtent = 3.33f;

void pack(const Inputs& in, int64_t first, int valid, Record* records) {
  Floats mean[2], conic[3], opacity, radii[2];
  read_rows<2>(in.means2d + first * 2, valid, mean);
  read_rows<3>(in.conics + first * 3, valid, conic);
  read_rows<1>(in.opacities + first, valid, &opacity);
  read_rows<2>(reinterpret_cast<const float*>(in.radii + first * 2), valid, radii);
  const Floats a = conic[0], b = conic[1], c = conic[2], log_opacity = log2(opacity);
  // An opacity above one reaches further than the radii, which stop at kRadiusExtent.
  const Floats further = 1.0f + maximum(log_opacity, Floats{}) * (2.0f * kLn2 / (kRadiusExtent * kRadiusExtent));
  const Floats stretch = square_root(further);
  for (int i = 0; i < 2; ++i) radii[i] = __builtin_convertvector(as_ints(radii[i]), Floats) * stretch;
  alignas(64) float soa[16 * kLanes] = {};
  const Floats fields[8] = {mean[0] - 0.5f, mean[1] - 0.5f, a * (-0.5f * kLog2E), b * -kLog2E,
                            c * (-0.5f * kLog2E), log_opacity, -b / c, -b / a};
  for (int i = 0; i < 8; ++i) store(soa + i * kLanes, fields[i]);
  for (int l = 0; l < valid; ++l) {
    for (int k = 0; k < in.channels; ++k) soa[(8 + k) * kLanes + l] = in.colors[(first + l) * in.channels + k];
  }
  for (int i = 0; i < 2; ++i) store(soa + (12 + i) * kLanes, radii[i]);
  store_rows(reinterpret_cast<float*>(records + first), 16, 16, valid, soa);
}

}  // namespace

extern "C" {

// sizes: C, N, width, height, tile, channels, threads. Writes records [C·N, 16], bounds [C·N], and to `totals` the bound
// of all pairs and the length of the int32 buffer of lists; 1 where that is too long for 32-bit numbers.
SPLAT_EXPORT int SPLAT_KERNEL(raster_records)(const int64_t* sizes, const float* means2d, const float* conics,
                                              const float* opacities, const float* colors, const int32_t* radii,
                                              float* records, int32_t* bounds, int64_t* totals) {
  const int64_t n = sizes[0] * sizes[1];
  const int tile = static_cast<int>(sizes[4]);
  const int64_t columns = (sizes[2] + tile - 1) / tile, rows = (sizes[3] + tile - 1) / tile;
  const Inputs in{means2d, conics, opacities, colors, radii, static_cast<int>(sizes[5])};
  if (in.channels < 1 || in.channels > 4 || (tile != 16 && tile != 32)) return 2;
  Record* out = reinterpret_cast<Record*>(records);
  constexpr int64_t kTask = 1024;
  parallel_for((n + kTask - 1) / kTask, static_cast<int>(sizes[6]), [&](int64_t task, int) {
    const int64_t end = (task + 1) * kTask < n ? (task + 1) * kTask : n;
    for (int64_t first = task * kTask; first < end; first += kLanes) {
      const int valid = static_cast<int>(end - first < kLanes ? end - first : kLanes);
      pack(in, first, valid, out);
      for (int64_t i = first; i < first + valid; ++i) {
        const bool seen = radii[i * 2] > 0 && radii[i * 2 + 1] > 0;
        const TileBox box = seen ? tile_box(out[i], columns, rows, tile) : TileBox{0, 0, 0, 0};
        bounds[i] = box.wide * box.high;
      }
    }
  });
  totals[0] = 0;
  for (int64_t i = 0; i < n; ++i) totals[0] += bounds[i];
  totals[1] = list_size(n, sizes[0] * columns * rows, totals[0]);
  return totals[1] > INT32_MAX ? 1 : 0;
}
}
