// The common part of 2D and 3D tiles: which part of the images a tile owns, how it reads rows, and how it processes a
// row of moments and a row of averaged partial derivatives.
//
// A plane is one channel of an image or a volume, or all of them if channels are interleaved (rows of W·C elements). It
// is cut into tiles: bands of rows in strips of columns, in volumes through all slices. The cut depends only on the
// shape, so the result does not depend on the number of threads.
#pragma once
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "parallel.h"
#include "ssim_passes.h"
#include "ssim_rows.h"

namespace {

// A stretch of one axis.
struct Span {
  int64_t begin, end;
  SPLAT_INLINE bool contains(int64_t i) const { return i >= begin && i < end; }
  SPLAT_INLINE int64_t count() const { return end - begin; }
  SPLAT_INLINE Span widened(int64_t by) const { return {begin - by, end + by}; }
  SPLAT_INLINE Span within(Span other) const { return {most(begin, other.begin), least(end, other.end)}; }
  SPLAT_INLINE Span shifted(int64_t by) const { return {begin + by, end + by}; }
  SPLAT_INLINE bool empty() const { return begin >= end; }
  // The smallest stretch that contains both.
  SPLAT_INLINE Span joined(Span other) const {
    if (empty()) return other;
    return other.empty() ? *this : Span{least(begin, other.begin), most(end, other.end)};
  }
  // The part in [0, count), extended to multiples of kLanes or to `count`.
  SPLAT_INLINE Span in_vectors(int64_t count) const {
    const Span inside = within({0, count});
    if (inside.empty()) return {0, 0};
    return {inside.begin / kLanes * kLanes, least(round_up(inside.end, kLanes), count)};
  }
};

// The window along one axis, and the passes for its taps.
struct Axis {
  int64_t radius;
  Taps taps;
  Passes passes;
};

// The axes of the window. Each axis has passes for its own number of taps. A narrower axis is not padded with zero
// taps, because they would spread values that are not finite.
enum { kSlices = 0, kRowsDown = 1, kAlong = 2, kAxes = 3 };

// The data that all tiles of a call share. Columns are elements of a row.
struct Problem {
  const Arguments* args;
  Reader reader;
  int64_t stride, width;  // elements between neighbours of a row, elements of a row
  int64_t border;         // radius of the window along a row, in elements
  int64_t planes, bands, strips;
  Span slices, rows, columns;  // where the index is defined
  bool folds;                  // padding copies pixels: the gradient of the border is added to these pixels
  bool skips;                  // where the images are equal, 1 - S and the gradient are 0 and are not computed
  Axis axes[kAxes];
  int partials;       // maps of partial derivatives: 0 without a gradient, 3 for one image's, 4 for both
  float scale, sign;  // sign: +1 for the gradient of the first image, -1 if only the second's is wanted
  float c1_twice, c2_twice, eps;
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

// Memory of the last `count` of consecutive rows (or slices), `size` floats each.
struct Ring {
  float* memory;
  int64_t first, count, size;  // `first`: the lowest index there is
  SPLAT_INLINE int64_t slot(int64_t i) const { return (i - first) % count; }
  SPLAT_INLINE float* operator[](int64_t i) const { return memory + slot(i) * size; }
  // Rows i, i + 1, … i + number - 1, with a single division, which is slow.
  SPLAT_INLINE void list(int64_t i, int64_t number, const float** rows) const {
    int64_t slot = (i - first) % count;
    for (int64_t t = 0; t < number; ++t) {
      rows[t] = memory + slot * size;
      slot = slot + 1 == count ? 0 : slot + 1;
    }
  }
};

struct Tile {
  const Problem& problem;
  const Arguments& args;
  double* totals;                        // [3], see Arguments::sums
  const int64_t stride, radius, border;  // the radius is that down the rows
  const int64_t maps;                    // of partial derivatives: 0, 3 or 4
  const bool gradient;
  const int images;  // number of gradients

  int64_t plane;
  Span slices, rows, columns;            // what the tile owns
  Span gradient_rows, gradient_columns;  // where it computes gradients: the padding too, if that folds back
  Span forward_columns, input_columns;
  int64_t pitch;                // of the rows of scratch memory
  int64_t lead, adjoint_pitch;  // rows of averaged partials start `lead` in, with zeros around them
  int32_t* copied;              // for each input column, the column that it copies, or -1

