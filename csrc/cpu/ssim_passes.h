// The loops over rows, which take nearly all the time. There are instances for certain windows and layouts, and each
// call picks one. All code around them is the same for any window and layout.
#pragma once
#include "ssim.h"

// Number of rows that a pass down the columns makes at once. Their sums stay in registers while it reads the input
// rows.
constexpr int kRows = 8;

// The window of one axis: `count` weights, symmetric.
struct Taps {
  int count;
  float weight[kMaxTaps];
};

// The inputs of `evaluate` (ssim_passes.cpp) besides the moments and the constants of columns.
struct PointConstants {
  float c1_twice, c2_twice;
  float eps;   // added to the denominator of S, times 4 scale⁴
  float a, b;  // the gradient's coefficients of 1 - S and of 1 - CS
  float sign;  // if only one gradient is wanted: +1 for the first image's, -1 for the second's
};

// The input of a pass down the columns: kRows + taps - 1 rows, the V of their values or null, and which of the rows
// show the image. The pass computes V about rows in the middle of those.
struct ColumnRows {
  const float* const* values;
  const float* const* variances;
  int64_t shown_begin, shown_end;
};

// The output of a pass down the columns: kRows rows of the averages of the values and of their squares, and of V. The
// squares follow from V and may be left out (null).
struct ColumnMoments {
  float *mean, *square, *variance;
  int64_t pitch;
};

// The work of point_row. It turns one row of moments, averaged along every axis except the row, into 1 - S, the partial
// derivatives, S and CS.
struct PointRow {
  float* sums;  // 6 maps: s, d, s², d², V_s, V_d; the first four are overwritten
  int64_t sums_pitch;
  int64_t count, stride;  // number of elements; elements from one neighbour to the next
  ColumnConstants columns;
  float* dssim;
  float *ssim, *contrast;  // both or neither
  float* partials;         // 3 or 4 maps: mean_1, square_s, square_d, mean_2
  int64_t partials_pitch;
  const char *next1, *next2;  // rows of the images to prefetch meanwhile, a line at a time, or null
  int64_t bytes1, bytes2;     // bytes of their elements
};

// The work of gradient_row. It turns one row of partials, averaged along every axis except the row, into the gradient
// of that row of the images.
struct GradientRow {
  const float* sums;  // 3 or 4 maps
  int64_t sums_pitch;
  int64_t count, stride;
  const float *s, *d;  // this row of the shifted images
  ColumnConstants columns;
  float slope;  // factor of the gradient of |x - y|, which the weights multiply if there are any
  const float* weights;
  float *out1, *out2;  // out2 only with 4 maps
  int64_t ahead1;      // from an element of out1 to the one to prefetch for writing
};

struct Passes {
  // out[r][j] = Σ_k w_k rows[k + r][j] for r < kRows. There are kRows + taps - 1 `rows`.
  void (*column_sums)(const float* const* rows, const Taps& taps, int64_t count, float* __restrict__ out,
                      int64_t out_pitch);
  // The same for the rows and for their squares.
  void (*column_moments)(const ColumnRows& rows, const Taps& taps, int64_t count, ColumnMoments out);
  void (*point_row)(const PointRow& row, const Taps& taps, const PointConstants& constants);
  void (*gradient_row)(const GradientRow& row, const Taps& taps);
};

// `partials`: 0 without a gradient, 3 for the gradient of one image, 4 for both.
extern "C" Passes SPLAT_KERNEL(ssim_passes)(const Taps& taps, int64_t stride, int partials);
