// What all SSIM sources share: the entry points, constants of columns, and small helpers.
#pragma once
#include <cstdint>
#include <cstring>

#include "layout.h"
#include "simd.h"

// Constants of the columns of a tile's rows: s and d less c_s = 2 each and c_d = difference keep the digits that their
// own mean would take. Column j has those at j & mask: where channels are interleaved each has its own, and these are
// rows as long as the image's; else they are one vector, and the mask is 0.
//
// Gradients take d about centre_d, what is left of its mean: of images that are hardly apart, d is not shifted, since
// where they are equal it has to be 0.
struct ColumnConstants {
  const float *each, *difference, *centre_d;
  int64_t mask;

  // Those of a row that begins at a later column.
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

// Writes whole vectors: up to kLanes - 1 values beyond `count` too.
SPLAT_INLINE void fill(float* row, int64_t count, float value) {
  for (int64_t j = 0; j < count; j += kLanes) store(row + j, broadcast(value));
}

// Sum of a row's [begin, end), in a fixed order.
SPLAT_INLINE double row_total(const float* row, int64_t begin, int64_t end) {
  Floats lanes = {};
  int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) lanes += load(row + j);
  double total = sum_lanes_in_double(lanes);
  for (; j < end; ++j) total += row[j];
  return total;
}

}  // namespace
