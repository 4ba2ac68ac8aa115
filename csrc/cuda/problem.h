// The arguments of the SSIM kernels, one structure for each kind of kernel. Host, device and Python share them
// (splat_ssim/ops/_cuda_kernels.py mirrors them).
//
// They are plain structures of fixed-size members in a fixed order, so that ctypes, g++, nvcc and NVRTC agree on the
// layout.
#pragma once

typedef long long Int64;

// The type of a tensor's elements. kRgba is a colour channel of RGBA bytes, composited over a background with the
// fourth channel as alpha.
enum SsimType { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2, kUint8 = 3, kRgba = 4 };

// A tensor (batch, channel, depth, height, width) of any strides, in elements. A uint8 v stands for v · top / 255,
// where `top` is the data range. Images have depth 1. `data` is null if the tensor is absent.
struct SsimTensor {
  void* data;
  Int64 stride[5];
  int type;
  float top;
};
static_assert(sizeof(SsimTensor) == 56, "as in splat_ssim/ops/_cuda_kernels.py");

// The three kinds of block sums: of 1 - S (with `similarities` of S), of |image1 - image2| and of CS
// (contrast-structure).
enum SsimSum { kSumDssim = 0, kSumL1 = 1, kSumContrast = 2, kSumKinds = 3 };

// Argument of the reduction over block sums. For every group (image, plane or batch) and kind k:
//     results[k][group] = scale[k] · Σ values[k][group][0 … count[k])
// If combined is given, combined[group] = offset + Σ combine[k]·results[k][group]. The results of consecutive groups
// are `result_stride` elements apart.
struct SsimReduction {
  const float* values[kSumKinds];
  Int64 count[kSumKinds];
  float* results[kSumKinds];
  float* combined;
  Int64 result_stride;
  int groups, kinds;
  float scale[kSumKinds], combine[kSumKinds];
  float offset;
};
static_assert(sizeof(SsimReduction) == 128, "as in splat_ssim/ops/_cuda_kernels.py");

// Windows have 3, 5, … 15 taps, and each size has kernels of its own. Windows of volumes that differ along the axes (1
// to 15 taps each) share kernels, which skip the taps that an axis does not have.
constexpr int kMaxTaps = 15;

struct SsimProblem {
  SsimTensor image[2];
  SsimTensor grad[2];         // out: gradients, with their own types and strides
  SsimTensor map;             // out: S of every voxel
  SsimTensor weight;          // in: weight of every voxel of the map, in sums and gradients; strides may be 0
  SsimTensor l1_weight;       // in: weight of |x - y| of every voxel of the images
  const float* plane_weight;  // in: dL/d(1 - S) and dL/d(1 - CS), [plane][2]
  float* partials;       // workspace [4][plane][map voxels]: adjoints of E[s], E[d], E[s²], E[d²] (or 3, see kernels)
  float* block_sums;     // workspace [3][plane][blocks a plane]
  Int64 map_slice;       // voxels of a slice of the map
  Int64 partial_stride;  // voxels of all maps: the distance between two adjoint maps
  int size[5];           // batch, channels, depth, height, width of the images
  int map_size[3];       // depth, height, width of the map
  int lead[3];           // image index = map index + lead: 0 for padding "same", the radius for "valid"
  int strips;            // blocks along the width
  int tiles;             // blocks along the height (volumes only)
  int segments;          // blocks along the marching axis: height of images, depth of volumes
  int segment;           // outputs along the marching axis that a block makes
  float taps[kMaxTaps / 2 + 1];  // window weights from the edge to the centre
  float c1, c2;                  // (k1·L)², (k2·L)²
  float eps;                     // added to the denominator of S, not of CS
  float apart;                   // x - y is shifted if the images' means differ by more than this, see shift.h
  float dssim_scale;             // dL/d(1 - S) of a voxel of weight 1, if plane_weight is not given
  float l1_scale;                // dL/d|x - y| of a voxel of weight 1
  int similarities;              // 1: the sums are of S and CS themselves, without weights
  int kernel;                    // SsimKernel, chosen by splat_ssim_cuda_prepare
  int partial_maps;              // number of adjoint maps that `partials` must hold if gradients follow: 3 or 4
  int counts_l1;                 // 1: the kernel sums |x - y| too
  // For fused kernels: if `arrivals` is given, the last block to finish reduces the block sums. `arrivals` counts the
  // finished blocks and is 0 before and after a launch. Kernels that may run at the same time must not share it.
  unsigned* arrivals;
  SsimReduction means;
  const float* background;  // if image[1] is kRgba: 3 values an image; images are `background_stride` apart
  Int64 background_stride;
  // For the kernels of windows that differ along the axes: the window of each axis.
  int radius[3];
  float slice_taps[kMaxTaps];             // along the slices, from the first to the last
  float plane_taps[2][kMaxTaps / 2 + 1];  // along the height and the width, from the centre to the edge
};
static_assert(sizeof(SsimProblem) == 856, "as in splat_ssim/ops/_cuda_kernels.py");

