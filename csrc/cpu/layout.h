// The interface of Python and the CPU kernels: structures that Python packs, arrays that it allocates and codes that it
// passes. library.cpp gives these numbers to Python by name.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../status.h"

namespace {

// --- SSIM ------------------------------------------------------------------------------------------------------------

constexpr int kMaxTaps = 33;

// kRgba: four bytes a pixel, its colours composited over a background; an element is a pixel.
enum Dtype : int64_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kUint8 = 3, kRgba = 4 };
enum Padding : int64_t { kSame = 0, kValid = 1, kReflect = 2, kReplicate = 3 };

// A tensor: strides in elements. The innermost axis, or with interleaved channels the innermost two, are contiguous.
struct View {
  char* data;
  int64_t dtype, batch, channel, slice, row;
};
static_assert(sizeof(View) == 48, "six words");

// The arguments of every SSIM kernel, packed by splat_ssim/ops/ssim_cpu.py in this order. Null pointers stand for
// tensors that are absent. All views except the images are float32. `weight` and `map` are indexed by the position in
// the image, so with padding "valid" the caller moves their pointers back by the border.
struct Arguments {
  View img1, img2, weight, map, grad1, grad2;
  int64_t batch, channels, depth, height, width;
  int64_t interleaved;  // channels are the innermost axis
  int64_t taps[3];      // of the window along the slices, rows and columns; images have no window along slices
  int64_t padding, threads;
  int64_t weighs_l1;           // the weight is as large as the image and weighs |x - y| too, not only 1 - S
  int64_t similarities;        // the sums are of S and CS themselves; they are not weighted
  const double* window;        // [taps] of each axis, one after the other; symmetric, each sums to 1
  const double* coefficients;  // [planes][3]: the gradient is that of the sum of 1 - S, 1 - CS and |x - y| times these
  double* sums;                // [planes][3]: weighted sums of 1 - S, 0 and |x - y|, or of S, CS and |x - y|; written
  const float* background;     // [3], of images `background_batch` floats apart: background of a kRgba img2
  int64_t background_batch;
  double c1, c2, data_range;  // (k1 L)², (k2 L)², L
  double eps;                 // added to the denominator of S, not of CS
};
static_assert(sizeof(Arguments) == 464, "six views, thirteen sizes, four pointers, a stride, four doubles");
static_assert(offsetof(Arguments, batch) == 6 * sizeof(View) && offsetof(Arguments, c1) == 54 * 8, "no padding");

// A loss of images without weights, prepared for all images that differ only in their addresses; see loss.cpp.
struct LossArguments {
  Arguments kernel;
  Status (*run)(const Arguments*);  // the kernel
  double l1_weight, dssim_weight, offset;
  double positions, elements;  // number of terms in the sums of 1 - S and of |x - y|
};
static_assert(sizeof(LossArguments) == sizeof(Arguments) + 48, "six words follow");

// The arguments of MS-SSIM.
struct PyramidArguments {
  Arguments finest;  // planar float32 images; the gradients are dense planes; coefficients and sums are not read
  int64_t volumes;   // 0 for images: they have one slice, which is not halved, and a window of two axes
  int64_t scales;
  const double* weights;   // [scales]
  double* terms;           // [planes][scales]; written, or read if there is an upstream gradient
  double* values;          // [planes]; written if there is no upstream gradient
  const double* upstream;  // [planes], of the values; null for the values themselves
};
static_assert(sizeof(PyramidArguments) == sizeof(Arguments) + 48, "six words follow");

// --- the rasteriser --------------------------------------------------------------------------------------------------

constexpr int kProjectTask = 256;  // Gaussians of one task of the projection, which has pose gradients of its own
constexpr int kPoseSums = 15;      // gradients of R (9), t (3) and of the camera's position (3)
constexpr int kMaxChannels = 4;    // channels that one pass of compositing takes

// An instance, ready to composite: log2(alpha) = A dx² + B dx dy + C dy² + log_opacity with (dx, dy) from (x, y).
struct alignas(64) Record {
  float x, y;  // the mean, where pixel centres are at whole numbers
  float A, B, C, log_opacity;
  float slope_x, slope_y;  // at fixed dx alpha is largest at dy = slope_x dx, at fixed dy at dx = slope_y dy
  float colors[4];
  float reach_x, reach_y;  // half the box outside which alpha is under 1/255
  float D;                 // log2(alpha) is also A (dx - slope_y dy)² + D dy² + log_opacity
  float unused;
};
static_assert(sizeof(Record) == 64 && offsetof(Record, unused) == 60, "one cache line, 16 floats");

// The length of the int32 buffer of lists, see raster_bins.h. Python computes the number of pairs from it.
constexpr int kListPerPair = 5, kListPerInstance = 2, kListPerTile = 2, kListPadding = 32;
inline int64_t list_size(int64_t instances, int64_t tiles, int64_t pairs) {
  return kListPerPair * pairs + kListPerInstance * instances + kListPerTile * tiles + kListPadding + 1;
}

// --- Adam: of each parameter -----------------------------------------------------------------------------------------

constexpr int kAdamPointers = 4;  // parameter, gradient, first and second moment
constexpr int kAdamConstants =
    5;  // beta1, beta2, eps, the learning rate over its bias correction, 1 / sqrt of the second's

// --- the voxeliser ---------------------------------------------------------------------------------------------------

constexpr int kVoxelGeometry = 21;  // doubles: index to world (9) and back (9), and the origin
constexpr int kVoxelWindow = 6;     // int64: start and size of the crop
constexpr int kVoxelMinWidth = 16;  // of a crop, because kernels load and store whole vectors

// --- X-rays ----------------------------------------------------------------------------------------------------------

constexpr int kXrayFrame = 12;   // doubles of a view: origin, column step, row step and the vector to the first pixel
constexpr int kXrayNumbers = 5;  // int64: views, rows, columns, floats from row to row, cone
constexpr int kXraySlack = 15;   // floats past the columns of a row, because kernels load and store whole vectors

}  // namespace
