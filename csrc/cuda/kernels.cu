// The entry points of all kernels, which problem.h lists. This file is compiled by nvcc, by NVRTC (one unit, which
// SPLAT_UNIT names) and by g++ for the emulation.
#include "fused2d.h"
#include "padding.h"
#include "scale.h"
#include "ssim3d.h"
#include "voxelize.h"
#include "xray.h"

#ifndef SPLAT_UNIT
#define SPLAT_UNIT SPLAT_UNIT_ALL
#endif
#define SPLAT_IN_UNIT(unit) (SPLAT_UNIT == SPLAT_UNIT_ALL || SPLAT_UNIT == (unit))

// An SM has 65,536 registers. They suffice for 4 blocks of 128 threads of value2d (128 registers a thread), or for 2
// blocks of 256 threads of the fused and the plain 3D kernels. The kAny kernels may use more registers a thread.
#if SPLAT_IN_UNIT(11)
SPLAT_ENTRY(splat_value2d, 128, 4, SsimProblem) { forward2d<11, 2, kValue>(a); }
SPLAT_ENTRY(splat_forward2d, 128, 3, SsimProblem) { forward2d<11, 2, kAny>(a); }
SPLAT_ENTRY(splat_adjoint2d, 128, 3, SsimProblem) { backward2d<11, 2>(a); }
SPLAT_ENTRY(splat_fused2d, 256, 2, SsimProblem) { fused2d<11, true, kNoWeights>(a); }
SPLAT_ENTRY(splat_fused2d_lone, 256, 2, SsimProblem) { fused2d<11, true, kNoWeights, true>(a); }
SPLAT_ENTRY(splat_fused2d_rgba, 256, 2, SsimProblem) { fused2d<11, false, kMaybeWeights, false, RgbaCursor>(a); }
SPLAT_ENTRY(splat_fused2d_strided, 256, 2, SsimProblem) { fused2d<11, false, kNoWeights>(a); }
SPLAT_ENTRY(splat_fused2d_weighted, 256, 2, SsimProblem) { fused2d<11, true, kGivenWeights>(a); }
SPLAT_ENTRY(splat_fused2d_weighted_strided, 256, 2, SsimProblem) { fused2d<11, false, kGivenWeights>(a); }
SPLAT_ENTRY(splat_value3d, 256, 2, SsimProblem) { forward3d<11, kValue>(a); }
SPLAT_ENTRY(splat_partials3d, 256, 2, SsimProblem) { forward3d<11, kPartials>(a); }
SPLAT_ENTRY(splat_weighted3d, 256, 2, SsimProblem) { forward3d<11, kWeighted>(a); }
SPLAT_ENTRY(splat_forward3d, 256, 1, SsimProblem) { forward3d<11, kAny>(a); }
SPLAT_ENTRY(splat_backward3d, 256, 2, SsimProblem) { backward3d<11, true>(a); }
SPLAT_ENTRY(splat_adjoint3d, 256, 1, SsimProblem) { backward3d<11, false>(a); }
#endif

