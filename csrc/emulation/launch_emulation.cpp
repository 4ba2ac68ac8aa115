// start() of the emulation, and the kernels: ../cuda/kernels.cu compiled as C++.

#include "../cuda/kernels.cu"
#include "../cuda/launch.h"

namespace {

typedef void (*Body)(const void*);

// The kernel as a function of an untyped argument.
template <class Argument, void (*kernel)(const Argument&)>
void call(const void* argument) {
  kernel(*static_cast<const Argument*>(argument));
}

template <class Argument>
constexpr Argument argument_of(void (*)(const Argument&));

}  // namespace

Status start(const void*, SsimKernel kernel, Int64 blocks, const void* argument, void*) {
#define SPLAT_SSIM_BODY(id, name, threads, unit) call<decltype(argument_of(name)), name>,
  static const Body bodies[] = {SPLAT_SSIM_KERNELS(SPLAT_SSIM_BODY)};
#undef SPLAT_SSIM_BODY
#define SPLAT_SSIM_THREADS(id, name, threads, unit) threads,
  static const int threads[] = {SPLAT_SSIM_KERNELS(SPLAT_SSIM_THREADS)};
#undef SPLAT_SSIM_THREADS
  if (blocks < 1) return kBadArgument;
  return emulation::run(blocks, threads[kernel], bodies[kernel], argument) ? kOk : kLaunchFailed;
}
