// SSIM of volumes: value, map and gradient, kRows slices of a tile at a time.
//
// In a forward block, each row of the slices around the block is read, shifted and averaged across slices (a ring of
// rows). Then every slice of the block is averaged down its rows and along them, which gives 1 - S and its partial
// derivatives. These go to the tile's ring of slices. A gradient block averages the partials around it in the same way.
//
// A task is a block, or with many threads a piece of its rows; ssim3d_schedule.h defines their order. All threads share
// the rings of slices of some tiles, and each thread has rings of rows of its own.
#include "ssim3d_schedule.h"
#include "ssim_tile.h"

namespace {

constexpr int64_t kStripColumns = 256;
constexpr int64_t kLeastBandRows = 32;
constexpr int64_t kRingBytes = 8 << 20;  // bytes of the rings of slices, unless one ring needs more

// A call: its cut into tiles and tasks, and the data that these share.
struct Volumes {
  Schedule schedule;
  int threads;          // number of usable threads
  int64_t row_blocks;   // blocks of kRows rows in a tile, at most
  int64_t ring_floats;  // floats of a tile's ring of slices, at most
  int64_t pieces;       // pieces into which the rows of a block are cut
  double* totals;       // [tiles, blocks, row_blocks, 3]
  float* constants;     // [tiles, channels, 3], see ColumnConstants
  float* rings;         // [tiles of a group, ring_floats]

  int64_t cells() const { return schedule.most_blocks() * row_blocks; }
};

struct Tile3d : Tile {
  static constexpr int kMaps = 4;     // in the ring: means and variances in forward, 3 or 4 partials in backward
  static constexpr int kMoments = 6;  // of s and d: means, means of squares, variances

  const Schedule& schedule;
  const Axis &across, &down;  // the window along slices, and down the rows
  const int64_t slice_radius;
  Span forward_rows;
  int64_t partial_pitch, partial_rows;
  Ring ring, partials;  // rows of kRows slices, and slices of partials
  float *inputs, *averaged, *zeros, *adjoint;

  Tile3d(const Problem& p, const Schedule& s, int64_t tile)
      : Tile(p, tile, nullptr), schedule(s), across(p.axes[kSlices]), down(p.axes[kRowsDown]),
        slice_radius(p.axes[kSlices].radius) {
    forward_rows = (gradient ? gradient_rows.widened(radius) : rows).within(problem.rows);
    partial_pitch = round_up(forward_columns.count() + kLanes, 16);
    partial_rows = round_up(forward_rows.count(), kRows);
  }

  int64_t row_blocks() const { return (most(forward_rows.count(), gradient_rows.count()) + kRows - 1) / kRows; }
  int64_t ring_floats() const { return gradient ? schedule.ring_slices * partial_rows * maps * partial_pitch : 0; }

  bool prepare(const float* constants, float* ring_of_slices) {
    const int64_t ring_rows = kRows + 2 * radius, adjoint_floats = maps * kRows * adjoint_pitch;
    const int64_t inputs_rows = 2 * reads(kSlices);
    const int64_t in_rows = common_rows() + inputs_rows + ring_rows * kRows * kMaps + kRows * kMoments + 1;
    const int64_t floats = in_rows * pitch + adjoint_floats;
    float* memory = static_cast<float*>(splat_ssim_scratch(floats * int64_t(sizeof(float))));
    if (!memory) return false;
    begin(memory, constants);
    inputs = memory + common_rows() * pitch;
    ring = {inputs + inputs_rows * pitch, 0, ring_rows, kRows * kMaps * pitch};
    averaged = ring.memory + ring_rows * kRows * kMaps * pitch;
    zeros = averaged + kRows * kMoments * pitch;
    adjoint = zeros + pitch;
    partials = {ring_of_slices, schedule.forward.begin, schedule.ring_slices, partial_rows * maps * partial_pitch};
    for (int64_t j = 0; j < pitch + adjoint_floats; ++j) zeros[j] = 0;
    return true;
  }

  int64_t partial_offset(int64_t row) const { return (row - forward_rows.begin) * maps * partial_pitch; }

