// SSIM of images: value, map and gradient in one pass.
//
// A plane of rows (one channel, or rows of W·C elements where channels are interleaved) is cut into tiles: a band of rows
// of a strip of columns. The cut depends on the shape alone, so the result does not depend on the number of threads. A
// tile goes down its rows, kRows at a time:
//   1. image rows are read, shifted and kept as rows of s and d (a ring);
//   2. down the columns, then along the rows, they become the four moments; 1 - S and its partial derivatives follow;
//   3. the rows of partials (a ring) are averaged down the columns, then along the rows, and give the gradient of rows
//      `lag` behind: dx = w*mean + s (w*square_s) + d (w*square_d).
// Scratch is a few rows of a strip for each thread; nothing of the size of an image is kept.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "parallel.h"
#include "ssim_rows.h"
#include "ssim_window.h"

namespace {

constexpr int64_t kStripColumns = 512;
constexpr int64_t kLeastBandRows = 64;
constexpr int64_t kWantedTasks = 48;

// What is the same for every tile of a call.
struct Problem {
  const Arguments* args;
  Reader reader;
  int64_t stride, width;            // elements between neighbours of a row, elements of a row
  int64_t radius, border;           // of the window: in rows, in elements of a row
  int64_t planes, bands, strips;
  int64_t row_begin, row_end, column_begin, column_end;  // where the index is defined, in image positions
  bool folds;                       // padding by copies: the gradient of the border is added to what was copied
  int sign;                         // of the gradient where only one is wanted
  float window[kMaxTaps];
  float scale;
  PointConstants point;
};

// The image position that a padded position copies, or -1 where padding is zero.
SPLAT_INLINE int64_t source_of(int64_t i, int64_t n, int64_t padding) {
  if (i >= 0 && i < n) return i;
  if (padding == kReplicate) return i < 0 ? 0 : n - 1;
  if (padding == kReflect) {
    const int64_t mirrored = i < 0 ? -i : 2 * (n - 1) - i;
    return mirrored >= 0 && mirrored < n ? mirrored : -1;
  }
  return -1;
}

template <int kTaps, int kStride, int kPartials>
struct Tile {
  static constexpr bool kGradient = kPartials > 0;
  static constexpr int kImages = kPartials == 4 ? 2 : 1;

  const Problem& problem;
  const Arguments& args;
  Window<kTaps> window;
  int64_t plane, row0, row1, column0, column1;  // what the tile owns, in image positions
  double* totals;                               // [3]

  int64_t gradient_row0, gradient_row1, gradient_column0, gradient_column1;
  int64_t forward_column0, forward_count, input_column0, input_count;
  int64_t lag, first_row, pitch;
  int64_t ring_rows, partial_rows;
  float *ring, *columns, *partials, *adjoint, *dssim, *contrast, *folded, *borders;
  const char *image1, *image2;
  const float *weight, *l1_weight;
  Shift shift;
  PointConstants point;
  float l1;
  int64_t next_input;

  SPLAT_INLINE int64_t stride() const { return kStride ? kStride : problem.stride; }
  SPLAT_INLINE int64_t radius() const { return kTaps ? kTaps / 2 : problem.radius; }
  SPLAT_INLINE int64_t border() const { return radius() * stride(); }

  Tile(const Problem& p, int64_t task, double* sums)
      : problem(p), args(*p.args), window(p.window, static_cast<int>(args.taps)), totals(sums) {
    const int64_t strip = task % p.strips, band = task / p.strips % p.bands;
    plane = task / (p.strips * p.bands);
    row0 = args.height * band / p.bands;
    row1 = args.height * (band + 1) / p.bands;
    column0 = strip == 0 ? 0 : p.width * strip / p.strips / kLanes * kLanes;
    column1 = strip + 1 == p.strips ? p.width : p.width * (strip + 1) / p.strips / kLanes * kLanes;
    const int64_t fold = p.folds ? 1 : 0;
    gradient_row0 = row0 - (row0 == 0 ? fold * radius() : 0);
    gradient_row1 = row1 + (row1 == args.height ? fold * radius() : 0);
    gradient_column0 = column0 - (column0 == 0 ? fold * border() : 0);
    gradient_column1 = column1 + (column1 == p.width ? fold * border() : 0);
    forward_column0 = kGradient ? gradient_column0 - border() : column0;
    forward_count = (kGradient ? gradient_column1 + border() : column1) - forward_column0;
    input_column0 = forward_column0 - border();
    input_count = forward_count + 2 * border();
    // The gradient's blocks of rows start `lag` behind the forward ones, so that both start where they must.
    lag = round_up(2 * radius(), kRows) - radius();
    first_row = kGradient ? gradient_row0 - radius() : most(row0, p.row_begin);
    next_input = first_row - radius();
  }

