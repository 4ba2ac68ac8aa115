// Lets a kernel source be compiled once for each instruction set.
//
// Every file listed under KERNELS in csrc/build.py is compiled several times, with SPLAT_ISA one of baseline (SSE2 or
// NEON), avx2 and avx512. It exports its entry points as SPLAT_KERNEL(name), which becomes splat_ssim_<name>_<isa>.
// When the library is loaded, Python picks the best instruction set that the machine can run. Everything else in such a
// file lives in an anonymous namespace, and no standard-library template is instantiated. Otherwise the linker could
// keep a weak symbol compiled for AVX-512 as the copy for all. tests/test_build.py checks the objects for weak symbols.
#pragma once
#include <cstdint>

#include "../status.h"
#include "export.h"

#define SPLAT_CONCAT_(a, b, c) a##b##_##c
#define SPLAT_CONCAT(a, b, c) SPLAT_CONCAT_(a, b, c)
#define SPLAT_KERNEL(name) SPLAT_CONCAT(splat_ssim_, name, SPLAT_ISA)

#define SPLAT_INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

}  // namespace
