// Lists the Gaussians that meet each tile, front to back. It sorts by depth over all images (one radix sort), then
// scatters to the tiles by counting, which keeps that order.
//
// An instance is one Gaussian as one camera sees it, with number camera·N + Gaussian. Tiles are numbered through all
// images as well.
#pragma once
#include "layout.h"
#include "parallel.h"
#include "raster_vector.h"

namespace {

constexpr float kMinAlpha = 1.0f / 255.0f;
constexpr float kLog2MinAlpha = -7.99435344f;

// The parts of the int32 buffer that forward hands to backward. `pairs` is an upper bound of the number of (instance,
// tile) pairs.
struct Lists {
  int64_t instances, tiles;
  const Record* records;  // [instances]
  uint64_t* masks;        // [pairs] blocks of the tile that each list entry met
  int32_t* ids;           // [pairs + padding] instances of tile 0, of tile 1, …
  int32_t* pair_tiles;    // [pairs] tiles of instance 0, of instance 1, …
  int32_t* pair_slots;    // [pairs] the place of each of these pairs in `ids`
  int32_t* starts;        // [instances] first pair of an instance
  int32_t* counts;        // [instances] its number of pairs
  int32_t* tile_starts;   // [tiles + 1]
  int32_t* tile_ends;     // [tiles] end of the entries that were composited before all pixels had finished
};

inline Lists split_lists(const float* records, int32_t* buffer, int64_t instances, int64_t tiles, int64_t pairs) {
  Lists l;
  l.instances = instances, l.tiles = tiles;
  l.records = reinterpret_cast<const Record*>(records);
  l.masks = reinterpret_cast<uint64_t*>(buffer);
  l.ids = buffer + 2 * pairs;
  l.pair_tiles = l.ids + pairs + kListPadding;
  l.pair_slots = l.pair_tiles + pairs;
  l.starts = l.pair_slots + pairs;
  l.counts = l.starts + instances;
  l.tile_starts = l.counts + instances;
  l.tile_ends = l.tile_starts + tiles + 1;
  return l;
}

struct Bins {
  int64_t gaussians, columns, rows;  // columns and rows of tiles in an image
  int tile, threads;
  const int32_t* boxes;  // [instances, 2] packed tile boxes, empty if the instance is not seen
  const float* depths;   // [instances] positive if seen
};

// The tiles of an image that an instance's box meets. Packed, one number has left and top, the other width and height.
constexpr int64_t kMaxTiles = 1 << 15;  // a row or column of an image has fewer
struct TileBox {
  int left, top, wide, high;
};
inline TileBox unpack_box(const int32_t* box) { return {box[0] & 0xffff, box[0] >> 16, box[1] & 0xffff, box[1] >> 16}; }
inline int32_t tiles_of_box(const int32_t* box) { return (box[1] & 0xffff) * (box[1] >> 16); }

// One bit for each box: whether alpha reaches 1/255 in it. A box is given by its edges relative to the mean. Alpha is
// largest on one of the two edges next to the mean. On each of them, the best point of the edge's line is clamped to
// the edge.
SPLAT_INLINE uint32_t reaches(const Record& g, Floats left, Floats right, Floats top, Floats bottom) {
  const Floats zero{};
  const Floats x = minimum(maximum(zero, left), right), y = minimum(maximum(zero, top), bottom);
  const Floats best_y = minimum(maximum(g.slope_x * x, top), bottom);
  const Floats best_x = minimum(maximum(g.slope_y * y, left), right);
  const Floats at_x = x * (g.A * x + g.B * best_y) + g.C * best_y * best_y;
  const Floats at_y = best_x * (g.A * best_x + g.B * y) + g.C * y * y;
  // The margin exceeds the rounding of the pixels' own alphas.
  return at_least_bits(maximum(at_x, at_y), broadcast(kLog2MinAlpha - 1e-3f - g.log_opacity));
}

// Calls body(tile of the image) for the tiles that the instance meets, row by row.
template <class Body>
SPLAT_INLINE void for_tiles(const Bins& bins, int64_t instance, const Record& g, Body&& body) {
  const TileBox box = unpack_box(bins.boxes + 2 * instance);
  const int count = box.wide * box.high;
  if (count == 1) {
    body(static_cast<int32_t>(box.top * bins.columns + box.left));
    return;
  }
  const float inverse = 1.0f / static_cast<float>(box.wide), side = static_cast<float>(bins.tile);
  for (int first = 0; first < count; first += kLanes) {
    const Floats index = lane_numbers() + static_cast<float>(first);
    const Ints row = __builtin_convertvector((index + 0.5f) * inverse, Ints);
    const Ints column = __builtin_convertvector(index, Ints) - row * box.wide + box.left;
    const Ints line = row + box.top;
    const Floats left = __builtin_convertvector(column, Floats) * side - g.x;
    const Floats top = __builtin_convertvector(line, Floats) * side - g.y;
    uint32_t bits = reaches(g, left, left + (side - 1.0f), top, top + (side - 1.0f));
    if (count - first < kLanes) bits &= (1u << (count - first)) - 1;
    alignas(64) int32_t tiles[kLanes];
    store_ints(tiles, line * static_cast<int32_t>(bins.columns) + column);
    for (; bits; bits &= bits - 1) body(tiles[__builtin_ctz(bits)]);
  }
}

// Sorts by the high 32 bits. Equal keys keep their order. Returns the one of the two arrays that has the result.
inline uint64_t* sort_by_key(uint64_t* values, uint64_t* other, int64_t count) {
  constexpr int kDigit = 11, kPasses = 3, kBins = 1 << kDigit;
  uint32_t histogram[kPasses][kBins];
  std::memset(histogram, 0, sizeof(histogram));
  uint32_t smallest = UINT32_MAX;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t key = static_cast<uint32_t>(values[i] >> 32);
    smallest = key < smallest ? key : smallest;
  }
  for (int64_t i = 0; i < count; ++i) {
    values[i] -= static_cast<uint64_t>(smallest) << 32;
    const uint32_t key = static_cast<uint32_t>(values[i] >> 32);
    for (int pass = 0; pass < kPasses; ++pass) ++histogram[pass][(key >> (pass * kDigit)) & (kBins - 1)];
  }
  for (int pass = 0; pass < kPasses; ++pass) {
    uint32_t* offsets = histogram[pass];
    const int shift = 32 + pass * kDigit;
    if (count == 0 || offsets[(values[0] >> shift) & (kBins - 1)] == static_cast<uint32_t>(count)) continue;
    uint32_t sum = 0;
    for (int digit = 0; digit < kBins; ++digit) {
      const uint32_t here = offsets[digit];
      offsets[digit] = sum;
      sum += here;
    }
    for (int64_t i = 0; i < count; ++i) other[offsets[(values[i] >> shift) & (kBins - 1)]++] = values[i];
    uint64_t* swap = values;
    values = other;
    other = swap;
  }
  return values;
}

