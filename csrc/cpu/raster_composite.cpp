// Composites tiles of pixels front to back, forward and backward, and computes the sums from which scores are made.
//
// A tile is 16 or 32 pixels wide and high. It consists of blocks of 4×4 pixels, whose 16 values are one, two or four
// vectors. Each Gaussian of a tile's list is tested against every block, by the largest alpha that it reaches there.
//
// Forward takes 64 Gaussians at a time and goes block by block. Transmittance and colours of the block stay in
// registers while its Gaussians are composited, until all its pixels have finished. Alphas are computed four at a time.
// Forward stores which blocks each Gaussian met (a 64-bit mask).
//
// Backward takes 16 Gaussians at a time and goes Gaussian by Gaussian, whose sums stay in registers. The pairs of
// Gaussian and block are written to a flat list, and their alphas are computed four at a time. Then the pairs are
// replayed in forward's order: the transmittance is exactly forward's, and the colour behind a Gaussian is the total
// minus what has been composited so far.
//
// Backward writes the sums of one Gaussian over one tile to a slot of their own. Then the slots of each Gaussian are
// added in the order of tiles. There are no atomics, and the result does not depend on the number of threads.
#include "parallel.h"
#include "raster_bins.h"
#include "raster_vector.h"

namespace {

constexpr int kBlockSide = 4;
constexpr int kBlockPixels = kBlockSide * kBlockSide;
constexpr int kParts = kBlockPixels / kLanes;
constexpr int kUnroll = 4;  // alphas computed side by side; a single one would wait for its own results
constexpr int kSlot = 16;   // floats of a slot: gq, gx, gy, gxx, gxy, gyy, colours, |x|, |y|
constexpr float kMinTransmittance = 1e-4f;
static_assert(kBlockPixels % kLanes == 0 && kUnroll % kParts == 0, "a block is whole vectors, a step whole blocks");

// For each block, the coordinates of its pixels inside a tile, and the left and top of the box of their centres.
template <int kTile>
struct Grid {
  static constexpr int kSide = kTile / kBlockSide;
  static constexpr int kBlocks = kSide * kSide;
  alignas(64) float x[kBlocks * kBlockPixels], y[kBlocks * kBlockPixels];
  alignas(64) float left[kBlocks], top[kBlocks];
  constexpr Grid() : x(), y(), left(), top() {
    for (int block = 0; block < kBlocks; ++block) {
      left[block] = static_cast<float>(block % kSide * kBlockSide);
      top[block] = static_cast<float>(block / kSide * kBlockSide);
      for (int i = 0; i < kBlockPixels; ++i) {
        x[block * kBlockPixels + i] = left[block] + static_cast<float>(i % kBlockSide);
        y[block * kBlockPixels + i] = top[block] + static_cast<float>(i / kBlockSide);
      }
    }
  }
};
template <int kTile>
constexpr Grid<kTile> kGrid{};

// The next Gaussians of a tile's list, and the blocks that each of them meets.
template <int kTile, int kCount>
struct Chunk {
  static constexpr int kBlocks = Grid<kTile>::kBlocks;
  static constexpr int kGaussians = kCount;
  Record records[kGaussians + 1];  // mean relative to the tile; the last is transparent
  uint64_t masks[kGaussians];      // bits of blocks
  int count = 0;
};

// Forward works block by block. The Gaussians that meet a block are a 64-bit set, with one bit for each of the chunk.
template <int kTile>
using ForwardChunk = Chunk<kTile, 64>;
// Backward works Gaussian by Gaussian. They are few enough to keep their alphas in the nearest cache.
template <int kTile>
using BackwardChunk = Chunk<kTile, 16>;

struct Job {
  Lists lists;
  int64_t images, width, height, columns, rows;  // columns and rows of tiles
  int channels;
  float max_alpha;
  const float* backgrounds;          // [C, D] or null
  float *colors, *alphas;            // [C, H, W, D], [C, H, W, 1]
  const float *v_colors, *v_alphas;  // the same shapes
  const float* pixel_weights;        // [C, H, W]
  float* slots;
};

struct TilePlace {
  int64_t image, left, top;
};

SPLAT_INLINE TilePlace place(const Job& job, int64_t tile, int size) {
  const int64_t in_image = tile % (job.rows * job.columns);
  return {tile / (job.rows * job.columns), in_image % job.columns * size, in_image / job.columns * size};
}

// Bits of the blocks where the Gaussian's alpha reaches 1/255.
template <int kTile>
SPLAT_INLINE uint64_t touched_blocks(const Record& g) {
  const Grid<kTile>& grid = kGrid<kTile>;
  uint64_t mask = 0;
  constexpr int kRows = kLanes < grid.kSide ? 1 : kLanes / grid.kSide;  // rows of blocks in a vector
  // Vectors of blocks that lie wholly above or below the Gaussian's box are skipped.
  const float margin = kRows * kBlockSide - 1;
  for (int first = 0; first < grid.kBlocks; first += kLanes) {
    if (grid.top[first] > g.y + g.reach_y || grid.top[first] + margin < g.y - g.reach_y) continue;
    const Floats left = load(grid.left + first) - g.x, top = load(grid.top + first) - g.y;
    const float side = kBlockSide - 1;
    mask |= static_cast<uint64_t>(reaches(g, left, left + side, top, top + side)) << first;
  }
  return mask;
}

// log2(alpha) at a pixel. Every product is added to something that is not a product, so that the compiler can contract
// it to an FMA in only one way. So forward and backward get the same bits.
SPLAT_INLINE Floats log_alpha(const Record& g, Floats dx, Floats dy) {
  const Floats u = dx - g.slope_y * dy;
  const Floats across = g.D * dy;
  const Floats along = g.A * u;
  return along * u + (across * dy + g.log_opacity);
}

// Turns log2(alpha) into alpha. Values under 1/255 become 0; large ones are not yet clamped.
SPLAT_INLINE void finish_alphas(Floats (&e)[kUnroll]) {
  for (int u = 0; u < kUnroll; ++u) e[u] = exp2(e[u]);
  for (int u = 0; u < kUnroll; ++u) e[u] = keep(e[u] >= kMinAlpha, e[u]);
}

// The alphas of a chunk for backward: a flat list of (Gaussian, block) pairs.
template <int kTile>
struct Alphas {
  static constexpr int kPairs = BackwardChunk<kTile>::kGaussians * Grid<kTile>::kBlocks;
  uint32_t pairs[kPairs + kAppendSlack];  // Gaussian << 6 | block
  Floats values[(kPairs + kUnroll) * kParts];
  int count = 0;
};

template <int kTile>
SPLAT_INLINE void evaluate(const BackwardChunk<kTile>& chunk, Alphas<kTile>& alphas) {
  const Grid<kTile>& grid = kGrid<kTile>;
  alphas.count = 0;
  for (int j = 0; j < chunk.count; ++j) {
    alphas.count += append_bits(alphas.pairs + alphas.count, static_cast<uint32_t>(j) << 6, chunk.masks[j]);
  }
  for (int i = 0; i < kUnroll; ++i) alphas.pairs[alphas.count + i] = 0;
  const int vectors = alphas.count * kParts;
  for (int first = 0; first < vectors; first += kUnroll) {
    Floats e[kUnroll];
    for (int u = 0; u < kUnroll; ++u) {
      const uint32_t pair = alphas.pairs[(first + u) / kParts];
      const Record& g = chunk.records[pair >> 6];
      const int pixel = static_cast<int>(pair & 63) * kBlockPixels + (first + u) % kParts * kLanes;
      e[u] = log_alpha(g, load(grid.x + pixel) - g.x, load(grid.y + pixel) - g.y);
    }
    finish_alphas(e);
    for (int u = 0; u < kUnroll; ++u) alphas.values[first + u] = e[u];
  }
}

// Takes the next Gaussians of a list into the chunk, and makes their means relative to the tile.
template <int kTile, int kCount>
SPLAT_INLINE void take(const Job& job, const TilePlace& at, int64_t next, int64_t end, Chunk<kTile, kCount>& chunk) {
  chunk.count = static_cast<int>(end - next < kCount ? end - next : kCount);
  for (int j = 0; j < chunk.count; ++j) {
    // The list is padded, so that looking ahead stays inside.
    __builtin_prefetch(job.lists.records + job.lists.ids[next + j + kListPadding / 2]);
    chunk.records[j] = job.lists.records[job.lists.ids[next + j]];
    chunk.records[j].x -= static_cast<float>(at.left);
    chunk.records[j].y -= static_cast<float>(at.top);
  }
}

// The same with the masks that forward stored, followed by the alphas.
template <int kTile>
SPLAT_INLINE void take_again(const Job& job, const TilePlace& at, int64_t next, int64_t end,
                             BackwardChunk<kTile>& chunk, Alphas<kTile>& alphas) {
  take(job, at, next, end, chunk);
  for (int j = 0; j < chunk.count; ++j) chunk.masks[j] = job.lists.masks[next + j];
  evaluate(chunk, alphas);
}

// Composites `alpha`: returns the weight and updates T, the transmittance. T becomes negative once its pixel has
// finished.
SPLAT_INLINE Floats advance(Floats alpha, Floats& T, Ints& counts) {
  const Floats behind = T - alpha * T;
  counts = behind > kMinTransmittance;
  const Floats weight = keep(counts, alpha * T);
  T = counts ? behind : bits_as<Floats>(bits_as<Ints>(T) | INT32_MIN);
  return weight;
}

// There are instances for three and for four channels. The latter serve one and two channels as well, where the other
// colours are zero.
template <int kColors>
SPLAT_INLINE int channels_of(const Job& job) {
  return kColors == 3 ? 3 : job.channels;
}

template <int kTile, int kColors>
struct Canvas {
  static constexpr int kBlocks = Grid<kTile>::kBlocks;
  alignas(64) float T[kBlocks * kBlockPixels];
  alignas(64) float sums[kColors][kBlocks * kBlockPixels];
};

// Calls body(pixel of the tile in block order, offset in the image) for all pixels inside the image.
template <int kTile, bool kWhole, class Body>
SPLAT_INLINE void for_pixels_of(const Job& job, const TilePlace& at, Body& body) {
  for (int block = 0; block < Grid<kTile>::kBlocks; ++block) {
    const int64_t left = at.left + block % Grid<kTile>::kSide * kBlockSide;
    const int64_t top = at.top + block / Grid<kTile>::kSide * kBlockSide;
    const int64_t wide = kWhole || job.width - left > kBlockSide ? kBlockSide : job.width - left;
    for (int y = 0; y < kBlockSide && (kWhole || top + y < job.height); ++y) {
      const int64_t offset = (at.image * job.height + top + y) * job.width + left;
      for (int x = 0; x < wide; ++x) body(block * kBlockPixels + y * kBlockSide + x, offset + x);
    }
  }
}
template <int kTile, class Body>
SPLAT_INLINE void for_pixels(const Job& job, const TilePlace& at, Body&& body) {
  if (at.left + kTile <= job.width && at.top + kTile <= job.height) {
    for_pixels_of<kTile, true>(job, at, body);
  } else {
    for_pixels_of<kTile, false>(job, at, body);
  }
}

// Sets T to 1 inside the image. Pixels outside have finished from the start. Returns the bits of the blocks with a
// pixel inside.
template <int kTile>
SPLAT_INLINE uint64_t start(const Job& job, const TilePlace& at, float* T) {
  for (int i = 0; i < Grid<kTile>::kBlocks * kBlockPixels; ++i) T[i] = -1.0f;
  uint64_t alive = 0;
  for_pixels<kTile>(job, at, [&](int pixel, int64_t) {
    T[pixel] = 1.0f;
    alive |= uint64_t{1} << (pixel / kBlockPixels);
  });
  return alive;
}

// sets[block] = the bits of the chunk's Gaussians that meet the block, for the blocks in `wanted`.
template <int kTile>
SPLAT_INLINE void sets_of_blocks(const ForwardChunk<kTile>& chunk, uint64_t wanted, uint64_t* sets) {
  using Chunk = ForwardChunk<kTile>;  // clang takes no constants from a reference
  constexpr int kGroups = Chunk::kGaussians / kLanes, kHalves = (Chunk::kBlocks + 31) / 32;
  alignas(64) int32_t halves[kHalves][Chunk::kGaussians];
  for (int j = 0; j < Chunk::kGaussians; ++j) {
    const uint64_t mask = j < chunk.count ? chunk.masks[j] : 0;
    for (int h = 0; h < kHalves; ++h) halves[h][j] = static_cast<int32_t>(static_cast<uint32_t>(mask >> (32 * h)));
  }
  for (uint64_t left = wanted; left; left &= left - 1) {
    const int block = __builtin_ctzll(left);
    uint64_t set = 0;
    for (int group = 0; group < kGroups; ++group) {
      const Ints masks = load_ints(halves[block / 32] + group * kLanes);
      set |= static_cast<uint64_t>(sign_bits(masks << (31 - block % 32))) << (group * kLanes);
    }
    sets[block] = set;
  }
}

// Composites a set of the chunk's Gaussians on one vector of pixels. Returns the Gaussians that were left when all
// these pixels had finished.
template <int kTile, int kColors>
SPLAT_INLINE uint64_t composite_pixels(const ForwardChunk<kTile>& chunk, uint64_t set, int pixel, float limit,
                                       Canvas<kTile, kColors>& canvas) {
  const Floats x = load(kGrid<kTile>.x + pixel), y = load(kGrid<kTile>.y + pixel), max_alpha = broadcast(limit);
  Floats T = load(canvas.T + pixel), sums[kColors];
  for (int i = 0; i < kColors; ++i) sums[i] = load(canvas.sums[i] + pixel);
  while (set && sign_bits(bits_as<Ints>(T)) != (1u << kLanes) - 1) {
    const Record* next[kUnroll];
    Floats alphas[kUnroll];
    for (int u = 0; u < kUnroll; ++u) {
      const Record& g = *(next[u] = chunk.records + (set ? __builtin_ctzll(set) : chunk.kGaussians));
      set &= set - 1;
      alphas[u] = log_alpha(g, x - g.x, y - g.y);
    }
    finish_alphas(alphas);
    for (int u = 0; u < kUnroll; ++u) {
      Ints counts;
      const Floats weight = advance(minimum(alphas[u], max_alpha), T, counts);
      for (int i = 0; i < kColors; ++i) sums[i] += weight * next[u]->colors[i];
    }
  }
  store(canvas.T + pixel, T);
  for (int i = 0; i < kColors; ++i) store(canvas.sums[i] + pixel, sums[i]);
  return set;
}

// Composites the chunk block by block. A block whose pixels have all finished is removed from `alive`, and from the
// masks of the Gaussians behind.
template <int kTile, int kColors>
SPLAT_INLINE void composite_chunk(ForwardChunk<kTile>& chunk, float max_alpha, Canvas<kTile, kColors>& canvas,
                                  uint64_t& alive) {
  uint64_t touched = 0;
  for (int j = 0; j < chunk.count; ++j) touched |= chunk.masks[j] = touched_blocks<kTile>(chunk.records[j]) & alive;
  uint64_t sets[Grid<kTile>::kBlocks];
  sets_of_blocks<kTile>(chunk, touched, sets);
  for (; touched; touched &= touched - 1) {
    const int block = __builtin_ctzll(touched);
    uint64_t rest = ~uint64_t{0};
    uint32_t finished = ~0u;
    for (int part = 0; part < kParts; ++part) {
      const int pixel = block * kBlockPixels + part * kLanes;
      rest &= composite_pixels<kTile, kColors>(chunk, sets[block], pixel, max_alpha, canvas);
      finished &= sign_bits(bits_as<Ints>(load(canvas.T + pixel)));
    }
    if (finished != (1u << kLanes) - 1) continue;
    alive &= ~(uint64_t{1} << block);
    for (; rest; rest &= rest - 1) chunk.masks[__builtin_ctzll(rest)] &= ~(uint64_t{1} << block);
  }
}

template <int kTile, int kColors>
void forward_tile(const Job& job, int64_t tile) {
  const TilePlace at = place(job, tile, kTile);
  Canvas<kTile, kColors> canvas;
  ForwardChunk<kTile> chunk;
  chunk.records[chunk.kGaussians] = Record{};
  chunk.records[chunk.kGaussians].log_opacity = -1e30f;
  uint64_t alive = start<kTile>(job, at, canvas.T);
  std::memset(canvas.sums, 0, sizeof(canvas.sums));
  int64_t next = job.lists.tile_starts[tile], last = next;
  const int64_t end = job.lists.tile_starts[tile + 1];
  while (next < end && alive) {
    take(job, at, next, end, chunk);
    composite_chunk<kTile, kColors>(chunk, job.max_alpha, canvas, alive);
    for (int j = 0; j < chunk.count; ++j) {
      job.lists.masks[next + j] = chunk.masks[j];
      if (chunk.masks[j]) last = next + j + 1;
    }
    next += chunk.count;
  }
  job.lists.tile_ends[tile] = static_cast<int32_t>(last);
  float background[kColors] = {};
  const int channels = channels_of<kColors>(job);
  for (int i = 0; i < channels && job.backgrounds; ++i) background[i] = job.backgrounds[at.image * channels + i];
  for_pixels<kTile>(job, at, [&](int pixel, int64_t offset) {
    const float T = __builtin_fabsf(canvas.T[pixel]);
    job.alphas[offset] = 1.0f - T;
    for (int i = 0; i < channels; ++i) job.colors[offset * channels + i] = canvas.sums[i][pixel] + T * background[i];
  });
}

// The state of one tile in backward: transmittance, gradients of the pixels, and `behind`. The latter is what lies
// behind the Gaussians so far: its colours and alpha, times their gradients.
template <int kTile, int kColors>
struct Replay {
  Canvas<kTile, kColors> canvas;  // T, and the gradient by the colours
  alignas(64) float v_alpha[Grid<kTile>::kBlocks * kBlockPixels];
  alignas(64) float behind[Grid<kTile>::kBlocks * kBlockPixels];
};

// Fills the slot of one Gaussian: the sums over all blocks that it met in this tile.
//
// With w = alpha·T and g = dL/dpixel·colour, dL/dalpha = T g - (what is behind) / (1 - alpha). Alpha counts as a
// channel of colour 1 over a background of 0.
template <int kTile, int kColors, bool kAbsolute>
SPLAT_INLINE void backward_gaussian(const Record& g, const uint32_t* pairs, const Floats* alphas, int count,
                                    Floats max_alpha, Replay<kTile, kColors>& tile, float* slot) {
  const Grid<kTile>& grid = kGrid<kTile>;
  constexpr int kSums = kAbsolute ? 12 : 6 + kColors;
  Floats sums[kSums] = {};
  for (int p = 0; p < count; ++p) {
    const int first = static_cast<int>(pairs[p] & 63) * kBlockPixels;
    for (int part = 0; part < kParts; ++part) {
      const int pixel = first + part * kLanes;
      const Floats raw = alphas[p * kParts + part], alpha = minimum(raw, max_alpha);
      Floats T = load(tile.canvas.T + pixel);
      Ints counts;
      const Floats weight = advance(alpha, T, counts);
      store(tile.canvas.T + pixel, T);
      Floats along = load(tile.v_alpha + pixel);
      for (int i = 0; i < kColors; ++i) {
        const Floats v_color = load(tile.canvas.sums[i] + pixel);
        along += g.colors[i] * v_color;
        sums[6 + i] += weight * v_color;
      }
      along *= weight;
      const Floats behind = load(tile.behind + pixel) - along;
      store(tile.behind + pixel, behind);
      const Ints moves = counts & (raw <= max_alpha);
      const Floats v = keep(moves, along - alpha * behind * fast_reciprocal(1.0f - alpha));  // alpha dL/dalpha
      const Floats dx = load(grid.x + pixel) - g.x, dy = load(grid.y + pixel) - g.y;
      const Floats vx = v * dx, vy = v * dy;
      sums[0] += v, sums[1] += vx, sums[2] += vy;
      sums[3] += vx * dx, sums[4] += vx * dy, sums[5] += vy * dy;
      if constexpr (kAbsolute) {
        // The conic is -2 ln 2 times A, B / 2, C.
        const Floats x = 2.0f * g.A * vx + g.B * vy, y = g.B * vx + 2.0f * g.C * vy;
        sums[10] += bits_as<Floats>(bits_as<Ints>(x) & INT32_MAX),
            sums[11] += bits_as<Floats>(bits_as<Ints>(y) & INT32_MAX);
      }
    }
  }
  sum_lanes_of_each(sums, slot);
}

template <int kTile, int kColors, bool kAbsolute>
void backward_tile(const Job& job, int64_t tile) {
  const TilePlace at = place(job, tile, kTile);
  Replay<kTile, kColors> replay;
  BackwardChunk<kTile> chunk;
  Alphas<kTile> alphas;
  start<kTile>(job, at, replay.canvas.T);
  std::memset(replay.canvas.sums, 0, sizeof(replay.canvas.sums));
  std::memset(replay.v_alpha, 0, sizeof(replay.v_alpha));
  std::memset(replay.behind, 0, sizeof(replay.behind));
  const int channels = channels_of<kColors>(job);
  for_pixels<kTile>(job, at, [&](int pixel, int64_t offset) {
    float behind = job.v_alphas ? job.v_alphas[offset] * job.alphas[offset] : 0.0f;
    replay.v_alpha[pixel] = job.v_alphas ? job.v_alphas[offset] : 0.0f;
    for (int i = 0; i < channels && job.v_colors; ++i) {
      replay.canvas.sums[i][pixel] = job.v_colors[offset * channels + i];
      behind += job.v_colors[offset * channels + i] * job.colors[offset * channels + i];
    }
    replay.behind[pixel] = behind;
  });
  const Floats max_alpha = broadcast(job.max_alpha);
  const int64_t end = job.lists.tile_ends[tile];
  for (int64_t next = job.lists.tile_starts[tile]; next < end; next += chunk.count) {
    take_again(job, at, next, end, chunk, alphas);
    int done = 0;
    for (int j = 0; j < chunk.count; ++j) {
      const int count = __builtin_popcountll(chunk.masks[j]);
      backward_gaussian<kTile, kColors, kAbsolute>(chunk.records[j], alphas.pairs + done, alphas.values + done * kParts,
                                                   count, max_alpha, replay, job.slots + (next + j) * kSlot);
      done += count;
    }
  }
}

// The sums of Accumulators in splat_ssim/render/reference.py: count, pixel weight, transmittance·alpha, distance.
template <int kTile>
void accumulate_tile(const Job& job, int64_t tile) {
  const Grid<kTile>& grid = kGrid<kTile>;
  const TilePlace at = place(job, tile, kTile);
  Canvas<kTile, 1> canvas;
  BackwardChunk<kTile> chunk;
  Alphas<kTile> alphas;
  start<kTile>(job, at, canvas.T);
  std::memset(canvas.sums, 0, sizeof(canvas.sums));
  for_pixels<kTile>(job, at, [&](int pixel, int64_t offset) { canvas.sums[0][pixel] = job.pixel_weights[offset]; });
  const int64_t end = job.lists.tile_ends[tile];
  for (int64_t next = job.lists.tile_starts[tile]; next < end; next += chunk.count) {
    take_again(job, at, next, end, chunk, alphas);
    for (int j = 0, p = 0; j < chunk.count; ++j) {
      const Record& g = chunk.records[j];
      Floats sums[4] = {};
      for (const int last = p + __builtin_popcountll(chunk.masks[j]); p < last; ++p) {
        for (int part = 0; part < kParts; ++part) {
          const int pixel = static_cast<int>(alphas.pairs[p] & 63) * kBlockPixels + part * kLanes;
          Floats T = load(canvas.T + pixel);
          Ints counts;
          const Floats dx = load(grid.x + pixel) - g.x, dy = load(grid.y + pixel) - g.y;
          const Floats alpha = minimum(alphas.values[p * kParts + part], broadcast(job.max_alpha));
          const Floats weight = advance(alpha, T, counts);
          store(canvas.T + pixel, T);
          const Ints met = counts & (alpha > 0.0f);
          sums[0] += keep(met, broadcast(1.0f)), sums[1] += keep(met, load(canvas.sums[0] + pixel));
          sums[2] += weight, sums[3] += keep(met, square_root(dx * dx + dy * dy));
        }
      }
      sum_lanes_of_each(sums, job.slots + (next + j) * kSlot);
    }
  }
}

// Adds up the slots of one Gaussian, in the order of tiles.
SPLAT_INLINE void gather(const Job& job, int64_t instance, float* sums) {
  for (int i = 0; i < kSlot; ++i) sums[i] = 0.0f;
  const Lists& lists = job.lists;
  const int64_t first = lists.starts[instance];
  // Prefetches what a later instance will read. Its slots are scattered, since their places depend on its tiles.
  const int64_t later = instance + 8 < lists.instances ? instance + 8 : instance;
  for (int64_t p = lists.starts[later]; p < lists.starts[later] + lists.counts[later]; ++p) {
    __builtin_prefetch(job.slots + lists.pair_slots[p] * int64_t{kSlot});
  }
  for (int64_t p = first; p < first + lists.counts[instance]; ++p) {
    const int64_t slot = lists.pair_slots[p];
    if (slot >= lists.tile_ends[lists.pair_tiles[p]]) continue;  // all pixels had finished before
    const float* from = job.slots + slot * kSlot;
    for (int i = 0; i < kSlot; i += kLanes) store(sums + i, load(sums + i) + load(from + i));
  }
}

struct Outputs {
  const float *conics, *opacities;                                  // of the forward pass
  float *v_means2d, *v_conics, *v_colors, *v_opacities, *absolute;  // absolute may be null
};

SPLAT_INLINE void write_gradient(const Job& job, const Outputs& out, int64_t i) {
  alignas(64) float s[kSlot];
  gather(job, i, s);
  const float a = out.conics[i * 3], b = out.conics[i * 3 + 1], c = out.conics[i * 3 + 2];
  // sigma = a dx²/2 + b dx dy + c dy²/2, with (dx, dy) from the mean to the pixel, and dL/dsigma = -s[0].
  out.v_means2d[i * 2] = a * s[1] + b * s[2];
  out.v_means2d[i * 2 + 1] = b * s[1] + c * s[2];
  out.v_conics[i * 3] = -0.5f * s[3], out.v_conics[i * 3 + 1] = -s[4], out.v_conics[i * 3 + 2] = -0.5f * s[5];
  out.v_opacities[i] = s[0] != 0.0f ? s[0] / out.opacities[i] : 0.0f;
  for (int k = 0; k < job.channels; ++k) out.v_colors[i * job.channels + k] = s[6 + k];
  if (!out.absolute) return;
  out.absolute[i * 2] = kLn2 * s[10], out.absolute[i * 2 + 1] = kLn2 * s[11];
}

using TileFunction = void (*)(const Job&, int64_t);

template <int kTile>
TileFunction forward_function(int channels) {
  return channels == 3 ? forward_tile<kTile, 3> : forward_tile<kTile, 4>;
}

template <int kTile, bool kAbsolute>
TileFunction backward_function(int channels) {
  return channels == 3 ? backward_tile<kTile, 3, kAbsolute> : backward_tile<kTile, 4, kAbsolute>;
}

// sizes: C, N, width, height, tile, channels, pairs, threads.
Job read_job(const int64_t* sizes, double max_alpha, float* records, int32_t* lists) {
  Job job{};
  const int64_t tile = sizes[4];
  job.images = sizes[0], job.width = sizes[2], job.height = sizes[3];
  job.columns = (job.width + tile - 1) / tile, job.rows = (job.height + tile - 1) / tile;
  job.channels = static_cast<int>(sizes[5]);
  job.max_alpha = static_cast<float>(max_alpha);
  job.lists = split_lists(records, lists, sizes[0] * sizes[1], job.images * job.rows * job.columns, sizes[6]);
  return job;
}

bool acceptable(const int64_t* sizes) {
  return sizes[0] >= 1 && sizes[1] >= 0 && sizes[2] >= 1 && sizes[3] >= 1 && (sizes[4] == 16 || sizes[4] == 32) &&
         sizes[5] >= 1 && sizes[5] <= kMaxChannels && sizes[6] >= 0;
}

}  // namespace