  // Fills a row of the ring with moments, averaged across the slices around [slice, slice + kRows). With `total`, it
  // also adds up |x - y|.
  void average_inputs(int64_t slice, int64_t row, bool total) {
    float* out = ring[row];
    const int64_t count = input_columns.count();
    if (source_of(row, args.height, args.padding) < 0) {
      for (int64_t r = 0; r < kRows; ++r, out += kMaps * pitch) {
        fill_outside({0, count}, out, out + pitch);
        fill(out + 2 * pitch, count, 0);
        fill(out + 3 * pitch, count, 0);
      }
      return;
    }
    const float *s[kMaxTaps + kRows], *d[kMaxTaps + kRows];
    for (int64_t t = 0; t < reads(kSlices); ++t) {
      float* to = inputs + 2 * t * pitch;
      // Every owned slice is in the middle of one block, which counts its rows.
      const int64_t at = slice - slice_radius + t;
      load_row(at, row, to, to + pitch, total && at >= slice && at < least(slice + kRows, schedule.forward.end));
      s[t] = to;
      d[t] = to + pitch;
    }
    const auto average = [&](const float* const* image_rows, float* to) {
      across.passes.column_moments(column_rows(image_rows, nullptr, slice - slice_radius, args.depth, kSlices),
                                   across.taps, count, {to, nullptr, to + 2 * pitch, kMaps * pitch});
    };
    average(s, out);
    average(d, out + pitch);
  }

  // Averages the moments of one of the block's slices down the rows. `around` has the rows of the ring from `first` on.
  void average_moments(const float* const* around, int64_t first, int64_t in_block) {
    const float *means[kMaxTaps + kRows], *variances[kMaxTaps + kRows];
    for (int m = 0; m < 2; ++m) {
      for (int64_t t = 0; t < reads(kRowsDown); ++t) {
        means[t] = around[t] + (in_block * kMaps + m) * pitch;
        variances[t] = means[t] + 2 * pitch;
      }
      float* out = averaged + m * pitch;
      down.passes.column_moments(column_rows(means, variances, first, args.height, kRowsDown), down.taps,
                                 input_columns.count(), {out, out + 2 * pitch, out + 4 * pitch, kMoments * pitch});
    }
  }

  // Computes the row blocks `piece` of forward block `block`. Adds to `cells`, the totals of the block's row blocks.
  void forward(int64_t block, Span piece, double* cells) {
    const int64_t slice = schedule.forward.begin + block * kRows, slices_end = schedule.forward.end;
    const Span span = Span{forward_rows.begin + piece.begin * kRows, forward_rows.begin + piece.end * kRows};
    const Span mine = span.within(forward_rows);
    // Rows that the tile owns, but where the index is not defined, count for |x - y| too.
    const Span counted = {mine.begin == forward_rows.begin ? rows.begin : mine.begin,
                          mine.end == forward_rows.end ? rows.end : mine.end};
    const float* around[kMaxTaps + kRows];
    float* slices_of_partials[kRows];
    for (int64_t z = 0; z < kRows; ++z) slices_of_partials[z] = gradient ? partials[slice + z] : nullptr;
    ring.first = mine.begin - radius;
    int64_t next = ring.first;
    for (int64_t row = mine.begin; row < mine.end; row += kRows) {
      totals = cells + 3 * (row - forward_rows.begin) / kRows;
      for (; next < least(row + kRows, mine.end) + radius; ++next)
        average_inputs(slice, next, !gradient && counted.contains(next));
      // No rows are loaded below the last ones that count. But the pass may read such rows for its centre, so the last
      // row takes their place.
      const int64_t there = next - (row - radius);
      ring.list(row - radius, there, around);
      for (int64_t t = there; t < reads(kRowsDown); ++t) around[t] = around[there - 1];
      for (int64_t z = 0; z < kRows && slice + z < slices_end; ++z) {
        average_moments(around, row - radius, z);
        for (int64_t r = 0; r < kRows && row + r < mine.end; ++r) {
          float* out = gradient ? slices_of_partials[z] + partial_offset(row + r) : nullptr;
          point_row(averaged + r * kMoments * pitch, out, partial_pitch, all_forward(), slice + z + slice_radius,
                    row + r + kRows + radius);
          finish_point_row(slice + z, row + r, out, partial_pitch);
        }
      }
    }
    if (gradient || block > 0 || piece.begin > 0) return;
    // Reads the slices where the index is not defined, for Σ |x - y|.
    totals = cells;
    for (int64_t at = slices.begin; at < slices.end; ++at)
      for (int64_t row = rows.begin; row < rows.end && !schedule.forward.contains(at); ++row)
        load_row(at, row, inputs, inputs + pitch, true);
  }

