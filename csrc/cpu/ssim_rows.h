// Reading image rows of any dtype: what the kernels see are rows of the shifted sum and difference in float32.
#pragma once
#include "ssim.h"

// How raw values become the rows: scaled by a power of two near 1 / data_range, so that nothing over- or underflows,
// then shifted.
struct Shift {
  float scale, data_range;
  ColumnConstants columns;
};

// Writes `count` shifted sums and differences, of columns from `column` on; returns Σ |x - y|, unscaled, weighted where
// there is a weight.
typedef double (*ShiftRow)(const char* x, const char* y, const float* __restrict__ weight, int64_t count,
                           const Shift& shift, int64_t column, float* __restrict__ sums,
                           float* __restrict__ differences);

// How to read rows of two images, and the bytes of their elements.
struct Reader {
  ShiftRow shift_row;
  int64_t bytes1, bytes2;
};

// Colours of `count` elements of a row of RGBA bytes over a background of three: colour · alpha + background · (1 - alpha),
// in [0, data_range]. They begin with element `element` of the row, whose pixels begin at `pixels`. With `channels` 1 an
// element is a pixel's `channel`, with 3 the colours of neighbouring pixels follow each other.
struct Composite {
  int64_t channels, channel;
  const float* background;
  float data_range;
};
extern "C" void SPLAT_KERNEL(ssim_composite)(const char* pixels, int64_t element, int64_t count, const Composite& how,
                                             float* __restrict__ colours);

// Reads kRgba of the second image as float32, which is composited first. Without a function where a dtype is unknown.
extern "C" Reader SPLAT_KERNEL(ssim_reader)(int64_t dtype1, int64_t dtype2);