  const char* plane_of(const View& view, int64_t bytes) const {
    const int64_t image = args.interleaved ? plane : plane / args.channels;
    const int64_t channel = args.interleaved ? 0 : plane % args.channels;
    return view.data + (image * view.batch + channel * view.channel) * bytes;
  }

  bool prepare() {
    pitch = round_up(input_count + 2 * kLanes, 16);
    ring_rows = kRows + radius() + (kGradient ? lag : radius());
    partial_rows = kRows + radius() + lag;
    const int64_t border_rows = problem.folds && kGradient ? 2 * (radius() + 1) * kImages : 0;
    const int64_t rows = 2 * ring_rows + 4 * kRows + 2 + border_rows +
                         (kGradient ? kPartials * (partial_rows + kRows) + kImages : 0);
    float* memory = static_cast<float*>(splat_ssim_scratch(rows * pitch * int64_t(sizeof(float))));
    if (!memory) return false;
    auto take = [&](int64_t number) {
      float* start = memory;
      memory += number * pitch;
      return start;
    };
    ring = take(2 * ring_rows);
    columns = take(4 * kRows);
    dssim = take(1);
    contrast = take(1);
    borders = take(border_rows);
    if (kGradient) {
      partials = take(kPartials * partial_rows);
      adjoint = take(kPartials * kRows);
      folded = take(kImages);
      std::memset(borders, 0, size_t(border_rows * pitch) * sizeof(float));
    }
    image1 = plane_of(args.img1, problem.reader.bytes1);
    image2 = plane_of(args.img2, problem.reader.bytes2);
    weight = args.weight.data ? reinterpret_cast<const float*>(plane_of(args.weight, sizeof(float))) : nullptr;
    l1_weight = args.weighs_l1 ? weight : nullptr;
    choose_shift();
    const double* coefficients = args.coefficients + plane * 3;
    point = problem.point;
    point.shift_s = 2 * shift.each;
    point.shift_d = shift.difference;
    point.a = static_cast<float>(coefficients[0] * problem.scale);
    point.b = static_cast<float>(coefficients[1] * problem.scale);
    l1 = static_cast<float>(coefficients[2]) * (kPartials == 3 ? problem.point.sign : 1.0f);
    return true;
  }

  // The mean of 64 samples of the tile. A difference is shifted only where the images are clearly apart.
  void choose_shift() {
    shift = {problem.scale, static_cast<float>(args.data_range), 0, 0};
    double sum_s = 0, sum_d = 0;
    for (int i = 0; i < 8; ++i)
      for (int j = 0; j < 8; ++j) {
        const int64_t row = row0 + (row1 - 1 - row0) * i / 7, column = column0 + (column1 - 1 - column0) * j / 7;
        float s, d;
        problem.reader.plain(image1 + (row * args.img1.row + column) * problem.reader.bytes1,
                             image2 + (row * args.img2.row + column) * problem.reader.bytes2, nullptr, 1, shift, &s, &d);
        sum_s += s;
        sum_d += d;
      }
    const float mean_s = static_cast<float>(sum_s / 64), mean_d = static_cast<float>(sum_d / 64);
    if (std::isfinite(mean_s)) shift.each = mean_s / 2;
    if (std::isfinite(mean_d) && std::fabs(mean_d) > 0.05 * args.data_range * problem.scale) shift.difference = mean_d;
  }

