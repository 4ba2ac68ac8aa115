// SSIM of images: value, map and gradient in one pass over the rows of a tile, kRows at a time:
//   1. image rows are read, shifted and kept as rows of s and d (a ring);
//   2. down the columns, then along the rows, they become the four moments; 1 - S and its partial derivatives follow;
//   3. the rows of partials (a ring) are averaged down the columns, then along the rows, which gives the gradient of
//      the rows `lag` behind: dx = w*mean + s (w*square_s) + d (w*square_d).
// Each thread's scratch is a few rows of a strip; nothing as large as an image is kept. Columns to the left and to the
// right of all differences between the images, such as the background around an object, are read but not computed.
#include "ssim_tile.h"

namespace {

constexpr int64_t kStripColumns = 640;
constexpr int64_t kLeastBandRows = 128;
constexpr int64_t kWantedTasks = 24;

struct Tile2d : Tile {
  using Tile::Tile;

  static constexpr int kMoments = 6;  // of s and d: means, means of squares, variances

  int64_t lag, first_row, next_input;
  Ring inputs, partials;  // rows of s and d, and rows of partials
  // For the rows in the rings: the input columns where the images differ, and the forward columns where partials are
  // not 0.
  Span differing[kMaxTaps + 2 * kRows], computed[kMaxTaps + 2 * kRows];
  float *averaged, *adjoint;

  bool prepare() {
    first_row = most(gradient ? gradient_rows.begin - radius : rows.begin, problem.rows.begin);
    // The gradient's blocks of rows begin `lag` rows behind the forward blocks. This `lag` makes one of them begin at
    // the gradient's first row.
    const int64_t behind = (first_row - gradient_rows.begin - radius) % kRows;
    lag = radius + (behind + kRows) % kRows;
    next_input = first_row - radius;
    const int64_t input_rows = kRows + radius + (gradient ? lag : radius), partial_rows = kRows + radius + lag;
    const int64_t adjoint_floats = maps * kRows * adjoint_pitch;
    const int64_t in_rows = common_rows() + 2 * input_rows + kMoments * kRows + maps * partial_rows;
    const int64_t floats = in_rows * pitch + adjoint_floats + 3 * channels();
    float* memory = static_cast<float*>(splat_ssim_scratch(floats * int64_t(sizeof(float))));
    if (!memory) return false;
    float* constants = memory + in_rows * pitch + adjoint_floats;
    choose_constants(constants);
    begin(memory, constants);
    clear_folded_gradients();
    inputs = {memory + common_rows() * pitch, next_input, input_rows, 2 * pitch};
    averaged = inputs.memory + 2 * input_rows * pitch;
    partials = {averaged + kMoments * kRows * pitch, gradient_rows.begin - radius, partial_rows, maps * pitch};
    for (int64_t row = partials.first; row < first_row; ++row) clear_partials(row);
    adjoint = partials.memory + maps * partial_rows * pitch;
    for (int64_t j = 0; j < adjoint_floats; ++j) adjoint[j] = 0;
    return true;
  }

  void load_rows(int64_t end) {
    for (; next_input < end; ++next_input) {
      float* row = inputs[next_input];
      load_row(0, next_input, row, row + pitch, true);
      differing[inputs.slot(next_input)] = differing_columns(row + pitch);
    }
  }

  // The smallest stretch that contains the stretches of the rows [row, row + number).
  static Span joined(const Span* spans, const Ring& ring, int64_t row, int64_t number) {
    Span all = {0, 0};
    for (int64_t t = 0; t < number; ++t) all = all.joined(spans[ring.slot(row + t)]);
    return all;
  }

  void clear_partials(int64_t row) {
    if (!gradient) return;
    computed[partials.slot(row)] = {0, 0};
    std::memset(partials[row], 0, size_t(maps * pitch) * sizeof(float));
  }

