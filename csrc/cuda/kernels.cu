// The entry points of all kernels; problem.h lists them. Compiled by nvcc, by NVRTC, and by g++ for the emulation.
#include "fused2d.h"
#include "padding.h"
#include "scale.h"
#include "ssim3d.h"
#include "voxelize.h"

// Registers: 65,536 an SM. value2d runs 4 blocks of 128 threads on one (128 registers), the fused and the plain 3D
// kernels 2 of 256. The kAny and wide kernels may use more.
SPLAT_ENTRY(splat_value2d, 128, 4, SsimProblem) { forward2d<11, 2, kValue>(a); }
SPLAT_ENTRY(splat_forward2d, 128, 3, SsimProblem) { forward2d<11, 2, kAny>(a); }
SPLAT_ENTRY(splat_forward2d_wide, 128, 3, SsimProblem) { forward2d<15, 1, kAny>(a); }
SPLAT_ENTRY(splat_adjoint2d, 128, 3, SsimProblem) { backward2d<11, 2>(a); }
SPLAT_ENTRY(splat_adjoint2d_wide, 128, 3, SsimProblem) { backward2d<15, 1>(a); }
SPLAT_ENTRY(splat_fused2d, 256, 2, SsimProblem) { fused2d<true, false>(a); }
SPLAT_ENTRY(splat_fused2d_strided, 256, 2, SsimProblem) { fused2d<false, false>(a); }
SPLAT_ENTRY(splat_fused2d_weighted, 256, 2, SsimProblem) { fused2d<true, true>(a); }
SPLAT_ENTRY(splat_fused2d_weighted_strided, 256, 2, SsimProblem) { fused2d<false, true>(a); }
SPLAT_ENTRY(splat_value3d, 256, 2, SsimProblem) { forward3d<11, kValue>(a); }
SPLAT_ENTRY(splat_partials3d, 256, 2, SsimProblem) { forward3d<11, kPartials>(a); }
SPLAT_ENTRY(splat_weighted3d, 256, 2, SsimProblem) { forward3d<11, kWeighted>(a); }
SPLAT_ENTRY(splat_forward3d, 256, 1, SsimProblem) { forward3d<11, kAny>(a); }
SPLAT_ENTRY(splat_forward3d_wide, 256, 1, SsimProblem) { forward3d<15, kAny>(a); }
SPLAT_ENTRY(splat_backward3d, 256, 2, SsimProblem) { backward3d<11, true>(a); }
SPLAT_ENTRY(splat_adjoint3d, 256, 1, SsimProblem) { backward3d<11, false>(a); }
SPLAT_ENTRY(splat_adjoint3d_wide, 256, 1, SsimProblem) { backward3d<15, false>(a); }
SPLAT_ENTRY(splat_pad, 256, 1, SsimPadding) { pad(a); }
SPLAT_ENTRY(splat_fold, 256, 4, SsimPadding) { fold(a); }
SPLAT_ENTRY(splat_l1, 256, 4, SsimPadding) { l1(a); }
SPLAT_ENTRY(splat_reduce, 256, 1, SsimReduction) { reduce(a); }
SPLAT_ENTRY(splat_scale, 256, 1, SsimScaling) { scale(a); }
SPLAT_ENTRY(splat_voxel_prepare, 128, 1, VoxelProblem) { voxel_prepare(a); }
SPLAT_ENTRY(splat_voxel_pairs, 128, 1, VoxelProblem) { voxel_pairs(a); }
SPLAT_ENTRY(splat_voxel_render, 128, 8, VoxelProblem) { voxel_render<1>(a); }
SPLAT_ENTRY(splat_voxel_render_many, 128, 8, VoxelProblem) { voxel_render<4>(a); }
SPLAT_ENTRY(splat_voxel_gather, 128, 8, VoxelProblem) { voxel_gather<1>(a); }
SPLAT_ENTRY(splat_voxel_gather_many, 128, 6, VoxelProblem) { voxel_gather<4>(a); }
SPLAT_ENTRY(splat_voxel_chain, 128, 1, VoxelProblem) { voxel_chain(a); }