extern "C" {

// Lists the Gaussians of every tile, in `lists` (see raster_bins.h), and composites them.
SPLAT_EXPORT Status SPLAT_KERNEL(raster_composite)(const int64_t* sizes, double max_alpha, float* records,
                                                   int32_t* lists, const int32_t* boxes, const float* depths,
                                                   const float* backgrounds, float* colors, float* alphas) {
  if (!acceptable(sizes)) return kBadArgument;
  Job job = read_job(sizes, max_alpha, records, lists);
  const int threads = splat_ssim_usable_threads(sizes[7]), tile = static_cast<int>(sizes[4]);
  job.backgrounds = backgrounds, job.colors = colors, job.alphas = alphas;
  const Bins bins{sizes[1], job.columns, job.rows, tile, threads, boxes, depths};
  if (!fill_lists(bins, job.lists)) return kOutOfMemory;
  const TileFunction function = tile == 16 ? forward_function<16>(job.channels) : forward_function<32>(job.channels);
  parallel_for(job.lists.tiles, threads, [&](int64_t t, int) { function(job, t); });
  return kOk;
}

// v_colors or v_alphas may be null if they are zero.
SPLAT_EXPORT Status SPLAT_KERNEL(raster_composite_backward)(const int64_t* sizes, double max_alpha, float* records,
                                                            int32_t* lists, const float* conics, const float* opacities,
                                                            float* colors, float* alphas, const float* v_colors,
                                                            const float* v_alphas, float* v_means2d, float* v_conics,
                                                            float* v_values, float* v_opacities, float* absolute) {
  if (!acceptable(sizes)) return kBadArgument;
  Job job = read_job(sizes, max_alpha, records, lists);
  const int threads = static_cast<int>(sizes[7]);
  job.colors = colors, job.alphas = alphas, job.v_colors = v_colors, job.v_alphas = v_alphas;
  job.slots = static_cast<float*>(splat_ssim_scratch((job.lists.tile_starts[job.lists.tiles] + 1) * kSlot * 4));
  if (!job.slots) return kOutOfMemory;
  TileFunction function;
  if (sizes[4] == 16) {
    function = absolute ? backward_function<16, true>(job.channels) : backward_function<16, false>(job.channels);
  } else {
    function = absolute ? backward_function<32, true>(job.channels) : backward_function<32, false>(job.channels);
  }
  parallel_for(job.lists.tiles, threads, [&](int64_t t, int) { function(job, t); });
  const Outputs out{conics, opacities, v_means2d, v_conics, v_values, v_opacities, absolute};
  constexpr int64_t kGathered = 512;
  parallel_for((job.lists.instances + kGathered - 1) / kGathered, threads, [&](int64_t task, int) {
    const int64_t end = (task + 1) * kGathered < job.lists.instances ? (task + 1) * kGathered : job.lists.instances;
    for (int64_t i = task * kGathered; i < end; ++i) write_gradient(job, out, i);
  });
  return kOk;
}

// sums: [4, C, N].
SPLAT_EXPORT Status SPLAT_KERNEL(raster_accumulate)(const int64_t* sizes, double max_alpha, float* records,
                                                    int32_t* lists, const float* pixel_weights, float* sums) {
  if (!acceptable(sizes)) return kBadArgument;
  Job job = read_job(sizes, max_alpha, records, lists);
  const int threads = static_cast<int>(sizes[7]);
  job.pixel_weights = pixel_weights;
  job.slots = static_cast<float*>(splat_ssim_scratch((job.lists.tile_starts[job.lists.tiles] + 1) * kSlot * 4));
  if (!job.slots) return kOutOfMemory;
  const TileFunction function = sizes[4] == 16 ? accumulate_tile<16> : accumulate_tile<32>;
  parallel_for(job.lists.tiles, threads, [&](int64_t t, int) { function(job, t); });
  for (int64_t i = 0; i < job.lists.instances; ++i) {
    alignas(64) float s[kSlot];
    gather(job, i, s);
    for (int k = 0; k < 4; ++k) sums[k * job.lists.instances + i] = s[k];
  }
  return kOk;
}
}