  // Fills a row of the ring with partials, averaged across `slices`. These are null where the index is not defined.
  void average_partials(const float* const* slices, int64_t row) {
    const float* from[kMaxTaps + kRows];
    for (int m = 0; m < maps; ++m) {
      for (int64_t t = 0; t < reads(kSlices); ++t)
        from[t] = slices[t] ? slices[t] + partial_offset(row) + m * partial_pitch : zeros;
      across.passes.column_sums(from, across.taps, forward_columns.count(), ring[row] + m * pitch, kMaps * pitch);
    }
  }

  // Averages the partials of one of the block's slices down `around`, which are rows of the ring.
  void average_adjoints(const float* const* around, int64_t in_block) {
    const float* from[kMaxTaps + kRows];
    for (int m = 0; m < maps; ++m) {
      for (int64_t t = 0; t < reads(kRowsDown); ++t)
        from[t] = around[t] ? around[t] + (in_block * kMaps + m) * pitch : zeros;
      down.passes.column_sums(from, down.taps, forward_columns.count(), adjoint + m * adjoint_pitch + lead,
                              maps * adjoint_pitch);
    }
  }

  // Lists the rows or slices (by `axis`) of a ring around a block. They are null where they are not defined.
  void list_defined(const Ring& of, int64_t block, Span defined, int axis, const float** around) const {
    const int64_t first = block - problem.axes[axis].radius, count = reads(axis);
    for (int64_t t = 0; t < count; ++t) around[t] = nullptr;
    const Span there = Span{first, first + count}.within(defined);
    if (there.count() > 0) of.list(there.begin, there.count(), around + (there.begin - first));
  }

  // Computes the row blocks `piece` of gradient block `block`, like `forward`.
  void backward(int64_t block, Span piece, double* cells) {
    const int64_t slice = schedule.gradient.begin + block * kRows, slices_end = schedule.gradient.end;
    const Span span = {gradient_rows.begin + piece.begin * kRows, gradient_rows.begin + piece.end * kRows};
    const Span mine = span.within(gradient_rows);
    const float *slices_around[kMaxTaps + kRows], *around[kMaxTaps + kRows];
    const Span seen = Span{slice, least(slice + kRows, slices_end)}.widened(slice_radius);
    list_defined(partials, slice, seen.within(schedule.forward), kSlices, slices_around);
    const Span needed = mine.widened(radius).within(forward_rows);
    ring.first = needed.begin;
    int64_t next = needed.begin;
    float *s = inputs, *d = inputs + pitch;
    for (int64_t row = mine.begin; row < mine.end; row += kRows) {
      totals = cells + 3 * (row - gradient_rows.begin) / kRows;
      for (; next < least(row + kRows + radius, needed.end); ++next) average_partials(slices_around, next);
      list_defined(ring, row, needed, kRowsDown, around);
      for (int64_t z = 0; z < kRows && slice + z < slices_end; ++z) {
        average_adjoints(around, z);
        for (int64_t r = 0; r < kRows && row + r < mine.end; ++r) {
          load_row(slice + z, row + r, s, d, true);
          finish_gradient_row(slice + z, row + r, adjoint + r * maps * adjoint_pitch + lead, all_gradient(), s, d);
        }
      }
    }
  }