  float *dssim, *ssim, *contrast, *folded;  // one row each; `folded` one for each gradient
  const char *image1, *image2;
  const float *weight, *l1_weight;
  Shift shift;  // its constants are rows of the scratch memory
  PointConstants point;
  float l1;

  Tile(const Problem& p, int64_t task, double* sums)
      : problem(p), args(*p.args), totals(sums), stride(p.stride), radius(p.axes[kRowsDown].radius), border(p.border),
        maps(p.partials), gradient(p.partials > 0), images(p.partials == 4 ? 2 : 1) {
    const int64_t strip = task % p.strips, band = task / p.strips % p.bands;
    plane = task / (p.strips * p.bands);
    slices = {0, args.depth};
    rows = {args.height * band / p.bands, args.height * (band + 1) / p.bands};
    columns.begin = strip == 0 ? 0 : p.width * strip / p.strips / kLanes * kLanes;
    columns.end = strip + 1 == p.strips ? p.width : p.width * (strip + 1) / p.strips / kLanes * kLanes;
    gradient_rows = with_padding(rows, args.height, radius);
    gradient_columns = with_padding(columns, p.width, border);
    forward_columns = (gradient ? gradient_columns.widened(border) : columns).within(p.columns);
    input_columns = forward_columns.widened(border);
    pitch = round_up(most(0, input_columns.count()) + 2 * kLanes, 16);
    lead = round_up(2 * border, 16);
    adjoint_pitch = lead + pitch;
    image1 = plane_of(args.img1, problem.reader.bytes1);
    image2 = plane_of(args.img2, problem.reader.bytes2);
    weight = args.weight.data ? reinterpret_cast<const float*>(plane_of(args.weight, sizeof(float))) : nullptr;
    l1_weight = args.weighs_l1 ? weight : nullptr;
  }

  // Extends a stretch that ends at the border of the image by the padding beyond it, if the gradient folds back.
  Span with_padding(Span owned, int64_t side, int64_t by) const {
    if (!problem.folds || !gradient) return owned;
    return {owned.begin == 0 ? -by : owned.begin, owned.end == side ? side + by : owned.end};
  }

  const char* plane_of(const View& view, int64_t bytes) const {
    const int64_t image = image_of_plane();
    const int64_t channel = args.interleaved ? 0 : plane % args.channels;
    return view.data + (image * view.batch + channel * view.channel) * bytes;
  }

  int64_t common_rows() const { return 7 + images; }
  // Number of channels that have constants of their own.
  int64_t channels() const { return stride; }
  // `memory` has `common_rows` rows. `constants` come from `choose_constants`.
  void begin(float* memory, const float* constants) {
    copied = reinterpret_cast<int32_t*>(memory);
    memory += pitch;
    for (int64_t j = 0; j < input_columns.count(); ++j) {
      const int64_t e = input_columns.begin + j;
      const bool inside = e >= 0 && e < problem.width;
      copied[j] = inside ? int32_t(j) : !problem.folds ? -1 : int32_t(source_column(e) - input_columns.begin);
    }
    dssim = memory;
    ssim = memory + pitch;
    contrast = memory + 2 * pitch;
    lay_out(constants, memory + 3 * pitch);
    folded = memory + 6 * pitch;
    const double* coefficients = args.coefficients + plane * 3;
    point.c1_twice = problem.c1_twice;
    point.c2_twice = problem.c2_twice;
    point.eps = problem.eps;
    point.sign = problem.sign;
    point.a = static_cast<float>(coefficients[0] * problem.scale);
    point.b = static_cast<float>(coefficients[1] * problem.scale);
    l1 = static_cast<float>(coefficients[2]) * (maps == 3 ? problem.sign : 1.0f);
  }

  // Fills three rows of constants for the input columns from the constants of each channel.
  void lay_out(const float* constants, float* rows_of_constants) {
    float* const out[3] = {rows_of_constants, rows_of_constants + pitch, rows_of_constants + 2 * pitch};
    const int64_t first = (input_columns.begin % channels() + channels()) % channels();
    for (int64_t j = 0, channel = first; j < (channels() == 1 ? kLanes : pitch); ++j) {
      for (int k = 0; k < 3; ++k) out[k][j] = constants[3 * channel + k];
      channel = channel + 1 == channels() ? 0 : channel + 1;
    }
    shift = {problem.scale, static_cast<float>(args.data_range), {out[0], out[1], out[2], channels() == 1 ? 0 : -1}};
  }