  SPLAT_INLINE float* ring_row(int64_t row) const {
    return ring + (row - first_row + radius()) % ring_rows * 2 * pitch;
  }
  SPLAT_INLINE float* partial_row(int64_t row) const {
    return partials + (row - first_row) % partial_rows * kPartials * pitch;
  }
  SPLAT_INLINE const float* weight_row(int64_t row) const { return weight + row * args.weight.row; }
  SPLAT_INLINE const float* l1_weight_row(int64_t row) const { return l1_weight ? weight_row(row) : nullptr; }

  void load_rows(int64_t end) {
    for (; next_input < end; ++next_input) load_row(next_input);
  }

  void load_row(int64_t row) {
    float *s = ring_row(row), *d = s + pitch;
    const int64_t from = source_of(row, args.height, args.padding);
    const float outside_s = -2 * shift.each, outside_d = -shift.difference;
    if (from < 0) {
      for (int64_t j = 0; j < input_count; ++j) s[j] = outside_s, d[j] = outside_d;
      return;
    }
    const int64_t begin = most(input_column0, 0), end = least(input_column0 + input_count, problem.width);
    const bool owned = row >= row0 && row < row1;
    auto read = [&](int64_t first, int64_t last, bool total) {
      if (last <= first) return;
      const float* w = total && l1_weight ? weight_row(row) + first : nullptr;
      const char* x = image1 + (from * args.img1.row + first) * problem.reader.bytes1;
      const char* y = image2 + (from * args.img2.row + first) * problem.reader.bytes2;
      const int64_t at = first - input_column0;
      if (total) totals[2] += problem.reader.totalling(x, y, w, last - first, shift, s + at, d + at);
      else problem.reader.plain(x, y, nullptr, last - first, shift, s + at, d + at);
    };
    if (owned) {
      read(begin, column0, false);
      read(column0, column1, true);
      read(column1, end, false);
    } else {
      read(begin, end, false);
    }
    auto fill = [&](int64_t first, int64_t last) {
      for (int64_t e = first; e < last; ++e) {
        const int64_t pixel = e < 0 ? -((stride() - 1 - e) / stride()) : e / stride();
        const int64_t copied = source_of(pixel, args.width, args.padding);
        const int64_t at = copied * stride() + (e - pixel * stride()) - input_column0, to = e - input_column0;
        s[to] = copied < 0 ? outside_s : s[at];
        d[to] = copied < 0 ? outside_d : d[at];
      }
    };
    fill(input_column0, begin);
    fill(end, input_column0 + input_count);
  }

  // The forward rows [row, row + kRows).
  void forward_block(int64_t row) {
    load_rows(row + kRows + radius());
    const float *s[kMaxTaps + kRows], *d[kMaxTaps + kRows];
    for (int64_t t = 0; t < window.size() + kRows - 1; ++t) {
      s[t] = ring_row(row - radius() + t);
      d[t] = s[t] + pitch;
    }
    column_moments<kTaps>(s, window, input_count, columns, columns + 2 * pitch, 4 * pitch);
    column_moments<kTaps>(d, window, input_count, columns + pitch, columns + 3 * pitch, 4 * pitch);
    for (int r = 0; r < kRows; ++r) {
      if (row + r < problem.row_begin || row + r >= problem.row_end) {
        clear_partials(row + r);
        continue;
      }
      point_row(columns + r * 4 * pitch, kGradient ? partial_row(row + r) : nullptr);
      finish_forward_row(row + r);
    }
  }

  void clear_partials(int64_t row) {
    if (kGradient) std::memset(partial_row(row), 0, size_t(kPartials * pitch) * sizeof(float));
  }

  SPLAT_INLINE void point_row(const float* sums, float* out) {
    for (int64_t j = 0; j < forward_count; j += kLanes) {
      Floats mean[4];
      row_sums<kTaps, 4>(sums + j, pitch, stride(), window, mean);
      const Point p = evaluate<kPartials>({mean[0], mean[1], mean[2], mean[3]}, point);
      store(dssim + j, p.dssim);
      store(contrast + j, p.contrast);
      if constexpr (kGradient) {
        store(out + j, p.mean_1);
        store(out + pitch + j, p.square_s);
        store(out + 2 * pitch + j, p.square_d);
        if constexpr (kPartials == 4) store(out + 3 * pitch + j, p.mean_2);
      }
    }
  }

