// What the library says of itself: its ABI, and which instruction sets it has and the machine can run.

#include "export.h"

// Raised with every change to a signature of the C ABI; splat_ssim/ops/_library.py states the one it speaks.
constexpr int kAbiVersion = 1;

extern "C" SPLAT_EXPORT int splat_ssim_abi_version(void) { return kAbiVersion; }

// The instruction sets built in that this processor supports, best first, separated by commas.
extern "C" SPLAT_EXPORT const char* splat_ssim_cpu_isas(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return "avx512,avx2,baseline";
  if (avx2) return "avx2,baseline";
#endif
  return "baseline";
}
