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

  static constexpr int kMaps = 4;  // in the ring: means and variances going forward, partials (3 or 4) going back
  static constexpr int kMoments = 6;  // of s and d: means, means of squares, variances

  Span forward_slices, forward_rows;
  int64_t partial_pitch, partial_rows;
  Ring ring, partials;  // rows of kRows slices; slices of partials
  float *inputs, *averaged, *zeros, *adjoint;

  bool prepare() {
    forward_slices = (gradient ? gradient_slices.widened(radius) : slices).within(problem.slices);
    forward_rows = (gradient ? gradient_rows.widened(radius) : rows).within(problem.rows);
    const int64_t ring_rows = kRows + 2 * radius, partial_slices = 2 * kRows + 2 * radius - 1;
    partial_pitch = round_up(forward_columns.count() + kLanes, 16);
    partial_rows = round_up(forward_rows.count(), kRows);
    const int64_t inputs_rows = 2 * (args.taps + kRows - 1), adjoint_floats = maps * kRows * adjoint_pitch;
    const int64_t in_rows = common_rows() + inputs_rows + ring_rows * kRows * kMaps + kRows * kMoments;
    const int64_t in_partials = gradient ? partial_slices * partial_rows * maps : 0;
    const int64_t floats = in_rows * pitch + in_partials * partial_pitch + pitch + adjoint_floats;
    float* memory = static_cast<float*>(splat_ssim_scratch(floats * int64_t(sizeof(float))));
    if (!memory) return false;
    begin(memory, 1);
    inputs = memory + common_rows() * pitch;
    ring = {inputs + inputs_rows * pitch, forward_rows.begin - radius, ring_rows, kRows * kMaps * pitch};
    averaged = ring.memory + ring_rows * kRows * kMaps * pitch;
    zeros = averaged + kRows * kMoments * pitch;
    adjoint = zeros + pitch;
    partials = {adjoint + adjoint_floats, forward_slices.begin, partial_slices, partial_rows * maps * partial_pitch};
    for (int64_t j = 0; j < pitch + adjoint_floats; ++j) zeros[j] = 0;
    return true;
  }

  int64_t partial_offset(int64_t row) const { return (row - forward_rows.begin) * maps * partial_pitch; }

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
    float* out = ring[row];
    const int64_t count = input_columns.count();
    problem.passes.column_moments(s, nullptr, problem.taps, count, {out, nullptr, out + 2 * pitch, kMaps * pitch});
    problem.passes.column_moments(d, nullptr, problem.taps, count, {out + pitch, nullptr, out + 3 * pitch, kMaps * pitch});
  }

  // The moments of one of the block's slices, averaged down `around`, rows of the ring.
  void average_moments(const float* const* around, int64_t in_block) {
    const float *means[kMaxTaps + kRows], *variances[kMaxTaps + kRows];
    for (int m = 0; m < 2; ++m) {
      for (int64_t t = 0; t < args.taps + kRows - 1; ++t) {
        means[t] = around[t] + (in_block * kMaps + m) * pitch;
        variances[t] = means[t] + 2 * pitch;
      }
      float* out = averaged + m * pitch;
      problem.passes.column_moments(means, variances, problem.taps, input_columns.count(),
                                    {out, out + 2 * pitch, out + 4 * pitch, kMoments * pitch});
    }
  }

  void forward_block(int64_t slice) {
    const float* around[kMaxTaps + kRows];
    float* slices_of_partials[kRows];
    for (int64_t z = 0; z < kRows; ++z) slices_of_partials[z] = gradient ? partials[slice + z] : nullptr;
    int64_t next = forward_rows.begin - radius;
    for (int64_t row = forward_rows.begin; row < forward_rows.end; row += kRows) {
      for (; next < row + kRows + radius; ++next) average_inputs(slice, next);
      ring.list(row - radius, args.taps + kRows - 1, around);
      for (int64_t z = 0; z < kRows && slice + z < forward_slices.end; ++z) {
        average_moments(around, z);
        for (int64_t r = 0; r < kRows && row + r < forward_rows.end; ++r) {
          float* out = gradient ? slices_of_partials[z] + partial_offset(row + r) : nullptr;
          point_row(averaged + r * kMoments * pitch, true, out, partial_pitch);
          finish_point_row(slice + z, row + r, out, partial_pitch);
        }
      }
    }
  }

  // A ring row of partials, averaged across `slices`; there are none (null) where the index is not defined.
  void average_partials(const float* const* slices, int64_t row) {
    const float* from[kMaxTaps + kRows];
    for (int m = 0; m < maps; ++m) {
      for (int64_t t = 0; t < args.taps + kRows - 1; ++t)
        from[t] = slices[t] ? slices[t] + partial_offset(row) + m * partial_pitch : zeros;
      problem.passes.column_sums(from, problem.taps, forward_columns.count(), ring[row] + m * pitch, kMaps * pitch);
    }
  }

  // The same down `around`, rows of the ring, for one of the block's slices.
  void average_adjoints(const float* const* around, int64_t in_block) {
    const float* from[kMaxTaps + kRows];
    for (int m = 0; m < maps; ++m) {
      for (int64_t t = 0; t < args.taps + kRows - 1; ++t)
        from[t] = around[t] ? around[t] + (in_block * kMaps + m) * pitch : zeros;
      problem.passes.column_sums(from, problem.taps, forward_columns.count(), adjoint + m * adjoint_pitch + lead,
                                 maps * adjoint_pitch);
    }
  }

  // Rows or slices of a ring around a block, null where they are not defined.
  void list_defined(const Ring& of, int64_t block, Span defined, const float** around) const {
    for (int64_t t = 0; t < args.taps + kRows - 1; ++t) around[t] = nullptr;
    const Span there = Span{block - radius, block - radius + args.taps + kRows - 1}.within(defined);
    if (there.count() > 0) of.list(there.begin, there.count(), around + (there.begin - (block - radius)));
  }

  void gradient_block(int64_t slice) {
    const float *slices_around[kMaxTaps + kRows], *around[kMaxTaps + kRows];
    list_defined(partials, slice, forward_slices, slices_around);
    int64_t next = forward_rows.begin;
    float *s = inputs, *d = inputs + pitch;
    for (int64_t row = gradient_rows.begin; row < gradient_rows.end; row += kRows) {
      for (; next < least(row + kRows + radius, forward_rows.end); ++next) average_partials(slices_around, next);
      list_defined(ring, row, forward_rows, around);
      for (int64_t z = 0; z < kRows && slice + z < gradient_slices.end; ++z) {
        average_adjoints(around, z);
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
