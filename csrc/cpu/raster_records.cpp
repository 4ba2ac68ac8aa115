// Packs projected Gaussians into one cache line each, and bounds the tiles that each can meet.
#include "raster_bins.h"

namespace {

struct Inputs {
  const float *means2d, *conics, *opacities, *colors;
  const int32_t* radii;
  int channels;
  float last_x, last_y;  // last pixel of the last tile
  int tile_bits;         // log2 of the tile's side
};

// The same as kMaxExtent of the projection, whose radii reach at most this many standard deviations.
constexpr float kRadiusExtent = 3.33f;

// The first tile between two pixel coordinates, and the number of tiles. `low` is not negative.
SPLAT_INLINE void tile_range(const Inputs& in, Floats low, Floats high, Ints& first, Ints& count) {
  Ints begin = __builtin_convertvector(low, Ints);
  begin -= __builtin_convertvector(begin, Floats) < low;  // rounded up: a comparison gives -1
  const Ints end = __builtin_convertvector(high, Ints);
  first = begin >> in.tile_bits;
  count = ((end >> in.tile_bits) - first + 1) & (begin <= end) & (high >= 0.0f);
}

// Writes the records and tile boxes of kLanes instances.
void pack(const Inputs& in, int64_t first, int valid, Record* records, int32_t* boxes) {
  Floats mean[2], conic[3], opacity, radii[2];
  read_rows<2>(in.means2d + first * 2, valid, mean);
  read_rows<3>(in.conics + first * 3, valid, conic);
  read_rows<1>(in.opacities + first, valid, &opacity);
  read_rows<2>(reinterpret_cast<const float*>(in.radii + first * 2), valid, radii);
  const Floats a = conic[0], b = conic[1], c = conic[2], log_opacity = log2(opacity);
  // With an opacity above 1, alpha reaches farther than the radii, which stop at kRadiusExtent.
  const Floats further = 1.0f + maximum(log_opacity, Floats{}) * (2.0f * kLn2 / (kRadiusExtent * kRadiusExtent));
  const Floats stretch = square_root(further);
  const Ints seen = (bits_as<Ints>(radii[0]) > 0) & (bits_as<Ints>(radii[1]) > 0);
  for (int i = 0; i < 2; ++i) radii[i] = __builtin_convertvector(bits_as<Ints>(radii[i]), Floats) * stretch;
  alignas(64) float soa[16 * kLanes] = {};
  const Floats fields[8] = {
      mean[0] - 0.5f, mean[1] - 0.5f, a * (-0.5f * kLog2E), b * -kLog2E, c * (-0.5f * kLog2E), log_opacity,
      -b / c,         -b / a};
  for (int i = 0; i < 8; ++i) store(soa + i * kLanes, fields[i]);
  for (int l = 0; l < valid; ++l) {
    for (int k = 0; k < in.channels; ++k) soa[(8 + k) * kLanes + l] = in.colors[(first + l) * in.channels + k];
  }
  for (int i = 0; i < 2; ++i) store(soa + (12 + i) * kLanes, radii[i]);
  store(soa + 14 * kLanes, (c - b * b / a) * (-0.5f * kLog2E));
  store_rows(reinterpret_cast<float*>(records + first), 16, 16, valid, soa);
  const Floats x = load(soa), y = load(soa + kLanes), zero{};
  Ints left, top, wide, high;
  tile_range(in, maximum(x - radii[0], zero), minimum(x + radii[0], broadcast(in.last_x)), left, wide);
  tile_range(in, maximum(y - radii[1], zero), minimum(y + radii[1], broadcast(in.last_y)), top, high);
  const Ints any = seen & (wide > 0) & (high > 0);
  const Floats packed[2] = {bits_as<Floats>((left | top << 16) & any), bits_as<Floats>((wide | high << 16) & any)};
  write_rows<2>(reinterpret_cast<float*>(boxes + first * 2), valid, packed);
}

}  // namespace

extern "C" {

// sizes: C, N, width, height, tile, channels, threads. Writes records [C·N, 16] and tile boxes [C·N, 2]. Writes to
// `totals` an upper bound of the number of pairs and the length of the int32 buffer of lists. Returns kOutOfMemory if
// that length exceeds 32-bit numbers.
SPLAT_EXPORT Status SPLAT_KERNEL(raster_records)(const int64_t* sizes, const float* means2d, const float* conics,
                                                 const float* opacities, const float* colors, const int32_t* radii,
                                                 float* records, int32_t* boxes, int64_t* totals) {
  const int64_t n = sizes[0] * sizes[1];
  const int tile = static_cast<int>(sizes[4]);
  const int64_t columns = (sizes[2] + tile - 1) / tile, rows = (sizes[3] + tile - 1) / tile;
  const Inputs in{means2d,
                  conics,
                  opacities,
                  colors,
                  radii,
                  static_cast<int>(sizes[5]),
                  static_cast<float>(columns * tile - 1),
                  static_cast<float>(rows * tile - 1),
                  tile == 16 ? 4 : 5};
  if (in.channels < 1 || in.channels > 4 || (tile != 16 && tile != 32)) return kBadArgument;
  if (columns >= kMaxTiles || rows >= kMaxTiles) return kBadArgument;
  Record* out = reinterpret_cast<Record*>(records);
  constexpr int64_t kTask = 1024;
  parallel_for((n + kTask - 1) / kTask, static_cast<int>(sizes[6]), [&](int64_t task, int) {
    const int64_t end = (task + 1) * kTask < n ? (task + 1) * kTask : n;
    for (int64_t first = task * kTask; first < end; first += kLanes) {
      pack(in, first, static_cast<int>(end - first < kLanes ? end - first : kLanes), out, boxes);
    }
  });
  totals[0] = 0;
  for (int64_t i = 0; i < n; ++i) totals[0] += tiles_of_box(boxes + 2 * i);
  totals[1] = list_size(n, sizes[0] * columns * rows, totals[0]);
  return totals[1] > INT32_MAX ? kOutOfMemory : kOk;
}
}
