// Embeds two files in the library, which csrc/build_cuda.py makes: the compiled kernels (a fat binary of nvcc, or an
// empty file if there was no nvcc) and their source as one text.

#include "../cpu/export.h"

asm(R"(
  .section .rodata
  .balign 64
splat_ssim_image_bytes:
  .quad splat_ssim_image_end - splat_ssim_image_begin
  .balign 64
splat_ssim_image_begin:
  .incbin ")" SPLAT_IMAGE_PATH R"("
splat_ssim_image_end:
  .byte 0
  .balign 64
splat_ssim_source_begin:
  .incbin ")" SPLAT_SOURCE_PATH R"("
  .byte 0
  .text
)");

extern "C" {
extern const char splat_ssim_image_begin[] __attribute__((visibility("hidden")));
extern const long long splat_ssim_image_bytes __attribute__((visibility("hidden")));
extern const char splat_ssim_source_begin[] __attribute__((visibility("hidden")));

// The fat binary, or nullptr if there is none.
SPLAT_EXPORT const void* splat_ssim_cuda_image(void) {
  return splat_ssim_image_bytes ? splat_ssim_image_begin : nullptr;
}

// The architectures in the fat binary, such as "sm_89,sm_90,compute_90". Empty if there is none.
SPLAT_EXPORT const char* splat_ssim_cuda_architectures(void) { return SPLAT_ARCHITECTURES; }

// The source of all kernels as zero-terminated text, for NVRTC.
SPLAT_EXPORT const char* splat_ssim_cuda_source(void) { return splat_ssim_source_begin; }
}
