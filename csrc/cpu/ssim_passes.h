// The loops over rows, which take nearly all the time. They have instances for windows and layouts, of which each call
// picks one. All code around them is the same for any window and layout.
#pragma once
#include "ssim.h"

// Rows that a pass down the columns yields at once: their sums stay in registers while the input rows go by.
constexpr int kRows = 8;

// The window of one axis: symmetric, `taps` weights.
struct Taps {
  int count;
  float weight[kMaxTaps];
};

// What `evaluate` needs besides the moments; see ssim.h.
struct PointConstants {
  float c1_twice, c2_twice;
  float eps;   // added to the denominator of S, times 4 scale⁴
  float a, b;  // the gradient's coefficients of 1 - S and of 1 - CS
  float sign;  // +1: gradient of the first image, -1: of the second (where only one is wanted)
};

// What a pass down the columns averages: kRows + taps - 1 rows, V of their values or null, and which of the rows show
// the image. V is taken about rows in the middle of these.
struct ColumnRows {
  const float* const* values;
  const float* const* variances;
  int64_t shown_begin, shown_end;
};

// Where kRows rows of averages down the columns go: of values, of their squares, and V. The squares follow from V, and
// may be left out (null).
struct ColumnMoments {
  float *mean, *square, *variance;
  int64_t pitch;
};

// One row of moments, averaged but along the row, to 1 - S and the partial derivatives, and to S and CS.
struct PointRow {
  float* sums;  // 6 maps: s, d, s², d², V_s, V_d; the first four are overwritten
  int64_t sums_pitch;
  int64_t count, stride;  // elements; from one neighbour in the row to the next
  ColumnConstants columns;
  float* dssim;
  float *ssim, *contrast;  // both or neither
  float* partials;         // 3 or 4 maps: mean_1, square_s, square_d, mean_2
  int64_t partials_pitch;
  const char *next1, *next2;  // rows of the images to prefetch meanwhile, a line at a time, or null
  int64_t bytes1, bytes2;     // of their elements
};

// One row of partials, averaged but along the row, to the gradient of that row of the images.
struct GradientRow {
  const float* sums;  // 3 or 4 maps
  int64_t sums_pitch;
  int64_t count, stride;
  const float *s, *d;  // the row itself
  ColumnConstants columns;
  float slope;  // of |x - y|, times the weights where there are any
  const float* weights;
  float *out1, *out2;  // out2 only with 4 maps
  int64_t ahead1;      // from an element of out1 to the one to prefetch for writing
};

struct Passes {
  // out[r][j] = Σ_k w_k rows[k + r][j] for r < kRows; `rows` are kRows + taps - 1.
  void (*column_sums)(const float* const* rows, const Taps& taps, int64_t count, float* __restrict__ out,
                      int64_t out_pitch);
  // The same of the rows and of their squares.
  void (*column_moments)(const ColumnRows& rows, const Taps& taps, int64_t count, ColumnMoments out);
  void (*point_row)(const PointRow& row, const Taps& taps, const PointConstants& constants);
  void (*gradient_row)(const GradientRow& row, const Taps& taps);
};

// `partials`: 0 without a gradient, 3 for one image's, 4 for both.
extern "C" Passes SPLAT_KERNEL(ssim_passes)(const Taps& taps, int64_t stride, int partials);
