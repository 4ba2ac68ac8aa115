// SSIM of volumes: value, map and gradient in one pass over the slices of a tile, kRows slices at a time.
//
// Forward: for each row, the slices around the block are read, shifted and averaged across slices (a ring of rows); then
// every slice of the block is averaged down its rows and along them, which gives 1 - S and its partial derivatives.
// Gradient: the partials of some slices are kept; a block whose neighbours are all there is averaged the same way.
// Scratch is 2 kRows + 2 radius - 1 slices of partials of the tile, whose rows are chosen to fit, and rings of rows.
#include "ssim_tile.h"

namespace {

constexpr int64_t kStripColumns = 256;
constexpr int64_t kLeastBandRows = 32;
constexpr int64_t kLeastSegmentSlices = 32;
constexpr int64_t kWantedTasks = 8;
constexpr int64_t kPartialsBytes = 3 << 20;

struct Tile3d : Tile {
  using Tile::Tile;

  static constexpr int kMaps = 4;  // in the ring: moments going forward, partials (3 or 4) going back

  Span forward_slices, forward_rows;
  int64_t ring_rows, partial_slices, partial_pitch, partial_rows;
  float *inputs, *ring, *averaged, *zeros, *adjoint, *partials;

  bool prepare() {
    forward_slices = (gradient ? gradient_slices.widened(radius) : slices).within(problem.slices);
    forward_rows = (gradient ? gradient_rows.widened(radius) : rows).within(problem.rows);
    ring_rows = kRows + 2 * radius;
    partial_slices = 2 * kRows + 2 * radius - 1;
    partial_pitch = round_up(forward_columns.count() + kLanes, 16);
    partial_rows = round_up(forward_rows.count(), kRows);
    const int64_t inputs_rows = 2 * (args.taps + kRows - 1), adjoint_floats = maps * kRows * adjoint_pitch;
    const int64_t in_rows = common_rows() + inputs_rows + (ring_rows + 1) * kRows * kMaps;
    const int64_t in_partials = gradient ? partial_slices * partial_rows * maps : 0;
    const int64_t floats = in_rows * pitch + in_partials * partial_pitch + pitch + adjoint_floats;
    float* memory = static_cast<float*>(splat_ssim_scratch(floats * int64_t(sizeof(float))));
    if (!memory) return false;
    begin(memory, 1);
    inputs = memory + common_rows() * pitch;
    ring = inputs + inputs_rows * pitch;
    averaged = ring + ring_rows * kRows * kMaps * pitch;
    zeros = averaged + kRows * kMaps * pitch;
    adjoint = zeros + pitch;
    partials = adjoint + adjoint_floats;
    for (int64_t j = 0; j < pitch + adjoint_floats; ++j) zeros[j] = 0;
    return true;
  }

  SPLAT_INLINE float* ring_row(int64_t row) const {
    return ring + (row - forward_rows.begin + radius) % ring_rows * kRows * kMaps * pitch;
  }
  SPLAT_INLINE float* partial_row(int64_t slice, int64_t row) const {
    const int64_t slot = (slice - forward_slices.begin) % partial_slices;
    return partials + (slot * partial_rows + row - forward_rows.begin) * maps * partial_pitch;
  }

  // A ring row of moments, averaged across the slices around [slice, slice + kRows).
  void average_inputs(int64_t slice, int64_t row) {
    const float *s[kMaxTaps + kRows], *d[kMaxTaps + kRows];
    for (int64_t t = 0; t < args.taps + kRows - 1; ++t) {
      float* to = inputs + 2 * t * pitch;
      // Every owned slice is once in the middle of a block: there its rows are counted.
      const int64_t at = slice - radius + t;
      const bool total = !gradient && at >= slice && at < least(slice + kRows, forward_slices.end);
      load_row(at, row, to, to + pitch, total);
      s[t] = to;
      d[t] = to + pitch;
    }
    float* out = ring_row(row);
    const int64_t count = input_columns.count();
    problem.passes.column_moments(s, problem.taps, count, {out, out + 2 * pitch, nullptr, kMaps * pitch});
    problem.passes.column_moments(d, problem.taps, count, {out + pitch, out + 3 * pitch, nullptr, kMaps * pitch});
  }

  // The moments of one of the block's slices, averaged down the rows around [row, row + kRows).
  void average_moments(int64_t row, int64_t in_block) {
    const float* from[kMaxTaps + kRows];
    for (int m = 0; m < 4; ++m) {
      for (int64_t t = 0; t < args.taps + kRows - 1; ++t)
        from[t] = ring_row(row - radius + t) + (in_block * kMaps + m) * pitch;
      problem.passes.column_sums(from, problem.taps, input_columns.count(), averaged + m * pitch, 4 * pitch);
    }
  }

