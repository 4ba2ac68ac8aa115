// The argument of the X-ray projector's kernels, shared by host, device and Python (splat_ssim/ops/xray_cuda.py).
//
//     P_c(ray) = sum over i of values_ic times the integral of exp(-q_i/2) along the ray where q_i <= 9
//
// ../xray_math.h has the formulas. A call takes some views at a time, so the workspaces do not grow with their number.
#pragma once
#include "../xray_math.h"
#include "problem.h"

constexpr int kXrayTile = 16;      // edge of a tile, the square of pixels that a block of forward renders
constexpr int kXrayThreads = 128;  // threads a block, in every kernel
constexpr int kXrayViews = 8;      // views of a call, at most
constexpr int kXraySums = 12;      // sums that backward gathers for each shadow

// The stages of a call, in order. Forward runs prepare, and then pairs and render for all shadows or for some at a
// time. Backward runs prepare, gather and chain.
enum XrayStage {
  kXrayStagePrepare = 0,  // shadows, and the number of tiles that each touches
  kXrayStagePairs = 1,    // those tiles, listed in the order of the shadows
  kXrayStageRender = 2,   // pictures, from the pairs sorted by tile
  kXrayStageGather = 3,   // sums over the pixels of each shadow, and value_totals
  kXrayStageChain = 4,    // from the sums to totals, and from these to grad_means, grad_quats and grad_scales
};

// A shadow's number is view * N + Gaussian, where the first view of the call has number 0.
struct XrayProblem {
  const float* means;        // (N, 3) world x, y, z
  const float* quats;        // (N, 4) w, x, y, z, of any length above 0
  const float* scales;       // (N, 3) standard deviations, above 0
  const float* values;       // (N, C)
  XrayShadow* shadows;       // workspace [views][N]
  Int64* tile_counts;        // out of prepare [views][N]
  const Int64* pair_ends;    // running sums of tile_counts
  int* pair_tiles;           // out of pairs: tile and shadow of each pair
  int* pair_shadows;         // tiles are numbered row by row, one view after the other
  const int* tile_shadows;   // shadows in their order, one tile after the other
  const Int64* tile_starts;  // [views * tiles + 1] where the shadows of a tile begin
  float* pictures;           // render adds to these (views, C, rows, columns)
  const float* gradient;     // dL/dP, the same shape
  float* sums;               // workspace [views][N][12]: by_N and by_B of gather, see xray.h
  double* totals;            // workspace [N][12]: chain adds the gradients by W and by the mean
  double* value_totals;      // (N, C): gather adds the gradients by the values
  float* grad_means;         // out, the shapes of their inputs
  float* grad_quats;
  float* grad_scales;
  Int64 count;                 // N
  Int64 begin, end;            // the shadows that pairs lists
  XrayView views[kXrayViews];  // in: the vectors; the launcher completes them
  XrayDetector detector;
  int channels;    // C
  int view_count;  // views of this call
  int tiles[2];    // of a picture, along the columns and the rows
  int is_last;     // 1: chain writes grad_means, grad_quats and grad_scales
  int stage;       // XrayStage
};
static_assert(sizeof(XrayProblem) == 1624, "as in splat_ssim/ops/xray_cuda.py");
