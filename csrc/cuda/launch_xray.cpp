// Starts the X-ray projector's kernels. Like launch.cpp, this is host code, compiled into the library and into the
// emulation.

#include "../cpu/export.h"
#include "launch.h"
#include "xray_problem.h"

namespace {

constexpr Int64 kMost = 2147483647;
constexpr int kMostPixels = 1 << 15;  // along one axis of the detector, as on the CPU

Int64 blocks_for(Int64 items, int each) { return (items + each - 1) / each; }

Int64 all_tiles(const XrayProblem& p) { return static_cast<Int64>(p.view_count) * p.tiles[0] * p.tiles[1]; }

bool valid(const XrayProblem& p) {
  const int size[2] = {p.detector.width, p.detector.height};
  if (p.count < 1 || p.channels < 1 || p.view_count < 1 || p.view_count > kXrayViews) return false;
  if (p.count > kMost / p.view_count) return false;
  for (int k = 0; k < 2; ++k) {
    if (size[k] < 1 || size[k] > kMostPixels || p.tiles[k] != blocks_for(size[k], kXrayTile)) return false;
  }
  return all_tiles(p) <= kMost;
}

}  // namespace

extern "C" {

// Sizes in bytes of the problem, of a shadow and of a view, the edge of a tile and the number of views of a call.
// Python compares them with its own.
SPLAT_EXPORT void splat_ssim_cuda_xray_layout(int* values) {
  values[0] = sizeof(XrayProblem);
  values[1] = sizeof(XrayShadow);
  values[2] = sizeof(XrayView);
  values[3] = kXrayTile;
  values[4] = kXrayViews;
}

// Runs stage p->stage.
SPLAT_EXPORT int splat_ssim_cuda_xray(const void* module, const XrayProblem* p, void* stream) {
  if (!valid(*p)) return kBadArgument;
  XrayProblem whole = *p;
  for (int v = 0; v < p->view_count; ++v) {
    if (!complete_view(whole.views[v])) return kBadArgument;
  }
  const bool one = p->channels == 1;
  switch (p->stage) {
    case kXrayStagePrepare:
      return launch(module, kXrayPrepare, blocks_for(p->count, kXrayThreads) * p->view_count, &whole, stream);
    case kXrayStagePairs: {
      if (p->begin < 0 || p->begin >= p->end || p->end > p->count * p->view_count) return kBadArgument;
      return launch(module, kXrayPairs, blocks_for(p->end - p->begin, kXrayThreads), &whole, stream);
    }
    case kXrayStageRender: return launch(module, one ? kXrayRender : kXrayRenderMany, all_tiles(*p), &whole, stream);
    case kXrayStageGather: {
      const Int64 warps = blocks_for(p->count, kXrayThreads / 32);
      return launch(module, one ? kXrayGather : kXrayGatherMany, warps, &whole, stream);
    }
    case kXrayStageChain: return launch(module, kXrayChain, blocks_for(p->count, kXrayThreads), &whole, stream);
    default: return kBadArgument;
  }
}
}
