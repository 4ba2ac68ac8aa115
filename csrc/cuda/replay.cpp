// Starts a recorded sequence of kernels again, with other tensors. splat_ssim/ops/_cuda_recording.py records the
// arguments of the launchers in launch.cpp, once for each kind of call. A replay in C costs little more than its
// launches.

#include <cstring>

#include "../cpu/export.h"
#include "launch.h"
#include "recording.h"

extern "C" {

// Sizes in bytes of a launch and of a pointer, which Python compares with its own.
SPLAT_EXPORT void splat_ssim_cuda_recording_layout(int* bytes) {
  bytes[0] = sizeof(RecordedLaunch);
  bytes[1] = sizeof(RecordedPointer);
}

// Starts `count` launches with the tensors at `slots`. Returns the status of the first launch that fails, with its
// index in the bits above the lowest 24.
SPLAT_EXPORT int splat_ssim_cuda_replay(const void* module, void* stream, const RecordedLaunch* launches, int count,
                                        char* const* slots) {
  alignas(16) char argument[kMaxArgument];
  for (int i = 0; i < count; ++i) {
    const RecordedLaunch& recorded = launches[i];
    if (recorded.bytes > kMaxArgument) return kBadArgument | i << 24;
    std::memcpy(argument, recorded.argument, recorded.bytes);
    for (int k = 0; k < recorded.pointers; ++k) {
      const RecordedPointer& pointer = recorded.pointer[k];
      char* const address = slots[pointer.slot] + pointer.offset;
      std::memcpy(argument + pointer.place, &address, sizeof address);
    }
    int status = kBadArgument;
    switch (recorded.launcher) {
      case kRecordedSsim:
        status = splat_ssim_cuda_ssim(module, reinterpret_cast<SsimProblem*>(argument), stream);
        break;
      case kRecordedPad: status = splat_ssim_cuda_pad(module, reinterpret_cast<SsimPadding*>(argument), stream); break;
      case kRecordedFold:
        status = splat_ssim_cuda_fold(module, reinterpret_cast<SsimPadding*>(argument), stream);
        break;
      case kRecordedL1: status = splat_ssim_cuda_l1(module, reinterpret_cast<SsimPadding*>(argument), stream); break;
      case kRecordedReduce:
        status = splat_ssim_cuda_reduce(module, reinterpret_cast<SsimReduction*>(argument), stream);
        break;
      case kRecordedScale:
        status = splat_ssim_cuda_scale(module, reinterpret_cast<SsimScaling*>(argument), stream);
        break;
    }
    if (status != kOk) return status | i << 24;
  }
  return kOk;
}
}