#define SPLAT_WINDOW(taps, columns)                                                               \
  SPLAT_ENTRY(splat_forward2d_##taps, 128, 3, SsimProblem) { forward2d<taps, columns, kAny>(a); } \
  SPLAT_ENTRY(splat_adjoint2d_##taps, 128, 3, SsimProblem) { backward2d<taps, columns>(a); }      \
  SPLAT_ENTRY(splat_forward3d_##taps, 256, 1, SsimProblem) { forward3d<taps, kAny>(a); }          \
  SPLAT_ENTRY(splat_adjoint3d_##taps, 256, 1, SsimProblem) { backward3d<taps, false>(a); }
#define SPLAT_NARROW_WINDOW(taps)                                                                            \
  SPLAT_ENTRY(splat_value2d_##taps, 128, 4, SsimProblem) { forward2d<taps, 2, kValue>(a); }                  \
  SPLAT_ENTRY(splat_fused2d_##taps, 256, 2, SsimProblem) { fused2d<taps, true, kMaybeWeights>(a); }          \
  SPLAT_ENTRY(splat_fused2d_strided_##taps, 256, 2, SsimProblem) { fused2d<taps, false, kMaybeWeights>(a); } \
  SPLAT_ENTRY(splat_plain3d_##taps, 256, 2, SsimProblem) { forward3d<taps, kPlain>(a); }                     \
  SPLAT_ENTRY(splat_backward3d_##taps, 256, 2, SsimProblem) { backward3d<taps, true>(a); }                   \
  SPLAT_WINDOW(taps, 2)

#if SPLAT_IN_UNIT(3)
SPLAT_NARROW_WINDOW(3)
#endif
#if SPLAT_IN_UNIT(5)
SPLAT_NARROW_WINDOW(5)
#endif
#if SPLAT_IN_UNIT(7)
SPLAT_NARROW_WINDOW(7)
#endif
#if SPLAT_IN_UNIT(9)
SPLAT_NARROW_WINDOW(9)
#endif
#if SPLAT_IN_UNIT(13)
SPLAT_WINDOW(13, 1)
#endif
#if SPLAT_IN_UNIT(15)
SPLAT_WINDOW(15, 1)
#endif

#define SPLAT_AXES(taps)                                                                            \
  SPLAT_ENTRY(splat_forward3d_axes_##taps, 256, 1, SsimProblem) { forward3d<taps, kAny, true>(a); } \
  SPLAT_ENTRY(splat_adjoint3d_axes_##taps, 256, 1, SsimProblem) { backward3d<taps, false, true>(a); }
#if SPLAT_IN_UNIT(SPLAT_UNIT_AXES)
SPLAT_AXES(11)
SPLAT_AXES(15)
#endif

#if SPLAT_IN_UNIT(SPLAT_UNIT_SHARED)
SPLAT_ENTRY(splat_pad, 256, 1, SsimPadding) { pad(a); }
SPLAT_ENTRY(splat_fold, 256, 4, SsimPadding) { fold(a); }
SPLAT_ENTRY(splat_l1, 256, 4, SsimPadding) { l1(a); }
SPLAT_ENTRY(splat_reduce, 256, 1, SsimReduction) { reduce(a, block_index()); }
SPLAT_ENTRY(splat_scale, 256, 1, SsimScaling) { scale(a); }
#endif

#if SPLAT_IN_UNIT(SPLAT_UNIT_VOXELS)
SPLAT_ENTRY(splat_voxel_prepare, 128, 1, VoxelProblem) { voxel_prepare(a); }
SPLAT_ENTRY(splat_voxel_pairs, 128, 1, VoxelProblem) { voxel_pairs(a); }
SPLAT_ENTRY(splat_voxel_render, 128, 8, VoxelProblem) { voxel_render<1>(a); }
SPLAT_ENTRY(splat_voxel_render_many, 128, 8, VoxelProblem) { voxel_render<4>(a); }
SPLAT_ENTRY(splat_voxel_gather, 128, 8, VoxelProblem) { voxel_gather<1>(a); }
SPLAT_ENTRY(splat_voxel_gather_many, 128, 6, VoxelProblem) { voxel_gather<4>(a); }
SPLAT_ENTRY(splat_voxel_chain, 128, 1, VoxelProblem) { voxel_chain(a); }
#endif

#if SPLAT_IN_UNIT(SPLAT_UNIT_XRAYS)
SPLAT_ENTRY(splat_xray_prepare, 128, 1, XrayProblem) { xray_prepare(a); }
SPLAT_ENTRY(splat_xray_pairs, 128, 1, XrayProblem) { xray_pairs(a); }
SPLAT_ENTRY(splat_xray_render, 128, 8, XrayProblem) { xray_render<1>(a); }
SPLAT_ENTRY(splat_xray_render_many, 128, 8, XrayProblem) { xray_render<4>(a); }
SPLAT_ENTRY(splat_xray_gather, 128, 6, XrayProblem) { xray_gather<1>(a); }
SPLAT_ENTRY(splat_xray_gather_many, 128, 5, XrayProblem) { xray_gather<4>(a); }
SPLAT_ENTRY(splat_xray_chain, 128, 1, XrayProblem) { xray_chain(a); }
#endif