  void forward_block(int64_t slice) {
    int64_t next = forward_rows.begin - radius;
    for (int64_t row = forward_rows.begin; row < forward_rows.end; row += kRows) {
      for (; next < row + kRows + radius; ++next) average_inputs(slice, next);
      for (int64_t z = 0; z < kRows && slice + z < forward_slices.end; ++z) {
        average_moments(row, z);
        for (int64_t r = 0; r < kRows && row + r < forward_rows.end; ++r) finish_row(slice + z, row + r, averaged + r * 4 * pitch);
      }
    }
  }

  void finish_row(int64_t slice, int64_t row, float* sums) {
    float* out = gradient ? partial_row(slice, row) : nullptr;
    point_row(sums, false, out, partial_pitch);
    finish_point_row(slice, row, out, partial_pitch);
  }

  // A ring row of partials, averaged across the slices around [slice, slice + kRows).
  void average_partials(int64_t slice, int64_t row) {
    const float* from[kMaxTaps + kRows];
    for (int m = 0; m < maps; ++m) {
      for (int64_t t = 0; t < args.taps + kRows - 1; ++t) {
        const int64_t at = slice - radius + t;
        from[t] = forward_slices.contains(at) ? partial_row(at, row) + m * partial_pitch : zeros;
      }
      problem.passes.column_sums(from, problem.taps, forward_columns.count(), ring_row(row) + m * pitch, kMaps * pitch);
    }
  }

  // The same down the rows, for one of the block's slices; there is nothing outside the rows that are defined.
  void average_adjoints(int64_t row, int64_t in_block) {
    const float* from[kMaxTaps + kRows];
    for (int m = 0; m < maps; ++m) {
      for (int64_t t = 0; t < args.taps + kRows - 1; ++t) {
        const int64_t at = row - radius + t;
        from[t] = forward_rows.contains(at) ? ring_row(at) + (in_block * kMaps + m) * pitch : zeros;
      }
      problem.passes.column_sums(from, problem.taps, forward_columns.count(), adjoint + m * adjoint_pitch + lead,
                                 maps * adjoint_pitch);
    }
  }

  void gradient_block(int64_t slice) {
    int64_t next = forward_rows.begin;
    float *s = inputs, *d = inputs + pitch;
    for (int64_t row = gradient_rows.begin; row < gradient_rows.end; row += kRows) {
      for (; next < least(row + kRows + radius, forward_rows.end); ++next) average_partials(slice, next);
      for (int64_t z = 0; z < kRows && slice + z < gradient_slices.end; ++z) {
        average_adjoints(row, z);
        for (int64_t r = 0; r < kRows && row + r < gradient_rows.end; ++r) {
          load_row(slice + z, row + r, s, d, true);
          finish_gradient_row(slice + z, row + r, adjoint + r * maps * adjoint_pitch + lead, s, d);
        }
      }
    }
  }

  // Without a gradient: all owned slices, for Σ |x - y| of those where the index is not defined.
  void total_slices(Span undefined) {
    for (int64_t slice = undefined.begin; slice < undefined.end; ++slice)
      for (int64_t row = rows.begin; row < rows.end; ++row) load_row(slice, row, inputs, inputs + pitch, true);
  }

  bool run() {
    if (!prepare()) return false;
    if (gradient) {
      int64_t done = forward_slices.begin;
      for (int64_t slice = gradient_slices.begin; slice < gradient_slices.end; slice += kRows) {
        const int64_t needed = least(least(slice + kRows, gradient_slices.end) + radius, forward_slices.end);
        for (; done < needed; done += kRows) forward_block(done);
        gradient_block(slice);
      }
    } else {
      for (int64_t slice = forward_slices.begin; slice < forward_slices.end; slice += kRows) forward_block(slice);
      const Span outside = forward_slices.count() > 0 ? forward_slices : Span{slices.end, slices.end};
      total_slices({slices.begin, outside.begin});
      total_slices({outside.end, slices.end});
    }
    return true;
  }
};

}  // namespace

extern "C" SPLAT_EXPORT int SPLAT_KERNEL(ssim3d)(const Arguments* args) {
  Problem problem;
  if (!describe(*args, true, problem)) return 2;
  const int64_t strip = most(kStripColumns, 8 * problem.border);
  problem.strips = (problem.width + strip - 1) / strip;
  const int64_t slices = 2 * kRows + 2 * problem.radius - 1, columns = problem.width / problem.strips + 2 * problem.border;
  const int64_t most_rows = most(kLeastBandRows, kPartialsBytes / (slices * columns * 3 * 4) - 2 * problem.radius);
  const int64_t most_bands = most(1, args->height / kLeastBandRows);
  problem.bands = least(most_bands, (args->height + most_rows - 1) / most_rows);
  const int64_t wanted = kWantedTasks / most(1, least(kWantedTasks, problem.planes * problem.strips * problem.bands));
  problem.segments = most(1, least(wanted, args->depth / kLeastSegmentSlices));
  return run_tiles<Tile3d>(problem);
}
