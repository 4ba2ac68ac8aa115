// Facts about the library: its ABI version, the instruction sets that it contains and the machine can run, and its
// constants. Also its request for huge pages.

#include <cstdint>
#include <string>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../status.h"
#include "export.h"
#include "layout.h"

// Raised with every change to a signature of the C ABI. splat_ssim/ops/compiled.py states the version that it expects.
constexpr int kAbiVersion = 9;

extern "C" SPLAT_EXPORT int splat_ssim_abi_version(void) { return kAbiVersion; }

#if defined(__x86_64__)
// Asks the processor itself, because __builtin_cpu_supports answers no to everything in libraries that zig links.
static bool has_bits(unsigned leaf, int reg, unsigned bits) {
  unsigned regs[4] = {};  // a, b, c, d
  return __get_cpuid_count(leaf, 0, &regs[0], &regs[1], &regs[2], &regs[3]) && (regs[reg] & bits) == bits;
}

// Whether the system saves some registers when it switches threads. `bits` are bits of the control register XCR0.
static bool saves_registers(unsigned bits) {
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & bits) == bits;
}
#endif

static bool supported(const std::string& isa) {
#if defined(__x86_64__)
  constexpr unsigned kFma = 1u << 12, kOsXsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;        // leaf 1, c
  constexpr unsigned kBmi1 = 1u << 3, kAvx2 = 1u << 5, kBmi2 = 1u << 8;                              // leaf 7, b
  constexpr unsigned kF = 1u << 16, kDq = 1u << 17, kCd = 1u << 28, kBw = 1u << 30, kVl = 1u << 31;  // leaf 7, b
  constexpr unsigned kLzcnt = 1u << 5;  // leaf 0x80000001, c
  const bool avx2 = has_bits(1, 2, kFma | kOsXsave | kAvx | kF16c) && saves_registers(0x06) &&
                    has_bits(7, 1, kBmi1 | kAvx2 | kBmi2) && has_bits(0x80000001, 2, kLzcnt);
  if (isa == "avx2") return avx2;
  if (isa == "avx512") return avx2 && saves_registers(0xe6) && has_bits(7, 1, kF | kDq | kCd | kBw | kVl);
#endif
  return isa == "baseline";
}

// The instruction sets that are built in (SPLAT_ISAS, of csrc/build.py) and that this processor supports, best first,
// separated by commas.
extern "C" SPLAT_EXPORT const char* splat_ssim_cpu_isas(void) {
  static const std::string names = [] {
    std::string found;
    for (const char* isa : {SPLAT_ISAS})
      if (supported(isa)) found += (found.empty() ? "" : ",") + std::string(isa);
    return found;
  }();
  return names.c_str();
}

// Asks for pages of 2 MiB for memory that is about to be written for the first time. If the system has them, there are
// a hundredth of the page faults. This is a hint, which changes no value.
extern "C" SPLAT_EXPORT void splat_ssim_prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

namespace {

struct Constant {
  const char* name;
  int64_t value;
};

// Constants that Python would otherwise repeat. splat_ssim/ops/compiled.py reads them as a dictionary.
constexpr Constant kConstants[] = {
    {"status_ok", kOk},
    {"status_out_of_memory", kOutOfMemory},
    {"status_bad_argument", kBadArgument},
    {"status_launch_failed", kLaunchFailed},
    {"dtype_float32", kFloat32},
    {"dtype_float16", kFloat16},
    {"dtype_bfloat16", kBFloat16},
    {"dtype_uint8", kUint8},
    {"dtype_rgba", kRgba},
    {"padding_same", kSame},
    {"padding_valid", kValid},
    {"padding_reflect", kReflect},
    {"padding_replicate", kReplicate},
    {"max_window", kMaxTaps},
    {"sizeof_arguments", sizeof(Arguments)},
    {"sizeof_loss_arguments", sizeof(LossArguments)},
    {"sizeof_pyramid_arguments", sizeof(PyramidArguments)},
    {"sizeof_record", sizeof(Record)},
    {"project_task", kProjectTask},
    {"pose_sums", kPoseSums},
    {"max_channels", kMaxChannels},
    {"list_per_pair", kListPerPair},
    {"list_per_instance", kListPerInstance},
    {"list_per_tile", kListPerTile},
    {"list_rest", kListPadding + 1},
    {"adam_pointers", kAdamPointers},
    {"adam_constants", kAdamConstants},
    {"voxel_geometry", kVoxelGeometry},
    {"voxel_window", kVoxelWindow},
    {"voxel_min_width", kVoxelMinWidth},
    {"xray_frame", kXrayFrame},
    {"xray_numbers", kXrayNumbers},
    {"xray_slack", kXraySlack},
};
constexpr int kConstantCount = sizeof(kConstants) / sizeof(kConstants[0]);

}  // namespace

// The name of constant `index`; nullptr past the last.
extern "C" SPLAT_EXPORT const char* splat_ssim_constant_name(int index) {
  return index >= 0 && index < kConstantCount ? kConstants[index].name : nullptr;
}

// The value of constant `index`; 0 past the last.
extern "C" SPLAT_EXPORT int64_t splat_ssim_constant(int index) {
  return index >= 0 && index < kConstantCount ? kConstants[index].value : 0;
}
