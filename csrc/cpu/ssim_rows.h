// Reads image rows of any dtype. The kernels get rows of the shifted sum and difference in float32.
#pragma once
#include "ssim.h"

// How raw values become these rows: they are scaled by a power of two near 1 / data_range, so that nothing over- or
// underflows, then shifted.
struct Shift {
  float scale, data_range;
  ColumnConstants columns;
};

// Writes `count` shifted sums and differences, for the columns from `column` on. Returns Σ |x - y|, unscaled, and
// weighted if there is a weight.
typedef double (*ShiftRow)(const char* x, const char* y, const float* __restrict__ weight, int64_t count,
                           const Shift& shift, int64_t column, float* __restrict__ sums,
                           float* __restrict__ differences);

// How to read rows of two images, and the bytes of their elements.
struct Reader {
  ShiftRow shift_row;
  int64_t bytes1, bytes2;
};

// How RGBA bytes are composited over a background of three colours: colour · alpha + background · (1 - alpha), in [0,
// data_range]. If `channels` is 1, a row has one element for each pixel, its colour `channel`. If it is 3, a row has
// three elements for each pixel, one colour after the other.
struct Composite {
  int64_t channels, channel;
  const float* background;
  float data_range;
};
// Writes the colours of `count` elements of a row, from element `element` on. The row's pixels begin at `pixels`.
extern "C" void SPLAT_KERNEL(ssim_composite)(const char* pixels, int64_t element, int64_t count, const Composite& how,
                                             float* __restrict__ colours);

// The reader for two dtypes. It reads kRgba of the second image as float32, since that is composited first. Its
// function is null if a dtype is unknown.
extern "C" Reader SPLAT_KERNEL(ssim_reader)(int64_t dtype1, int64_t dtype2);