  // Chooses the constants of the tile's channels, 3 each, see ColumnConstants. They are means over up to 64 pixels of
  // the tile that are finite: first over the inner half of each sampled row's pixels, then over the inner half of these
  // rows' means. So neither a bright row nor a bright column costs dark pixels their digits. d is shifted only if the
  // images clearly differ.
  void choose_constants(float* constants) {
    static const float zeros[kLanes] = {};
    shift = {problem.scale, static_cast<float>(args.data_range), {zeros, zeros, zeros, 0}};
    const int64_t first_pixel = columns.begin / stride, pixels = most(1, columns.count() / stride);
    int64_t down = samples(rows.count()), along = samples(pixels);
    while (down * along > 4 && down * along * channels() > 192) (down > along ? down : along) /= 2;
    for (int64_t channel = 0; channel < channels(); ++channel) {
      float row_sums[kMostSamples], row_differences[kMostSamples];
      int64_t found = 0;
      for (int64_t i = 0; i < down; ++i) {
        float sums[kMostSamples], differences[kMostSamples];
        int64_t finite = 0;
        for (int64_t j = 0; j < along; ++j) {
          const int64_t slice = slices.begin + slices.count() * (2 * ((i + j) % 8) + 1) / 16;
          const int64_t row = rows.begin + rows.count() * (2 * i + 1) / (2 * down);
          const int64_t column = (first_pixel + pixels * (2 * j + 1) / (2 * along)) * stride + channel;
          float s, d;
          read(slice, row, {column, column + 1}, nullptr, &s, &d);
          if (!std::isfinite(s) || !std::isfinite(d)) continue;
          sums[finite] = s;
          differences[finite++] = d;
        }
        if (finite == 0) continue;
        row_sums[found] = mean_of_inner_half(sums, finite);
        row_differences[found++] = mean_of_inner_half(differences, finite);
      }
      const float mean_s = mean_of_inner_half(row_sums, found), mean_d = mean_of_inner_half(row_differences, found);
      const bool apart = std::fabs(mean_d) > 0.05 * args.data_range * problem.scale;
      float* out = constants + 3 * channel;
      out[0] = mean_s / 2;
      out[1] = apart ? mean_d : 0.0f;
      out[2] = apart ? 0.0f : mean_d;
    }
  }

  // The mean of the inner half of the values, which it sorts. 0 if there are none. It sorts by hand, because a template
  // of the standard library compiled for one instruction set could be linked for another.
  static float mean_of_inner_half(float* values, int64_t count) {
    for (int64_t i = 1; i < count; ++i) {
      const float value = values[i];
      int64_t k = i;
      for (; k > 0 && values[k - 1] > value; --k) values[k] = values[k - 1];
      values[k] = value;
    }
    double sum = 0;
    for (int64_t k = count / 4; k < count - count / 4; ++k) sum += values[k];
    return static_cast<float>(sum / double(most(1, count - 2 * (count / 4))));
  }

  // One in sixteen, but at most eight and at least four, or all of fewer.
  static constexpr int64_t kMostSamples = 8;
  static int64_t samples(int64_t count) { return most(least(count, 4), least(kMostSamples, count / 16)); }

  SPLAT_INLINE const float* weight_row(int64_t slice, int64_t row) const {
    return weight + slice * args.weight.slice + row * args.weight.row;
  }

  // Reads columns of an image row, shifted, into s and d. Returns Σ |x - y|.
  double read(int64_t slice, int64_t row, Span stretch, const float* w, float* s, float* d) const {
    if (stretch.count() <= 0) return 0;
    if (args.img2.dtype == kRgba) return read_composited(slice, row, stretch, w, s, d);
    return problem.reader.shift_row(at1(slice, row, stretch.begin), at2(slice, row, stretch.begin), w, stretch.count(),
                                    shift, stretch.begin - input_columns.begin, s, d);
  }