// The operations for which splat_ssim_cuda_prepare fills in a problem.
enum SsimOperation {
  kOperationForward = 0,   // sums; also the map and the adjoint maps if their pointers are set
  kOperationBackward = 1,  // gradients from the adjoint maps
  kOperationFused = 2,     // sums and grad[0] in one kernel, if there is one for the problem
};

struct SsimOptions {
  double sigma[3], k1, k2, data_range, eps;
  int spatial_dims;     // 2 or 3
  int window_size[3];   // along slices, height and width: odd, 3 to 15, or 1 to 15 if they differ
  int valid;            // 1: only windows inside the image; 0: zeros outside
  int gradient;         // 1: gradients follow; the forward kernel writes adjoint maps for the backward one
  int both;             // 1: the adjoint maps must serve the gradients of both images
  int similarities;     // 1: sums of S and of CS instead of the sum of 1 - S
  int multiprocessors;  // of the device; the cut of the marching axis depends on them
};
static_assert(sizeof(SsimOptions) == 96, "as in splat_ssim/ops/_cuda_kernels.py");

// A tile of the padding kernels has 2^lane_bits columns and 256 >> lane_bits rows of threads. Each thread has kTileRows
// rows.
constexpr int kTileThreads = 256, kTileRows = 4;

// Argument of the padding kernels. `source` has the size without padding, `target` has `radius` more on both sides.
struct SsimPadding {
  SsimTensor source[2];  // pad: the image; l1: both images; fold: both images, for the sign of the L1 term
  SsimTensor target;     // pad: out, padded; fold: in, gradient of the padded image
  SsimTensor grad;       // fold: out, gradient of the image
  SsimTensor l1_weight;  // fold, l1: weight of |source[0] - source[1]|, if given
  int size[5];           // of the unpadded images
  int radius[3];         // 0 along the depth of images
  int reflect;           // 1 reflects (the edge not repeated), 0 replicates
  float l1_scale;        // fold: this times the weight and the sign of source[0] - source[1] is added
  float* block_sums;     // l1: workspace [blocks]
  int blocks;            // l1: blocks an image
  int lane_bits;         // set by the launchers, like the tiles along the width and the height of a slice
  int strips, tiles;
};
static_assert(sizeof(SsimPadding) == 344, "as in splat_ssim/ops/_cuda_kernels.py");

// Argument of the kernel that multiplies gradients in place by the upstream gradient of their loss. Group g has `count`
// consecutive elements, which are multiplied by upstream[g·upstream_stride].
struct SsimScaling {
  float* gradient;
  const float* upstream;
  Int64 count, upstream_stride;
  int groups;
  int blocks;  // of each group
};
static_assert(sizeof(SsimScaling) == 40, "as in splat_ssim/ops/_cuda_kernels.py");

