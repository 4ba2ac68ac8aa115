// What all SSIM sources share: the arguments of the kernels, and small helpers.
#pragma once
#include <cstdint>
#include <cstring>

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

namespace {

constexpr int kMaxTaps = 33;

enum Dtype : int64_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kUint8 = 3 };
enum Padding : int64_t { kSame = 0, kValid = 1, kReflect = 2, kReplicate = 3 };

// A tensor: strides in elements. The innermost axis, or with interleaved channels the innermost two, are contiguous.
struct View {
  char* data;
  int64_t dtype, batch, channel, slice, row;
};

// The arguments of every SSIM kernel, packed by splat_ssim/ops/ssim.py in this order; pointers that are null are left
// out. Every view but the images holds float32. `weight`, `map` are addressed by the position in the image, so under
// "valid" the caller moves their pointers back by the border.
struct Arguments {
  View img1, img2, weight, map, grad1, grad2;
  int64_t batch, channels, depth, height, width;
  int64_t interleaved;         // channels are the innermost axis
  int64_t taps, padding, threads;
  int64_t weighs_l1;           // the weight is as large as the image and weighs |x - y| too, not only 1 - S
  int64_t similarities;        // the sums are of S and CS themselves; they are not weighted
  const double* window;        // [taps], symmetric, sums to 1
  const double* coefficients;  // [planes][3]: what the gradient is of: of 1 - S, 1 - CS and |x - y|
  double* sums;                // [planes][3]: weighted sums of 1 - S, 0 and |x - y|, or of S, CS and |x - y|; written
  double c1, c2, data_range;   // (k1 L)², (k2 L)², L
  double eps;                  // added to the denominator of S, not of CS
};

}  // namespace

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