  // The same if img2 is composited, a part of the row at a time.
  double read_composited(int64_t slice, int64_t row, Span stretch, const float* w, float* s, float* d) const {
    constexpr int64_t kPart = 768;
    float colours[kPart];
    const Composite how = {stride, args.interleaved ? 0 : plane % args.channels,
                           args.background + image_of_plane() * args.background_batch,
                           static_cast<float>(args.data_range)};
    const char* const pixels = image2 + (slice * args.img2.slice + row * args.img2.row) * 4;
    double total = 0;
    for (int64_t j = stretch.begin; j < stretch.end; j += kPart) {
      const int64_t count = least(kPart, stretch.end - j), done = j - stretch.begin;
      SPLAT_KERNEL(ssim_composite)(pixels, j, count, how, colours);
      total +=
          problem.reader.shift_row(at1(slice, row, j), reinterpret_cast<const char*>(colours), w ? w + done : nullptr,
                                   count, shift, j - input_columns.begin, s + done, d + done);
    }
    return total;
  }

  SPLAT_INLINE int64_t image_of_plane() const { return args.interleaved ? plane : plane / args.channels; }
  SPLAT_INLINE const char* at1(int64_t slice, int64_t row, int64_t column) const {
    return image1 + (slice * args.img1.slice + row * args.img1.row + column) * problem.reader.bytes1;
  }
  SPLAT_INLINE const char* at2(int64_t slice, int64_t row, int64_t column) const {
    const int64_t place = args.img2.dtype == kRgba ? column / stride : column;
    return image2 + (slice * args.img2.slice + row * args.img2.row + place) * problem.reader.bytes2;
  }

  // Number of rows (or slices) that a pass over that axis reads.
  int64_t reads(int axis) const { return problem.axes[axis].taps.count + kRows - 1; }

  // That many rows (or slices, by `axis`) that begin at `first`.
  ColumnRows column_rows(const float* const* values, const float* const* variances, int64_t first, int64_t side,
                         int axis) const {
    const int64_t padded = problem.folds ? problem.axes[axis].radius : 0;
    const Span shown = Span{0, side}.widened(padded).within({first, first + reads(axis)});
    return {values, variances, shown.begin - first, shown.end - first};
  }

  // Fills columns of rows of s and d with shifted zeros. It writes whole vectors, so up to kLanes - 1 columns more.
  void fill_outside(Span stretch, float* s, float* d) const {
    for (int64_t j = stretch.begin; j < stretch.end; j += kLanes) {
      const ColumnConstants here = shift.columns.from(j);
      store(s + j, -2.0f * load(here.each));
      store(d + j, -load(here.difference));
    }
  }

  // Loads the input columns of a row of the padded images. With `total`, a row that the tile owns adds Σ |x - y| to the
  // totals.
  void load_row(int64_t slice, int64_t row, float* s, float* d, bool total) {
    const int64_t from_slice = source_of(slice, args.depth, args.padding);
    const int64_t from_row = source_of(row, args.height, args.padding);
    if (from_slice < 0 || from_row < 0) return fill_outside({0, input_columns.count()}, s, d);
    const Span inside = input_columns.within({0, problem.width});
    float *s0 = s - input_columns.begin, *d0 = d - input_columns.begin;
    // This precedes reading the row, which overwrites what is filled beyond the stretch.
    fill_outside({0, inside.begin - input_columns.begin}, s, d);
    if (total && slices.contains(slice) && rows.contains(row)) {
      read(from_slice, from_row, {inside.begin, columns.begin}, nullptr, s0 + inside.begin, d0 + inside.begin);
      const float* w = l1_weight ? weight_row(slice, row) + columns.begin : nullptr;
      totals[2] += read(from_slice, from_row, columns, w, s0 + columns.begin, d0 + columns.begin);
      read(from_slice, from_row, {columns.end, inside.end}, nullptr, s0 + columns.end, d0 + columns.end);
    } else {
      read(from_slice, from_row, inside, nullptr, s0 + inside.begin, d0 + inside.begin);
    }
    fill_outside({inside.end - input_columns.begin, input_columns.count()}, s, d);
    if (!problem.folds) return;
    auto copy = [&](int64_t begin, int64_t end) {
      for (int64_t j = begin - input_columns.begin; j < end - input_columns.begin; ++j) {
        if (copied[j] < 0) continue;
        s[j] = s[copied[j]];
        d[j] = d[copied[j]];
      }
    };
    copy(input_columns.begin, inside.begin);
    copy(inside.end, input_columns.end);
  }