  // Weights, totals and the map; the partials vanish where the index is not defined.
  void finish_forward_row(int64_t row) {
    const int64_t begin = most(forward_column0, problem.column_begin) - forward_column0;
    const int64_t end = most(begin, least(forward_column0 + forward_count, problem.column_end) - forward_column0);
    if (kGradient) {
      float* out = partial_row(row);
      for (int m = 0; m < kPartials; ++m, out += pitch) {
        for (int64_t j = 0; j < begin; ++j) out[j] = 0;
        for (int64_t j = end; j < forward_count; ++j) out[j] = 0;
        if (weight) {
          const float* w = weight_row(row) + forward_column0;
          for (int64_t j = begin; j < end; ++j) out[j] *= w[j];
        }
      }
    }
    if (row < row0 || row >= row1) return;
    const int64_t mine0 = most(begin, column0 - forward_column0);
    const int64_t mine1 = most(mine0, least(end, column1 - forward_column0));
    if (args.map.data) {
      float* map = reinterpret_cast<float*>(const_cast<char*>(plane_of(args.map, sizeof(float)))) +
                   row * args.map.row + forward_column0;
      for (int64_t j = mine0; j < mine1; ++j) map[j] = 1.0f - dssim[j];
    }
    if (weight) {
      const float* w = weight_row(row) + forward_column0;
      for (int64_t j = mine0; j < mine1; ++j) dssim[j] *= w[j], contrast[j] *= w[j];
    }
    totals[0] += row_total(dssim, mine0, mine1);
    totals[1] += row_total(contrast, mine0, mine1);
  }

  // The gradient of rows [row, row + kRows).
  void gradient_block(int64_t row) {
    const float* rows[kMaxTaps + kRows];
    for (int m = 0; m < kPartials; ++m) {
      for (int64_t t = 0; t < window.size() + kRows - 1; ++t) rows[t] = partial_row(row - radius() + t) + m * pitch;
      column_sums<kTaps, false>(rows, window, forward_count, adjoint + m * pitch, kPartials * pitch);
    }
    for (int64_t r = 0; r < kRows && row + r < gradient_row1; ++r) {
      const float* sums = adjoint + r * kPartials * pitch;
      if (problem.folds) {
        gradient_row(row + r, sums, folded, folded + pitch, 0.0f, nullptr);
        fold_row(row + r);
        continue;
      }
      gradient_row(row + r, sums, output_row(args.grad1, args.grad2, row + r, 0),
                   output_row(args.grad2, args.grad2, row + r, 0), l1, l1_weight_row(row + r));
    }
  }

  // Where the tile's part of a gradient row goes; with one gradient the first wanted of the two views.
  float* output_row(const View& first, const View& second, int64_t row, int64_t column) const {
    const View& view = kPartials == 3 && !first.data ? second : first;
    return reinterpret_cast<float*>(const_cast<char*>(plane_of(view, sizeof(float)))) + row * view.row + column0 + column;
  }

  SPLAT_INLINE void gradient_lanes(const float* sums, const float* s, const float* d, Floats weighted_l1, Floats* out) {
    Floats mean[kPartials];
    row_sums<kTaps, kPartials>(sums, pitch, stride(), window, mean);
    const Floats from_s = load(s) * mean[1], shifted = load(d), from_d = shifted * mean[2];
    const Floats difference = shifted + shift.difference;
    const Ints unequal = (Ints)(difference != 0.0f);
    const Ints sign = bits_as<Ints>(difference) & Ints(Ints{} + INT32_MIN);
    const Floats slope = bits_as<Floats>((bits_as<Ints>(weighted_l1) ^ sign) & unequal);
    out[0] = mean[0] + from_s + from_d + slope;
    if constexpr (kPartials == 4) out[1] = mean[3] + from_s - from_d - slope;
  }