  // Computes the forward rows [row, row + kRows).
  void forward_block(int64_t row) {
    load_rows(row + kRows + radius);
    const float *s[kMaxTaps + kRows], *d[kMaxTaps + kRows];
    inputs.list(row - radius, reads(kRowsDown), s);
    const Span stretch = reached(joined(differing, inputs, row - radius, reads(kRowsDown)));
    for (int64_t t = 0; t < reads(kRowsDown); ++t) {
      s[t] += stretch.begin;
      d[t] = s[t] + pitch;
    }
    const int64_t count = stretch.empty() ? 0 : stretch.count() + 2 * border;
    const Axis& down = problem.axes[kRowsDown];
    const auto average = [&](const float* const* image_rows, float* out) {
      down.passes.column_moments(column_rows(image_rows, nullptr, row - radius, args.height, kRowsDown), down.taps,
                                 count, {out, out + 2 * pitch, out + 4 * pitch, kMoments * pitch});
    };
    average(s, averaged + stretch.begin);
    average(d, averaged + pitch + stretch.begin);
    for (int64_t r = 0; r < kRows; ++r) {
      if (!problem.rows.contains(row + r)) {
        clear_partials(row + r);
        continue;
      }
      float* out = gradient ? partials[row + r] : nullptr;
      if (gradient) computed[partials.slot(row + r)] = stretch;
      point_row(averaged + r * kMoments * pitch, out, pitch, stretch, 0, row + r + kRows + radius);
      finish_point_row(0, row + r, out, pitch);
    }
  }

  // Computes the gradient of rows [row, row + kRows).
  void gradient_block(int64_t row) {
    const float* from[kMaxTaps + kRows];
    const Axis& down = problem.axes[kRowsDown];
    partials.list(row - radius, reads(kRowsDown), from);
    const Span stretch = joined(computed, partials, row - radius, reads(kRowsDown));
    const Span columns_back = problem.folds ? all_gradient() : reached_back(stretch);
    // Wide enough that everything that is read along the row comes from this block. The partials outside the stretch
    // are 0.
    const Span wide = stretch.empty() ? stretch : stretch.widened(2 * border + kLanes);
    const Span read = problem.folds ? all_forward() : wide.in_vectors(forward_columns.count());
    for (int64_t t = 0; t < reads(kRowsDown); ++t) from[t] += read.begin;
    for (int m = 0; m < maps; ++m) {
      down.passes.column_sums(from, down.taps, read.count(), adjoint + m * adjoint_pitch + lead + read.begin,
                              maps * adjoint_pitch);
      for (int64_t t = 0; t < reads(kRowsDown); ++t) from[t] += pitch;
    }
    for (int64_t r = 0; r < kRows && row + r < gradient_rows.end; ++r) {
      const float* s = inputs[row + r];
      finish_gradient_row(0, row + r, adjoint + r * maps * adjoint_pitch + lead, columns_back, s, s + pitch);
    }
  }

  bool run() {
    if (!prepare()) return false;
    const int64_t end = gradient ? gradient_rows.end + lag : least(rows.end, problem.rows.end);
    for (int64_t row = first_row; row < end; row += kRows) {
      const bool beyond = gradient && row >= gradient_rows.end + radius;
      if (!beyond && row < problem.rows.end && row + kRows > problem.rows.begin) {
        forward_block(row);
      } else {
        load_rows(row + kRows + radius);
        for (int r = 0; r < kRows; ++r) clear_partials(row + r);
      }
      if (gradient)
        if (row - lag >= gradient_rows.begin) gradient_block(row - lag);
    }
    load_rows(rows.end);
    return true;
  }
};

}  // namespace

extern "C" SPLAT_EXPORT Status SPLAT_KERNEL(ssim2d)(const Arguments* args) {
  Problem problem;
  if (!describe(*args, false, problem)) return kBadArgument;
  const int64_t strip = most(kStripColumns, 8 * problem.border);
  problem.strips = (problem.width + strip - 1) / strip;
  const int64_t wanted = kWantedTasks / most(1, least(kWantedTasks, problem.planes * problem.strips));
  problem.bands = most(1, least(wanted, args->height / kLeastBandRows));
  const int64_t tasks = problem.planes * problem.bands * problem.strips;
  double* totals = static_cast<double*>(std::calloc(size_t(most(tasks, 1)) * 3, sizeof(double)));
  if (!totals) return kOutOfMemory;
  int failed = 0;
  parallel_for(tasks, static_cast<int>(args->threads), [&](int64_t task, int) {
    if (!Tile2d(problem, task, totals + task * 3).run()) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
  });
  add_totals(problem, totals, 1);
  std::free(totals);
  return failed ? kOutOfMemory : kOk;
}