  // `source_of` for an element of a row, or -1.
  int64_t source_column(int64_t e) const {
    const int64_t pixel = e < 0 ? -((stride - 1 - e) / stride) : e / stride;
    const int64_t copied = source_of(pixel, args.width, args.padding);
    return copied < 0 ? -1 : copied * stride + (e - pixel * stride);
  }

  // Turns a row of the four moments (averaged along every axis except the row, and overwritten) into 1 - S and
  // partials, in a stretch of the forward columns. Both are 0 outside it. The image row `next_row`, if there is one, is
  // prefetched meanwhile. Prefetching it all at once would have to wait.
  void point_row(float* sums, float* out, int64_t out_pitch, Span stretch, int64_t slice, int64_t next_row) const {
    zero_outside(stretch, dssim);
    if (out)
      for (int m = 0; m < maps; ++m) zero_outside(stretch, out + m * out_pitch);
    if (stretch.empty()) return;
    PointRow work = {};
    work.sums = sums + stretch.begin;
    work.sums_pitch = pitch;
    work.count = stretch.count();
    work.stride = stride;
    work.columns = shift.columns.from(border + stretch.begin);
    work.dssim = dssim + stretch.begin;
    work.ssim = args.similarities ? ssim : nullptr;
    work.contrast = args.similarities ? contrast : nullptr;
    work.partials = out ? out + stretch.begin : nullptr;
    work.partials_pitch = out_pitch;
    if (next_row < args.height) {
      const int64_t column = most(0, input_columns.begin + stretch.begin);
      work.next1 = at1(slice, next_row, column);
      work.next2 = at2(slice, next_row, column);
      work.bytes1 = problem.reader.bytes1;
      work.bytes2 = problem.reader.bytes2;
    }
    problem.axes[kAlong].passes.point_row(work, problem.axes[kAlong].taps, point);
  }

  // All columns of a row, counted from the first.
  Span all_forward() const { return {0, forward_columns.count()}; }
  Span all_gradient() const { return {0, gradient_columns.count()}; }

  // Zeroes the columns of a forward row outside a stretch of it, up to a whole vector.
  void zero_outside(Span stretch, float* row) const {
    const int64_t count = round_up(forward_columns.count(), kLanes);
    std::memset(row, 0, size_t(stretch.begin) * sizeof(float));
    if (stretch.end < forward_columns.count())
      std::memset(row + stretch.end, 0, size_t(count - stretch.end) * sizeof(float));
  }

  // The input columns from the first vector in which the images differ to the last one, counted from the first column.
  // Values that are not finite differ.
  Span differing_columns(const float* d) const {
    const int64_t count = input_columns.count();
    if (!problem.skips) return {0, count};
    const auto differ = [&](int64_t j) {
      return any((Ints)(load(d + j) + load(shift.columns.from(j).difference) != 0.0f));
    };
    const int64_t whole = count / kLanes * kLanes;
    int64_t begin = 0, end = whole;
    for (int64_t j = whole; j < count; ++j)
      if (d[j] + shift.columns.from(j).difference[0] != 0.0f) end = count;
    while (begin < whole && !differ(begin)) begin += kLanes;
    if (end == whole)
      while (end > begin && !differ(end - kLanes)) end -= kLanes;
    return {begin, end};
  }

  // The forward columns whose windows reach into a stretch of the input columns.
  Span reached(Span stretch) const {
    if (stretch.empty()) return {0, 0};
    return Span{stretch.begin - 2 * border, stretch.end}.in_vectors(forward_columns.count());
  }

  // The gradient's columns, counted from the first, whose windows reach into a stretch of the forward columns.
  Span reached_back(Span stretch) const {
    if (stretch.empty()) return {0, 0};
    const int64_t apart = forward_columns.begin - gradient_columns.begin;
    return stretch.shifted(apart).widened(border).in_vectors(gradient_columns.count());
  }