  SPLAT_INLINE void gradient_row(int64_t row, const float* sums, float* out1, float* out2, float l1_slope,
                                 const float* weights) {
    const float *s = ring_row(row) + 2 * border(), *d = s + pitch;
    const int64_t count = gradient_column1 - gradient_column0;
    if (weights) weights += gradient_column0;
    Floats result[kImages];
    int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) {
      const Floats slope = weights ? l1_slope * load(weights + j) : broadcast(l1_slope);
      gradient_lanes(sums + j, s + j, d + j, slope, result);
      store(out1 + j, result[0]);
      if constexpr (kImages == 2) store(out2 + j, result[1]);
    }
    if (j == count) return;
    float last[kLanes] = {};
    const size_t rest = size_t(count - j) * sizeof(float);
    if (weights) std::memcpy(last, weights + j, rest);
    gradient_lanes(sums + j, s + j, d + j, weights ? l1_slope * load(last) : broadcast(l1_slope), result);
    std::memcpy(out1 + j, &result[0], rest);
    if constexpr (kImages == 2) std::memcpy(out2 + j, &result[1], rest);
  }

  // Rows whose gradient also gets what padded rows copied from them are kept until the band is done.
  bool near_border(int64_t row) const { return row <= radius() || row >= args.height - 1 - radius(); }
  float* border_row(int64_t row, int image) const {
    const int64_t slot = row <= radius() ? row : row - (args.height - 1 - radius()) + radius() + 1;
    return borders + (slot * kImages + image) * pitch;
  }

  void fold_row(int64_t row) {
    const int64_t inside = column0 - gradient_column0, count = column1 - column0;
    for (int image = 0; image < kImages; ++image) {
      float* out = folded + image * pitch;
      for (int64_t j = 0; j < gradient_column1 - gradient_column0; ++j) {
        if (j == inside) j += count;
        if (j >= gradient_column1 - gradient_column0) break;
        const int64_t e = gradient_column0 + j;
        const int64_t pixel = e < 0 ? -((stride() - 1 - e) / stride()) : e / stride();
        const int64_t copied = source_of(pixel, args.width, args.padding);
        out[copied * stride() + (e - pixel * stride()) - gradient_column0] += out[j];
      }
      out += inside;
      if (row >= row0 && row < row1 && l1 != 0) add_l1(row, out, image ? -l1 : l1);
      const int64_t from = source_of(row, args.height, args.padding);
      if (near_border(from)) {
        float* kept = border_row(from, image);
        for (int64_t j = 0; j < count; ++j) kept[j] += out[j];
      } else {
        std::memcpy(image ? output_row(args.grad2, args.grad2, from, 0) : output_row(args.grad1, args.grad2, from, 0), out,
                    size_t(count) * sizeof(float));
      }
    }
  }

  void add_l1(int64_t row, float* out, float slope) const {
    const float* d = ring_row(row) + pitch + (column0 - input_column0);
    const float* w = l1_weight ? weight_row(row) + column0 : nullptr;
    for (int64_t j = 0; j < column1 - column0; ++j) {
      const float difference = d[j] + shift.difference;
      const float by = w ? slope * w[j] : slope;
      out[j] += difference > 0 ? by : difference < 0 ? -by : 0.0f;
    }
  }

  void write_border_rows() {
    for (int64_t row = row0; row < row1; ++row)
      for (int image = 0; image < kImages && near_border(row); ++image)
        std::memcpy(image ? output_row(args.grad2, args.grad2, row, 0) : output_row(args.grad1, args.grad2, row, 0),
                    border_row(row, image), size_t(column1 - column0) * sizeof(float));
  }

  bool run() {
    if (!prepare()) return false;
    const int64_t end = kGradient ? gradient_row1 + lag : least(row1, problem.row_end);
    for (int64_t row = first_row; row < end; row += kRows) {
      if (row < problem.row_end && row + kRows > problem.row_begin && (!kGradient || row < gradient_row1 + radius())) {
        forward_block(row);
      } else {
        for (int r = 0; r < kRows; ++r) clear_partials(row + r);
        load_rows(row + kRows + radius());
      }
      if (kGradient && row - lag >= gradient_row0) gradient_block(row - lag);
    }
    load_rows(row1);
    if (kGradient && problem.folds) write_border_rows();
    return true;
  }
};

