// The status that a kernel or a launcher returns, on the CPU and on CUDA. Python reads the numbers from the library.
#pragma once

enum Status : int {
  kOk = 0,
  kOutOfMemory = 1,
  kBadArgument = 2,
  kLaunchFailed = 3,  // the bits above the lowest eight carry the driver's CUresult
};