  // Applies the weights, adds to the totals and writes the map. Zeroes the partials beyond the columns where the index
  // is defined.
  void finish_point_row(int64_t slice, int64_t row, float* out, int64_t out_pitch) {
    const int64_t end = forward_columns.count();
    const float* w = weight ? weight_row(slice, row) + forward_columns.begin : nullptr;
    if (gradient)
      for (int m = 0; m < maps; ++m, out += out_pitch) {
        for (int64_t j = end; j < round_up(end, kLanes); ++j) out[j] = 0;
        if (w)
          for (int64_t j = 0; j < end; ++j) out[j] *= w[j];
      }
    if (!slices.contains(slice) || !rows.contains(row)) return;
    const Span mine = columns.within(forward_columns);
    const int64_t mine0 = mine.begin - forward_columns.begin, mine1 = mine.end - forward_columns.begin;
    if (args.map.data) {
      float* map = output_of(args.map, slice, row) + forward_columns.begin;
      for (int64_t j = mine0; j < mine1; ++j) map[j] = 1.0f - dssim[j];
    }
    if (args.similarities) {
      totals[0] += row_total(ssim, mine0, mine1);
      totals[1] += row_total(contrast, mine0, mine1);
      return;
    }
    if (w)
      for (int64_t j = mine0; j < mine1; ++j) dssim[j] *= w[j];
    totals[0] += row_total(dssim, mine0, mine1);
  }

  float* output_of(const View& view, int64_t slice, int64_t row) const {
    return reinterpret_cast<float*>(const_cast<char*>(plane_of(view, sizeof(float)))) + slice * view.slice +
           row * view.row;
  }

  // The view of gradient number `image` among those that are wanted.
  const View& gradient_view(int image) const { return image == 1 || !args.grad1.data ? args.grad2 : args.grad1; }

  // Computes one row of the gradient in a stretch of its columns; it is 0 outside the stretch. `sums` has the partials,
  // averaged along every axis except the row, with zeros around them. s and d are those of the row.
  void finish_gradient_row(int64_t slice, int64_t row, const float* sums, Span stretch, const float* s,
                           const float* d) {
    const int64_t column = gradient_columns.begin + stretch.begin;
    GradientRow work = {};
    work.sums = sums + column - border - forward_columns.begin;
    work.sums_pitch = adjoint_pitch;
    work.count = stretch.count();
    work.stride = stride;
    work.s = s + column - input_columns.begin;
    work.d = d + column - input_columns.begin;
    work.columns = shift.columns.from(column - input_columns.begin);
    if (problem.folds) {
      work.out1 = folded;
      work.out2 = folded + pitch;
      problem.axes[kAlong].passes.gradient_row(work, problem.axes[kAlong].taps);
      fold_row(slice, row, d);
      return;
    }
    for (int image = 0; image < images; ++image) {
      float* out = output_of(gradient_view(image), slice, row) + columns.begin;
      std::memset(out, 0, size_t(stretch.begin) * sizeof(float));
      std::memset(out + stretch.end, 0, size_t(columns.count() - stretch.end) * sizeof(float));
      (image == 0 ? work.out1 : work.out2) = out + stretch.begin;
    }
    if (stretch.empty()) return;
    work.slope = l1;
    if (l1_weight) work.weights = weight_row(slice, row) + column;
    work.ahead1 = 4 * gradient_view(0).row;
    problem.axes[kAlong].passes.gradient_row(work, problem.axes[kAlong].taps);
  }

  // Adds the row in `folded` to the image row that it copies. Columns of the padding are added to the columns that they
  // copy.
  void fold_row(int64_t slice, int64_t row, const float* d) {
    const bool inside = slices.contains(slice) && rows.contains(row);
    const int64_t to_slice = source_of(slice, args.depth, args.padding);
    const int64_t to_row = source_of(row, args.height, args.padding);
    for (int image = 0; image < images; ++image) {
      const float* from = folded + image * pitch - gradient_columns.begin;
      float* to = output_of(gradient_view(image), to_slice, to_row);
      for (int64_t e = gradient_columns.begin; e < columns.begin; ++e) to[source_column(e)] += from[e];
      for (int64_t e = columns.begin; e < columns.end; ++e) to[e] += from[e];
      for (int64_t e = columns.end; e < gradient_columns.end; ++e) to[source_column(e)] += from[e];
      if (inside && l1 != 0) add_l1(slice, row, d - input_columns.begin, to, image ? -l1 : l1);
    }
  }

  void add_l1(int64_t slice, int64_t row, const float* d, float* to, float slope) const {
    const float* w = l1_weight ? weight_row(slice, row) : nullptr;
    for (int64_t e = columns.begin; e < columns.end; ++e) {
      const float c_d = shift.columns.difference[(e - input_columns.begin) & shift.columns.mask];
      const float difference = d[e] + c_d, by = w ? slope * w[e] : slope;
      to[e] += difference > 0 ? by : difference < 0 ? -by : 0.0f;
    }
  }