// The kernels of a window. Every window has kernels for any tensor. Windows narrower than 11 have some for plain
// float32 images too, but only one where 11 has several.
#define SPLAT_SSIM_WIDE_KERNELS(ENTRY, taps)                  \
  ENTRY(kForward2d_##taps, splat_forward2d_##taps, 128, taps) \
  ENTRY(kAdjoint2d_##taps, splat_adjoint2d_##taps, 128, taps) \
  ENTRY(kForward3d_##taps, splat_forward3d_##taps, 256, taps) \
  ENTRY(kAdjoint3d_##taps, splat_adjoint3d_##taps, 256, taps)
#define SPLAT_SSIM_NARROW_KERNELS(ENTRY, taps)                           \
  ENTRY(kValue2d_##taps, splat_value2d_##taps, 128, taps)                \
  ENTRY(kFused2d_##taps, splat_fused2d_##taps, 256, taps)                \
  ENTRY(kFused2dStrided_##taps, splat_fused2d_strided_##taps, 256, taps) \
  ENTRY(kPlain3d_##taps, splat_plain3d_##taps, 256, taps)                \
  ENTRY(kBackward3d_##taps, splat_backward3d_##taps, 256, taps)          \
  SPLAT_SSIM_WIDE_KERNELS(ENTRY, taps)

// Units of compilation. NVRTC compiles a unit at its first use, nvcc compiles all together. The unit of a window has
// the window's size as its number.
#define SPLAT_UNIT_ALL 0
#define SPLAT_UNIT_SHARED 1  // kernels that every window needs
#define SPLAT_UNIT_VOXELS 2
#define SPLAT_UNIT_AXES 4  // windows that differ along the axes
#define SPLAT_UNIT_XRAYS 6

// Every kernel: identifier, entry point, threads a block, unit. Launcher and module loader rely on the order.
#define SPLAT_SSIM_KERNELS(ENTRY)                                          \
  ENTRY(kValue2d, splat_value2d, 128, 11)                                  \
  ENTRY(kForward2d, splat_forward2d, 128, 11)                              \
  ENTRY(kAdjoint2d, splat_adjoint2d, 128, 11)                              \
  ENTRY(kFused2d, splat_fused2d, 256, 11)                                  \
  ENTRY(kFused2dLone, splat_fused2d_lone, 256, 11)                         \
  ENTRY(kFused2dRgba, splat_fused2d_rgba, 256, 11)                         \
  ENTRY(kFused2dStrided, splat_fused2d_strided, 256, 11)                   \
  ENTRY(kFused2dWeighted, splat_fused2d_weighted, 256, 11)                 \
  ENTRY(kFused2dWeightedStrided, splat_fused2d_weighted_strided, 256, 11)  \
  ENTRY(kValue3d, splat_value3d, 256, 11)                                  \
  ENTRY(kPartials3d, splat_partials3d, 256, 11)                            \
  ENTRY(kWeighted3d, splat_weighted3d, 256, 11)                            \
  ENTRY(kForward3d, splat_forward3d, 256, 11)                              \
  ENTRY(kBackward3d, splat_backward3d, 256, 11)                            \
  ENTRY(kAdjoint3d, splat_adjoint3d, 256, 11)                              \
  SPLAT_SSIM_NARROW_KERNELS(ENTRY, 3)                                      \
  SPLAT_SSIM_NARROW_KERNELS(ENTRY, 5)                                      \
  SPLAT_SSIM_NARROW_KERNELS(ENTRY, 7)                                      \
  SPLAT_SSIM_NARROW_KERNELS(ENTRY, 9)                                      \
  SPLAT_SSIM_WIDE_KERNELS(ENTRY, 13)                                       \
  SPLAT_SSIM_WIDE_KERNELS(ENTRY, 15)                                       \
  ENTRY(kForward3dAxes_11, splat_forward3d_axes_11, 256, SPLAT_UNIT_AXES)  \
  ENTRY(kAdjoint3dAxes_11, splat_adjoint3d_axes_11, 256, SPLAT_UNIT_AXES)  \
  ENTRY(kForward3dAxes_15, splat_forward3d_axes_15, 256, SPLAT_UNIT_AXES)  \
  ENTRY(kAdjoint3dAxes_15, splat_adjoint3d_axes_15, 256, SPLAT_UNIT_AXES)  \
  ENTRY(kPad, splat_pad, 256, SPLAT_UNIT_SHARED)                           \
  ENTRY(kFold, splat_fold, 256, SPLAT_UNIT_SHARED)                         \
  ENTRY(kL1, splat_l1, 256, SPLAT_UNIT_SHARED)                             \
  ENTRY(kReduce, splat_reduce, 256, SPLAT_UNIT_SHARED)                     \
  ENTRY(kScale, splat_scale, 256, SPLAT_UNIT_SHARED)                       \
  ENTRY(kVoxelPrepare, splat_voxel_prepare, 128, SPLAT_UNIT_VOXELS)        \
  ENTRY(kVoxelPairs, splat_voxel_pairs, 128, SPLAT_UNIT_VOXELS)            \
  ENTRY(kVoxelRender, splat_voxel_render, 128, SPLAT_UNIT_VOXELS)          \
  ENTRY(kVoxelRenderMany, splat_voxel_render_many, 128, SPLAT_UNIT_VOXELS) \
  ENTRY(kVoxelGather, splat_voxel_gather, 128, SPLAT_UNIT_VOXELS)          \
  ENTRY(kVoxelGatherMany, splat_voxel_gather_many, 128, SPLAT_UNIT_VOXELS) \
  ENTRY(kVoxelChain, splat_voxel_chain, 128, SPLAT_UNIT_VOXELS)            \
  ENTRY(kXrayPrepare, splat_xray_prepare, 128, SPLAT_UNIT_XRAYS)           \
  ENTRY(kXrayPairs, splat_xray_pairs, 128, SPLAT_UNIT_XRAYS)               \
  ENTRY(kXrayRender, splat_xray_render, 128, SPLAT_UNIT_XRAYS)             \
  ENTRY(kXrayRenderMany, splat_xray_render_many, 128, SPLAT_UNIT_XRAYS)    \
  ENTRY(kXrayGather, splat_xray_gather, 128, SPLAT_UNIT_XRAYS)             \
  ENTRY(kXrayGatherMany, splat_xray_gather_many, 128, SPLAT_UNIT_XRAYS)    \
  ENTRY(kXrayChain, splat_xray_chain, 128, SPLAT_UNIT_XRAYS)

#define SPLAT_SSIM_ID(id, name, threads, unit) id,
enum SsimKernel { SPLAT_SSIM_KERNELS(SPLAT_SSIM_ID) kKernelCount };
#undef SPLAT_SSIM_ID
