// Shared by all SSIM sources: the entry points, constants of columns, and small helpers.
#pragma once
#include <cstdint>
#include <cstring>

#include "layout.h"
#include "simd.h"

// Constants that are subtracted in the columns of a tile's rows: c_s = 2 each from s, and c_d = difference from d. What
// is left keeps the digits that the means of s and d would otherwise use up. The constants of column j are at j & mask.
// If channels are interleaved, each channel has its own constants, and there is one for every column. Otherwise one
// vector serves all columns, and the mask is 0.
//
// Gradients also subtract centre_d, the part of d's mean that is left. If the images hardly differ, c_d is 0, because d
// has to be exactly 0 where they are equal.
struct ColumnConstants {
  const float *each, *difference, *centre_d;
  int64_t mask;

  // The constants of a row that begins at a later column.
  SPLAT_INLINE ColumnConstants from(int64_t column) const {
    column &= mask;
    return {each + column, difference + column, centre_d + column, mask};
  }
};

// SSIM of images and of volumes. They return a Status.
extern "C" SPLAT_EXPORT Status SPLAT_KERNEL(ssim2d)(const Arguments* args);
extern "C" SPLAT_EXPORT Status SPLAT_KERNEL(ssim3d)(const Arguments* args);

namespace {

SPLAT_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SPLAT_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
SPLAT_INLINE int64_t round_up(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

// Fills a row. It writes whole vectors, so up to kLanes - 1 values beyond `count` too.
SPLAT_INLINE void fill(float* row, int64_t count, float value) {
  for (int64_t j = 0; j < count; j += kLanes) store(row + j, broadcast(value));
}

// The sum over [begin, end) of a row, in a fixed order.
SPLAT_INLINE double row_total(const float* row, int64_t begin, int64_t end) {
  Floats lanes = {};
  int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) lanes += load(row + j);
  double total = sum_lanes_in_double(lanes);
  for (; j < end; ++j) total += row[j];
  return total;
}

}  // namespace