template <int kTaps, int kStride, int kPartials>
bool run_tile(const Problem& problem, int64_t task, double* totals) {
  return Tile<kTaps, kStride, kPartials>(problem, task, totals).run();
}

typedef bool (*RunTile)(const Problem& problem, int64_t task, double* totals);

template <int kTaps, int kStride>
RunTile tile_for_partials(int partials) {
  return partials == 0 ? run_tile<kTaps, kStride, 0>
                       : partials == 3 ? run_tile<kTaps, kStride, 3> : run_tile<kTaps, kStride, 4>;
}

RunTile choose_tile(const Problem& problem, int partials) {
  if (problem.args->taps != 11) return tile_for_partials<0, 0>(partials);
  if (problem.stride == 1) return tile_for_partials<11, 1>(partials);
  if (problem.stride == 3) return tile_for_partials<11, 3>(partials);
  return tile_for_partials<11, 0>(partials);
}

// False where the arguments make no sense.
bool describe(const Arguments& args, Problem& problem) {
  problem.args = &args;
  problem.reader = reader_for(args.img1.dtype, args.img2.dtype);
  if (!problem.reader.plain || args.taps < 1 || args.taps > kMaxTaps || args.taps % 2 == 0) return false;
  if (!(args.data_range > 0) || args.padding < kSame || args.padding > kReplicate) return false;
  problem.stride = args.interleaved ? args.channels : 1;
  problem.width = args.width * problem.stride;
  problem.radius = args.taps / 2;
  problem.border = problem.radius * problem.stride;
  problem.planes = args.batch * (args.interleaved ? 1 : args.channels);
  problem.folds = args.padding == kReflect || args.padding == kReplicate;
  const int64_t inset = args.padding == kValid ? problem.radius : 0;
  problem.row_begin = inset;
  problem.row_end = args.height - inset;
  problem.column_begin = inset * problem.stride;
  problem.column_end = (args.width - inset) * problem.stride;
  if (problem.row_end <= problem.row_begin || problem.column_end <= problem.column_begin) return false;
  for (int64_t k = 0; k < args.taps; ++k) problem.window[k] = static_cast<float>(args.window[k]);
  problem.scale = std::ldexp(1.0f, -std::ilogb(args.data_range));
  const double squared = double(problem.scale) * problem.scale;
  problem.point = {};
  problem.point.c1_twice = static_cast<float>(2 * args.c1 * squared);
  problem.point.c2_twice = static_cast<float>(2 * args.c2 * squared);
  problem.point.sign = args.grad1.data ? 1.0f : -1.0f;
  const int64_t strip = most(kStripColumns, 8 * problem.border);
  problem.strips = (problem.width + strip - 1) / strip;
  const int64_t wanted = kWantedTasks / most(1, least(kWantedTasks, problem.planes * problem.strips));
  problem.bands = most(1, least(wanted, args.height / kLeastBandRows));
  return true;
}

}  // namespace

extern "C" SPLAT_EXPORT int SPLAT_KERNEL(ssim2d)(const Arguments* args) {
  Problem problem;
  if (!describe(*args, problem)) return 2;
  const int64_t tasks = problem.planes * problem.bands * problem.strips;
  double* totals = static_cast<double*>(std::calloc(size_t(most(tasks, 1)) * 3, sizeof(double)));
  if (!totals) return 1;
  const int partials = args->grad1.data && args->grad2.data ? 4 : args->grad1.data || args->grad2.data ? 3 : 0;
  const RunTile run = choose_tile(problem, partials);
  int failed = 0;
  parallel_for(tasks, static_cast<int>(args->threads), [&](int64_t task, int) {
    if (!run(problem, task, totals + task * 3)) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
  });
  const int64_t tiles = problem.bands * problem.strips;
  for (int64_t plane = 0; plane < problem.planes; ++plane)
    for (int k = 0; k < 3; ++k) {
      double total = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) total += totals[(plane * tiles + tile) * 3 + k];
      args->sums[plane * 3 + k] = total;
    }
  std::free(totals);
  return failed;
}
