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

// A reader without a function where a dtype is unknown.
extern "C" Reader SPLAT_KERNEL(ssim_reader)(int64_t dtype1, int64_t dtype2);