  // If padding folds back, gradients are accumulated, so they begin at zero.
  void clear_folded_gradients() const {
    if (!gradient || !problem.folds) return;
    for (int image = 0; image < images; ++image)
      for (int64_t slice = slices.begin; slice < slices.end; ++slice)
        for (int64_t row = rows.begin; row < rows.end; ++row)
          std::memset(output_of(gradient_view(image), slice, row) + columns.begin, 0,
                      size_t(columns.count()) * sizeof(float));
  }
};

// Fills all of `problem` but the cut into tiles. Returns false if the arguments are invalid.
bool describe(const Arguments& args, bool volumes, Problem& problem) {
  problem.args = &args;
  problem.reader = SPLAT_KERNEL(ssim_reader)(args.img1.dtype, args.img2.dtype);
  if (!problem.reader.shift_row) return false;
  if (!(args.data_range > 0) || args.padding < kSame || args.padding > kReplicate) return false;
  if (args.img2.dtype == kRgba && (!args.background || args.channels != 3 || args.grad2.data)) return false;
  problem.stride = args.interleaved ? args.channels : 1;
  problem.width = args.width * problem.stride;
  problem.planes = args.batch * (args.interleaved ? 1 : args.channels);
  problem.folds = args.padding == kReflect || args.padding == kReplicate;
  problem.partials = args.grad1.data && args.grad2.data ? 4 : args.grad1.data || args.grad2.data ? 3 : 0;
  const int64_t sides[kAxes] = {args.depth, args.height, args.width};
  const double* window = args.window;
  for (int axis = 0; axis < kAxes; window += args.taps[axis++]) {
    const int64_t taps = args.taps[axis];
    if (taps < 1 || taps > kMaxTaps || taps % 2 == 0) return false;
    Axis& own = problem.axes[axis];
    own.radius = taps / 2;
    own.taps.count = static_cast<int>(taps);
    for (int64_t k = 0; k < taps; ++k) own.taps.weight[k] = static_cast<float>(window[k]);
    own.passes = SPLAT_KERNEL(ssim_passes)(own.taps, problem.stride, problem.partials);
    if (args.padding == kReflect && (volumes || axis != kSlices) && sides[axis] <= own.radius) return false;
  }
  const auto inset = [&](int axis) { return args.padding == kValid ? problem.axes[axis].radius : 0; };
  const int64_t slice_inset = volumes ? inset(kSlices) : 0, stride = problem.stride;
  problem.border = problem.axes[kAlong].radius * stride;
  problem.slices = {slice_inset, args.depth - slice_inset};
  problem.rows = {inset(kRowsDown), args.height - inset(kRowsDown)};
  problem.columns = {inset(kAlong) * stride, (args.width - inset(kAlong)) * stride};
  if (problem.slices.count() <= 0 || problem.rows.count() <= 0 || problem.columns.count() <= 0) return false;
  problem.scale = std::ldexp(1.0f, -std::ilogb(args.data_range));
  const double squared = double(problem.scale) * problem.scale;
  problem.c1_twice = static_cast<float>(2 * args.c1 * squared);
  problem.c2_twice = static_cast<float>(2 * args.c2 * squared);
  problem.eps = static_cast<float>(4 * args.eps * squared * squared);
  problem.sign = args.grad1.data ? 1.0f : -1.0f;
  // With eps, S of equal images is not 1. Without C1 or C2, it is 0 / 0 where the images are 0 or flat.
  problem.skips = !volumes && !problem.folds && !args.similarities && problem.eps == 0 && problem.c1_twice > 0 &&
                  problem.c2_twice > 0;
  return true;
}

// Adds up the totals of the tiles, `cells` of each, in their order: [planes, bands · strips, cells, 3].
void add_totals(const Problem& problem, const double* totals, int64_t cells) {
  const int64_t rows = problem.bands * problem.strips * cells;
  for (int64_t plane = 0; plane < problem.planes; ++plane)
    for (int k = 0; k < 3; ++k) {
      double total = 0;
      for (int64_t row = 0; row < rows; ++row) total += totals[(plane * rows + row) * 3 + k];
      problem.args->sums[plane * 3 + k] = total;
    }
}

}  // namespace
