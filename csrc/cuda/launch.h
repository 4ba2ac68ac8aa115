// How a launcher starts a kernel: launch_driver.cpp through the CUDA driver, ../emulation/launch_emulation.cpp on the CPU.
#pragma once
#include "problem.h"

// What every exported launcher returns; splat_ssim/ops/_library.py knows the first three. kLaunchFailed carries the
// driver's CUresult in the bits above the lowest eight.
enum SsimStatus : int { kOk = 0, kOutOfMemory = 1, kBadArgument = 2, kLaunchFailed = 3 };

// Starts `blocks` blocks of the kernel on the stream with a copy of `argument`. `module` is the caller's handle to the
// loaded kernels (launch_driver.cpp says what it is).
SsimStatus launch(const void* module, SsimKernel kernel, Int64 blocks, const void* argument, void* stream);