  // Runs one piece of a step of the schedule.
  bool run(const Volumes& volumes, int64_t tile, float* ring_of_slices, Step step, int64_t piece) {
    if (!prepare(volumes.constants + 3 * channels() * tile, ring_of_slices)) return false;
    const int64_t blocks = row_blocks();
    const Span mine = {blocks * piece / volumes.pieces, blocks * (piece + 1) / volumes.pieces};
    double* cells = volumes.totals + (tile * volumes.cells() + step.block * volumes.row_blocks) * 3;
    if (step.gradient) {
      backward(step.block, mine, cells);
    } else {
      forward(step.block, mine, cells);
    }
    return true;
  }
};

// Runs the tiles [first, first + count). Their steps have the order of the schedule.
bool run_group(const Problem& problem, const Volumes& volumes, int64_t first, int64_t count, Progress progress) {
  int failed = 0;
  progress.tiles = count;
  progress.clear();
  const int threads = volumes.threads;
  parallel_for(volumes.schedule.steps() * progress.units(), threads, [&](int64_t task, int thread) {
    const Step step = volumes.schedule.step(task / progress.units());
    const int64_t unit = progress.take(step, thread, threads);
    const int64_t in_group = unit / volumes.pieces;
    progress.wait(step, in_group);
    Tile3d tile(problem, volumes.schedule, first + in_group);
    float* ring = volumes.rings + in_group * volumes.ring_floats;
    if (!tile.run(volumes, first + in_group, ring, step, unit % volumes.pieces))
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    progress.finish(step, in_group);
  });
  return !failed;
}

// Runs all tiles, a group at a time. Returns a status.
Status run_volumes(const Problem& problem) {
  const Arguments& args = *problem.args;
  const bool gradient = problem.partials > 0;
  const int64_t tiles_of_plane = problem.bands * problem.strips, tiles = problem.planes * tiles_of_plane;
  Volumes volumes = {};
  volumes.schedule = make_schedule(problem, gradient);
  volumes.threads = splat_ssim_usable_threads(args.threads);
  const Schedule& schedule = volumes.schedule;
  int64_t least_blocks = INT64_MAX;
  for (int64_t tile = 0; tile < tiles_of_plane; ++tile) {
    const Tile3d cut(problem, schedule, tile);
    least_blocks = least(least_blocks, cut.row_blocks());
    volumes.row_blocks = most(volumes.row_blocks, cut.row_blocks());
    volumes.ring_floats = most(volumes.ring_floats, cut.ring_floats());
  }
  const int64_t floats = int64_t(sizeof(float)), ring_bytes = most(1, volumes.ring_floats * floats);
  const int64_t group = gradient ? least(tiles, volumes.threads > 1 ? most(1, kRingBytes / ring_bytes) : 1) : tiles;
  // Without a gradient, forward blocks need not wait for each other. A piece is large enough to have all rows to which
  // its padding folds back.
  const int64_t together = group * (gradient ? 1 : schedule.forward_blocks);
  const int64_t row_radius = problem.axes[kRowsDown].radius;
  const int64_t blocks_of_piece = problem.folds ? (2 * row_radius + kRows) / kRows + 1 : 2;
  volumes.pieces = most(1, least((volumes.threads + together - 1) / together, least_blocks / blocks_of_piece));

  volumes.totals = static_cast<double*>(std::calloc(size_t(most(1, tiles * volumes.cells())) * 3, sizeof(double)));
  volumes.constants = static_cast<float*>(std::calloc(size_t(most(1, tiles * problem.stride)) * 3, sizeof(float)));
  Progress progress = {schedule, group, volumes.pieces, nullptr};
  progress.counters = static_cast<int32_t*>(std::malloc(size_t(progress.size()) * sizeof(int32_t)));
  volumes.rings = static_cast<float*>(splat_ssim_shared_scratch(group * volumes.ring_floats * floats));
  bool done = volumes.totals && volumes.constants && progress.counters && (volumes.rings || volumes.ring_floats == 0);
  if (done) {
    parallel_for(tiles, volumes.threads, [&](int64_t index, int) {
      Tile3d tile(problem, schedule, index);
      tile.choose_constants(volumes.constants + 3 * problem.stride * index);
      tile.clear_folded_gradients();
    });
    for (int64_t first = 0; done && first < tiles; first += group)
      done = run_group(problem, volumes, first, least(group, tiles - first), progress);
    add_totals(problem, volumes.totals, volumes.cells());
  }
  std::free(progress.counters);
  std::free(volumes.constants);
  std::free(volumes.totals);
  return done ? kOk : kOutOfMemory;
}

}  // namespace

extern "C" SPLAT_EXPORT Status SPLAT_KERNEL(ssim3d)(const Arguments* args) {
  Problem problem;
  if (!describe(*args, true, problem)) return kBadArgument;
  const int64_t strip = most(kStripColumns, 8 * problem.border);
  problem.strips = (problem.width + strip - 1) / strip;
  // The bands are chosen such that a tile's ring of slices fits kRingBytes. Calls without a gradient use the same
  // bands.
  const int64_t columns = problem.width / problem.strips + 2 * problem.border + kLanes;
  const int64_t row_bytes = make_schedule(problem, true).ring_slices * columns * 3 * int64_t(sizeof(float));
  const int64_t most_rows = most(kLeastBandRows, kRingBytes / row_bytes - 2 * problem.axes[kRowsDown].radius);
  problem.bands = least(most(1, args->height / kLeastBandRows), (args->height + most_rows - 1) / most_rows);
  return run_volumes(problem);
}
