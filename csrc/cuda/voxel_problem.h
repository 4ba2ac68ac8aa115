// The argument of the voxeliser's kernels, shared by host, device and Python (splat_ssim/ops/voxelize_cuda.py).
//
//     V_c(x) = sum over i of values_ic g_i(x)
//     g(x) = exp(-q(x)/2),  q(x) = (x - mean)' Sigma^-1 (x - mean),  g = 0 where q > 9
//
// All computation happens in index space. An affine map takes voxel indices to the world in which the Gaussians are
// given. The order of axes is x (the array's last, contiguous axis), y, z. A crop is a window of the infinite lattice.
#pragma once
#include "problem.h"

constexpr int kBrick = 8;           // edge of a brick, the cube of voxels that a block of forward renders
constexpr int kVoxelThreads = 128;  // threads a block, in every kernel

// A Gaussian in index space. Here q = (a dz + b dy + c dx)^2 + (d dy + e dx)^2 + (f dx)^2 includes the factor
// log2(e)/2, so that g = 2^-q. This form has no cancellation, and along a column of voxels only the first square
// changes.
struct VoxelRecord {
  int center[3];    // voxel nearest to the mean
  float offset[3];  // mean - center
  float factor[6];  // a, b, c, d, e, f
  int low[3];       // bounding box inside the crop, inclusive; low is above high if it touches no voxel
  int high[3];
};
static_assert(sizeof(VoxelRecord) == 72, "as in splat_ssim/ops/voxelize_cuda.py");

// The stages of a call, in order. Forward runs prepare, pairs and render; backward runs prepare, gather and chain.
enum VoxelStage {
  kStagePrepare = 0,  // records, and the number of bricks that each Gaussian touches
  kStagePairs = 1,    // those bricks, listed in the order of the Gaussians
  kStageRender = 2,   // volume, from the pairs sorted by brick
  kStageGather = 3,   // sums over the voxels of each Gaussian, and grad_values
  kStageChain = 4,    // from the sums to grad_means, grad_quats, grad_scales
};

struct VoxelProblem {
  const float* means;      // (N, 3) world x, y, z
  const float* quats;      // (N, 4) w, x, y, z, of any length above 0
  const float* scales;     // (N, 3) standard deviations, above 0
  const float* values;     // (N, C)
  VoxelRecord* records;    // workspace [N]
  Int64* brick_counts;     // out of prepare [N]
  const Int64* pair_ends;  // running sums of brick_counts [N]
  int* pair_bricks;        // out of pairs: brick and Gaussian of each pair
  int* pair_gaussians;
  const int* brick_gaussians;  // Gaussians in their order, one brick after the other
  const Int64* brick_starts;   // [bricks + 1] where the Gaussians of a brick begin
  float* volume;               // out of render (C, size z, size y, size x)
  const float* gradient;       // dL/dV, the same shape
  float* sums;        // workspace [N][9]: sums of w d and of w d d' (xx xy xz yy yz zz), w = g sum_c values_c dL/dV_c
  float* grad_means;  // out, the shapes of their inputs
  float* grad_quats;
  float* grad_scales;
  float* grad_values;
  double to_world[9];  // index to world, row-major 3x3
  double to_index[9];  // its inverse
  double origin[3];    // world position of index 0
  Int64 count;         // N
  int channels;        // C
  int start[3];        // first voxel of the crop
  int size[3];         // voxels of the crop
  int bricks[3];       // of the crop
  int stage;           // VoxelStage
};
static_assert(sizeof(VoxelProblem) == 368, "as in splat_ssim/ops/voxelize_cuda.py");
