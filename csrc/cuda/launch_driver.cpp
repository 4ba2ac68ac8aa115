// Starts kernels through the CUDA driver. Python looks up the driver's functions (splat_ssim/ops/_cuda_module.py), so
// the library loads without the driver and without the CUDA runtime.

#include "launch.h"

namespace {

// The driver's functions used here, declared as in cuda.h. CUresult is an int; 0 means success.
typedef int (*LaunchKernel)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                            unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** arguments,
                            void** extra);
typedef int (*ContextGet)(void** context);
typedef int (*ContextSet)(void* context);

// The kernels loaded on one device. If the calling thread has another context or none, as a new autograd thread may,
// the launch makes `context` current.
struct Module {
  LaunchKernel launch_kernel;
  ContextGet get_current;
  ContextSet set_current;
  void* context;
  void* functions[kKernelCount];
};

}  // namespace

Status start(const void* handle, SsimKernel kernel, Int64 blocks, const void* argument, void* stream) {
#define SPLAT_SSIM_THREADS(id, name, threads, unit) threads,
  static const unsigned threads[] = {SPLAT_SSIM_KERNELS(SPLAT_SSIM_THREADS)};
#undef SPLAT_SSIM_THREADS
  if (!handle || blocks < 1 || blocks > 2147483647) return kBadArgument;
  const Module& module = *static_cast<const Module*>(handle);
  auto status = [](int result) { return result == 0 ? kOk : static_cast<Status>(kLaunchFailed | result << 8); };
  void* current = nullptr;
  int result = module.get_current(&current);
  if (result == 0 && current != module.context) result = module.set_current(module.context);
  if (result != 0) return status(result);
  void* arguments[] = {const_cast<void*>(argument)};
  result = module.launch_kernel(module.functions[kernel], static_cast<unsigned>(blocks), 1, 1, threads[kernel], 1, 1, 0,
                                stream, arguments, nullptr);
  if (current && current != module.context) module.set_current(current);
  return status(result);
}
