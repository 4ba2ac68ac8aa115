// The loss of whole images in one call: L1 and 1 - S, their weighted sum and its gradients. There is little work around
// the SSIM kernel, but for small images it would take longer in Python than the kernel itself.

#include <cstdlib>

#include "../status.h"
#include "export.h"
#include "layout.h"

// The arguments after `prepared` may differ from call to call: images, gradients, background (null if absent) and
// threads. Writes the loss, the mean of |x - y| and the mean of 1 - S into `means`.
extern "C" SPLAT_EXPORT Status splat_ssim_loss(const LossArguments* prepared, char* img1, char* img2, char* grad1,
                                               char* grad2, const float* background, int64_t threads, float* means) {
  Arguments arguments = prepared->kernel;
  arguments.img1.data = img1;
  arguments.img2.data = img2;
  arguments.grad1.data = grad1;
  arguments.grad2.data = grad2;
  arguments.background = background;
  arguments.threads = threads;
  const int64_t planes = arguments.interleaved ? arguments.batch : arguments.batch * arguments.channels;
  double* const rows = static_cast<double*>(std::malloc(6 * planes * sizeof(double)));
  if (!rows) return kOutOfMemory;
  double* const coefficients = rows + 3 * planes;
  for (int64_t plane = 0; plane < planes; ++plane) {
    coefficients[3 * plane] = prepared->dssim_weight / prepared->positions;
    coefficients[3 * plane + 1] = 0;
    coefficients[3 * plane + 2] = prepared->l1_weight / prepared->elements;
  }
  arguments.coefficients = coefficients;
  arguments.sums = rows;
  const Status status = prepared->run(&arguments);
  double dssim = 0, l1 = 0;
  for (int64_t plane = 0; plane < planes; ++plane) {
    dssim += rows[3 * plane];
    l1 += rows[3 * plane + 2];
  }
  std::free(rows);
  if (status != kOk) return status;
  dssim /= prepared->positions;
  l1 /= prepared->elements;
  means[0] = static_cast<float>(prepared->offset + prepared->l1_weight * l1 + prepared->dssim_weight * dssim);
  means[1] = static_cast<float>(l1);
  means[2] = static_cast<float>(dssim);
  return kOk;
}
