// The function by which a launcher starts a kernel. launch_driver.cpp starts it through the CUDA driver,
// ../emulation/launch_emulation.cpp on the CPU.
#pragma once
#include "../cpu/export.h"
#include "../status.h"
#include "problem.h"

// Starts `blocks` blocks of the kernel on the stream with a copy of `argument`, and counts the start. `module` is the
// caller's handle to the loaded kernels (launch_driver.cpp says what it is).
Status launch(const void* module, SsimKernel kernel, Int64 blocks, const void* argument, void* stream);

// The same without the count. launch_driver.cpp and launch_emulation.cpp each define it.
Status start(const void* module, SsimKernel kernel, Int64 blocks, const void* argument, void* stream);

// The C ABI of launch.cpp, launch_voxelize.cpp and launch_xray.cpp, which describe each function.
struct VoxelProblem;
struct XrayProblem;
extern "C" {
SPLAT_EXPORT int splat_ssim_cuda_prepare(SsimProblem* p, const SsimOptions* options, int operation, Int64* blocks);
SPLAT_EXPORT int splat_ssim_cuda_ssim(const void* module, const SsimProblem* p, void* stream);
SPLAT_EXPORT int splat_ssim_cuda_pad(const void* module, const SsimPadding* a, void* stream);
SPLAT_EXPORT int splat_ssim_cuda_fold(const void* module, const SsimPadding* a, void* stream);
SPLAT_EXPORT int splat_ssim_cuda_l1(const void* module, const SsimPadding* a, void* stream);
SPLAT_EXPORT int splat_ssim_cuda_reduce(const void* module, const SsimReduction* a, void* stream);
SPLAT_EXPORT int splat_ssim_cuda_scale(const void* module, const SsimScaling* a, void* stream);
SPLAT_EXPORT int splat_ssim_cuda_voxelize(const void* module, const VoxelProblem* p, void* stream);
SPLAT_EXPORT int splat_ssim_cuda_xray(const void* module, const XrayProblem* p, void* stream);
}
