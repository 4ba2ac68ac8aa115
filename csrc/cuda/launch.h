// How a launcher starts a kernel: launch_driver.cpp through the CUDA driver, ../emulation/launch_emulation.cpp on the CPU.
#pragma once
#include "../status.h"
#include "problem.h"

// Starts `blocks` blocks of the kernel on the stream with a copy of `argument`, and counts the start. `module` is the
// caller's handle to the loaded kernels (launch_driver.cpp says what it is).
Status launch(const void* module, SsimKernel kernel, Int64 blocks, const void* argument, void* stream);

// The same without the count: what launch_driver.cpp and launch_emulation.cpp define.
Status start(const void* module, SsimKernel kernel, Int64 blocks, const void* argument, void* stream);