// Fills `lists`. Returns false if there is no memory.
inline bool fill_lists(const Bins& bins, const Lists& lists) {
  const int64_t n = lists.instances, tiles = lists.tiles;
  const int64_t chunks = bins.threads > 1 ? 4 * static_cast<int64_t>(bins.threads) : 1;
  char* scratch = static_cast<char*>(splat_ssim_scratch(16 * n + 4 * chunks * tiles + 64));
  if (!scratch) return false;
  uint64_t* order = reinterpret_cast<uint64_t*>(scratch);
  int32_t* offsets = reinterpret_cast<int32_t*>(scratch + 16 * n);  // [chunks, tiles]
  int64_t seen = 0;
  int32_t pair = 0;
  for (int64_t i = 0; i < n; ++i) {
    lists.starts[i] = pair;
    lists.counts[i] = 0;
    const int32_t bound = tiles_of_box(bins.boxes + 2 * i);
    pair += bound;
    uint32_t key;
    std::memcpy(&key, bins.depths + i, 4);
    order[seen] = static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(i);
    seen += bound > 0;
  }
  order = sort_by_key(order, order + n, seen);
  const int64_t image_tiles = bins.columns * bins.rows;
  constexpr int64_t kAhead = 12;  // instances are in the order of depth, so their memory is prefetched this far ahead
  parallel_for(chunks, bins.threads, [&](int64_t chunk, int) {
    int32_t* histogram = offsets + chunk * tiles;
    std::memset(histogram, 0, static_cast<size_t>(tiles) * 4);
    for (int64_t s = seen * chunk / chunks; s < seen * (chunk + 1) / chunks; ++s) {
      const int64_t i = static_cast<uint32_t>(order[s]);
      const int64_t later = static_cast<uint32_t>(order[s + kAhead < seen ? s + kAhead : s]);
      __builtin_prefetch(lists.records + later);
      __builtin_prefetch(lists.starts + later);
      __builtin_prefetch(bins.boxes + 2 * later);
      const int32_t base = static_cast<int32_t>(bins.gaussians == n ? 0 : i / bins.gaussians * image_tiles);
      int32_t next = lists.starts[i];
      for_tiles(bins, i, lists.records[i], [&](int32_t tile) {
        lists.pair_tiles[next++] = base + tile;
        ++histogram[base + tile];
      });
      lists.counts[i] = next - lists.starts[i];
    }
  });
  int32_t total = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    lists.tile_starts[tile] = total;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int32_t here = offsets[chunk * tiles + tile];
      offsets[chunk * tiles + tile] = total;
      total += here;
    }
  }
  lists.tile_starts[tiles] = total;
  for (int i = 0; i < kListPadding; ++i) lists.ids[total + i] = 0;
  parallel_for(chunks, bins.threads, [&](int64_t chunk, int) {
    int32_t* next = offsets + chunk * tiles;
    for (int64_t s = seen * chunk / chunks; s < seen * (chunk + 1) / chunks; ++s) {
      const int32_t i = static_cast<int32_t>(order[s]);
      __builtin_prefetch(lists.pair_tiles +
                         lists.starts[static_cast<uint32_t>(order[s + kAhead < seen ? s + kAhead : s])]);
      for (int32_t p = lists.starts[i]; p < lists.starts[i] + lists.counts[i]; ++p) {
        const int32_t slot = next[lists.pair_tiles[p]]++;
        lists.ids[slot] = i;
        lists.pair_slots[p] = slot;
      }
    }
  });
  return true;
}

}  // namespace
