// Starts the voxeliser's kernels. Like launch.cpp, this is host code, compiled into the library and into the emulation.

#include "../cpu/export.h"
#include "launch.h"
#include "voxel_problem.h"

namespace {

Int64 blocks_for(Int64 items, int each) { return (items + each - 1) / each; }

bool valid(const VoxelProblem& p) {
  if (p.count < 1 || p.count > 2147483647 || p.channels < 1) return false;
  Int64 bricks = 1;
  for (int k = 0; k < 3; ++k) {
    if (p.size[k] < 1 || p.size[k] > 1 << 24 || p.start[k] < -(1 << 28) || p.start[k] > 1 << 28) return false;
    if (p.bricks[k] != blocks_for(p.size[k], kBrick)) return false;
    bricks *= p.bricks[k];
    if (bricks > 2147483647) return false;
  }
  return true;
}

}  // namespace

extern "C" {

// Sizes in bytes of the problem and of a record, and the edge of a brick. Python compares them with its own.
SPLAT_EXPORT void splat_ssim_cuda_voxel_layout(int* values) {
  values[0] = sizeof(VoxelProblem);
  values[1] = sizeof(VoxelRecord);
  values[2] = kBrick;
}

// Runs stage p->stage.
SPLAT_EXPORT int splat_ssim_cuda_voxelize(const void* module, const VoxelProblem* p, void* stream) {
  if (!valid(*p)) return kBadArgument;
  const Int64 gaussians = blocks_for(p->count, kVoxelThreads);
  switch (p->stage) {
    case kStagePrepare: return launch(module, kVoxelPrepare, gaussians, p, stream);
    case kStagePairs: return launch(module, kVoxelPairs, gaussians, p, stream);
    case kStageRender: {
      const Int64 bricks = static_cast<Int64>(p->bricks[0]) * p->bricks[1] * p->bricks[2];
      return launch(module, p->channels == 1 ? kVoxelRender : kVoxelRenderMany, bricks, p, stream);
    }
    case kStageGather: {
      const Int64 warps = blocks_for(p->count, kVoxelThreads / 32);
      return launch(module, p->channels == 1 ? kVoxelGather : kVoxelGatherMany, warps, p, stream);
    }
    case kStageChain: return launch(module, kVoxelChain, gaussians, p, stream);
    default: return kBadArgument;
  }
}
}
