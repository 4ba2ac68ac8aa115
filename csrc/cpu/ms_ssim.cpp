// MS-SSIM of float32 images or volumes in one call: the pyramid of both, the terms of every scale, and the gradient.
//
// Each scale has half the size of the previous one: it holds the means of blocks of 2 along each axis. An odd side has
// a zero before its first element, which counts in the mean.
//
// The value of a plane is a product of one term a scale: the mean of CS, or on the last scale of S, over the windows
// that lie inside, to the power of the scale's weight. If a term is 0 or less, the value is 0, with a gradient of 0.
// (Wang, Simoncelli, Bovik, Asilomar 2003, eq. 7.)
#include <cmath>
#include <cstdlib>

#include "parallel.h"
#include "ssim.h"

namespace {

constexpr int64_t kMaxScales = 32;
constexpr int64_t kTaskFloats = 16384;  // floats of an image that a task averages

// The size of a scale.
struct Size {
  int64_t depth, height, width;
  int64_t voxels() const { return depth * height * width; }
};

// How one axis is halved from a scale to the next.
struct Halving {
  int64_t blocks, first, step;  // block i has elements [first + i step, first + (i + 1) step); element -1 is a zero
  explicit Halving(int64_t side, bool halved) : blocks(side), first(0), step(1) {
    if (!halved) return;
    step = 2;
    first = -(side % 2);
    blocks = (side + side % 2) / 2;
  }
};

struct Pyramid {
  const PyramidArguments& call;
  const Arguments& finest;
  int64_t planes;
  Size sizes[kMaxScales];
  float* images[2][kMaxScales];  // [planes] dense planes; null for the finest scale, whose images are the caller's
  float* grads[2][kMaxScales];   // the same; also null if a gradient is not wanted
  double *coefficients, *sums;   // [planes][3]
  float* memory;

  explicit Pyramid(const PyramidArguments& arguments)
      : call(arguments), finest(arguments.finest), planes(finest.batch * finest.channels), images{}, grads{} {
    const bool wanted[2] = {call.upstream && finest.grad1.data, call.upstream && finest.grad2.data};
    sizes[0] = {finest.depth, finest.height, finest.width};
    int64_t floats = 0;
    for (int64_t scale = 1; scale < call.scales; ++scale) {
      const Size& fine = sizes[scale - 1];
      sizes[scale] = {Halving(fine.depth, call.volumes).blocks, Halving(fine.height, true).blocks,
                      Halving(fine.width, true).blocks};
      floats += planes * sizes[scale].voxels() * (2 + wanted[0] + wanted[1]);
    }
    memory = static_cast<float*>(std::malloc(size_t(floats + kLanes) * sizeof(float)));
    coefficients = static_cast<double*>(std::calloc(size_t(planes) * 6, sizeof(double)));
    sums = coefficients ? coefficients + 3 * planes : nullptr;
    float* next = memory;
    for (int image = 0; image < 2; ++image)
      for (int64_t scale = 1; memory && scale < call.scales; ++scale) {
        const int64_t size = planes * sizes[scale].voxels();
        images[image][scale] = next;
        next += size;
        if (!wanted[image]) continue;
        grads[image][scale] = next;
        next += size;
      }
  }
  ~Pyramid() {
    std::free(memory);
    std::free(coefficients);
  }
  Pyramid(const Pyramid&) = delete;
  bool allocated() const { return memory && coefficients; }

  // A view of the dense planes of a scale.
  View dense(const float* data, const Size& size) const {
    const int64_t plane = size.voxels();
    return {reinterpret_cast<char*>(const_cast<float*>(data)),
            kFloat32,
            finest.channels * plane,
            plane,
            size.height * size.width,
            size.width};
  }
  View image(int64_t scale, int which) const {
    if (scale == 0) return which ? finest.img2 : finest.img1;
    return dense(images[which][scale], sizes[scale]);
  }
  View grad(int64_t scale, int which) const {
    if (scale == 0) return which ? finest.grad2 : finest.grad1;
    return grads[which][scale] ? dense(grads[which][scale], sizes[scale]) : View{};
  }
  float* row_of(const View& view, int64_t plane, int64_t slice, int64_t row) const {
    return reinterpret_cast<float*>(view.data) + plane / finest.channels * view.batch +
           plane % finest.channels * view.channel + slice * view.slice + row * view.row;
  }

  // Calls body(plane, slice, row) for every row of every plane of a scale. A task has several rows.
  template <class Body>
  void each_row(const Size& size, int64_t elements_of_row, Body&& body) const {
    const int64_t rows_of_task = most(1, kTaskFloats / most(1, elements_of_row));
    const int64_t tasks = (size.height + rows_of_task - 1) / rows_of_task;
    parallel_for(planes * size.depth * tasks, static_cast<int>(finest.threads), [&](int64_t task, int) {
      const int64_t begin = task % tasks * rows_of_task, slice = task / tasks % size.depth,
                    plane = task / tasks / size.depth;
      for (int64_t row = begin; row < least(begin + rows_of_task, size.height); ++row) body(plane, slice, row);
    });
  }

  // Makes both images of a scale from those of the previous scale.
  bool halve(int64_t scale) const {
    const Size& fine = sizes[scale - 1];
    const Halving slices(fine.depth, call.volumes), rows(fine.height, true), columns(fine.width, true);
    const float share = 1.0f / static_cast<float>(slices.step * rows.step * columns.step);
    int failed = 0;
    for (int which = 0; which < 2; ++which) {
      const View from = image(scale - 1, which), to = image(scale, which);
      each_row(sizes[scale], fine.width * slices.step * 2, [&](int64_t plane, int64_t slice, int64_t row) {
        float* sum = static_cast<float*>(splat_ssim_scratch(2 * columns.blocks * int64_t(sizeof(float))));
        if (!sum) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        for (int64_t j = 0; j < 2 * columns.blocks; ++j) sum[j] = 0;
        for (int64_t k = 0; k < slices.step; ++k)
          for (int64_t i = 0; i < rows.step; ++i) {
            const int64_t at_slice = slices.first + slice * slices.step + k, at_row = rows.first + row * rows.step + i;
            if (at_slice < 0 || at_row < 0) continue;
            const float* __restrict__ in = row_of(from, plane, at_slice, at_row);
            float* __restrict__ out = sum - columns.first;
            for (int64_t j = 0; j < fine.width; ++j) out[j] += in[j];
          }
        float* __restrict__ out = row_of(to, plane, slice, row);
        for (int64_t j = 0; j < columns.blocks; ++j) out[j] = (sum[2 * j] + sum[2 * j + 1]) * share;
      });
    }
    return !failed;
  }

  // Adds the gradient of a scale to that of the next finer scale.
  void add_to_finer(int64_t scale) const {
    const Size& fine = sizes[scale - 1];
    const Halving slices(fine.depth, call.volumes), rows(fine.height, true), columns(fine.width, true);
    const float share = 1.0f / static_cast<float>(slices.step * rows.step * columns.step);
    for (int which = 0; which < 2; ++which) {
      const View from = grad(scale, which), to = grad(scale - 1, which);
      if (!to.data) continue;
      each_row(fine, fine.width, [&](int64_t plane, int64_t slice, int64_t row) {
        const float* __restrict__ in =
            row_of(from, plane, (slice - slices.first) / slices.step, (row - rows.first) / rows.step);
        float* __restrict__ out = row_of(to, plane, slice, row);
        // On an odd side, the first element is alone in its block. All other elements are pairs.
        const int64_t single = -columns.first;
        if (single) out[0] += in[0] * share;
        in += single;
        out += single;
        for (int64_t j = 0; j < columns.blocks - single; ++j) {
          const float value = in[j] * share;
          out[2 * j] += value;
          out[2 * j + 1] += value;
        }
      });
    }
  }

  // Runs the kernel of one scale: sums of S and CS, and gradients if they are wanted.
  Status run(int64_t scale) const {
    Arguments arguments = finest;
    arguments.img1 = image(scale, 0);
    arguments.img2 = image(scale, 1);
    arguments.weight = arguments.map = arguments.grad1 = arguments.grad2 = {};
    if (call.upstream) {
      arguments.grad1 = grad(scale, 0);
      arguments.grad2 = grad(scale, 1);
    }
    arguments.depth = sizes[scale].depth;
    arguments.height = sizes[scale].height;
    arguments.width = sizes[scale].width;
    arguments.interleaved = 0;
    arguments.padding = kValid;
    arguments.similarities = 1;
    arguments.coefficients = coefficients;
    arguments.sums = sums;
    return call.volumes ? SPLAT_KERNEL(ssim3d)(&arguments) : SPLAT_KERNEL(ssim2d)(&arguments);
  }

  double positions(int64_t scale) const {
    const int64_t in_depth = call.volumes ? finest.taps[0] - 1 : 0;
    return double((sizes[scale].depth - in_depth) * (sizes[scale].height - finest.taps[1] + 1) *
                  (sizes[scale].width - finest.taps[2] + 1));
  }

  double product(const double* terms) const {
    double value = 1;
    bool positive = true, known = true;
    for (int64_t scale = 0; scale < call.scales; ++scale) {
      known = known && !std::isnan(terms[scale]);
      positive = positive && terms[scale] > 0;
      if (positive) value *= std::pow(terms[scale], call.weights[scale]);
    }
    return !known ? NAN : positive ? value : 0.0;
  }

  Status values() const {
    for (int64_t scale = 0; scale < call.scales; ++scale) {
      if (scale > 0 && !halve(scale)) return kOutOfMemory;
      if (const Status status = run(scale)) return status;
      for (int64_t plane = 0; plane < planes; ++plane)
        call.terms[plane * call.scales + scale] = sums[3 * plane + (scale + 1 < call.scales)] / positions(scale);
    }
    for (int64_t plane = 0; plane < planes; ++plane) call.values[plane] = product(call.terms + plane * call.scales);
    return kOk;
  }

  Status gradients() const {
    for (int64_t scale = 1; scale < call.scales; ++scale)
      if (!halve(scale)) return kOutOfMemory;
    for (int64_t scale = call.scales - 1; scale >= 0; --scale) {
      for (int64_t plane = 0; plane < planes; ++plane) {
        const double* terms = call.terms + plane * call.scales;
        const double value = product(terms);
        const double by_term = value == 0 ? 0 : call.weights[scale] * value / terms[scale];
        // The kernel takes coefficients of 1 - S and 1 - CS, hence the sign.
        coefficients[3 * plane + (scale + 1 < call.scales)] = -call.upstream[plane] * by_term / positions(scale);
        coefficients[3 * plane + (scale + 1 == call.scales)] = 0;
      }
      if (const Status status = run(scale)) return status;
      if (scale + 1 < call.scales) add_to_finer(scale + 1);
    }
    return kOk;
  }
};

}  // namespace

// Computes the terms and values, or, given an upstream gradient, the gradients of the finest images.
extern "C" SPLAT_EXPORT Status SPLAT_KERNEL(ms_ssim)(const PyramidArguments* call) {
  const Arguments& finest = call->finest;
  if (call->scales < 1 || call->scales > kMaxScales || finest.interleaved) return kBadArgument;
  if (finest.img1.dtype != kFloat32 || finest.img2.dtype != kFloat32) return kBadArgument;
  const Pyramid pyramid(*call);
  if (!pyramid.allocated()) return kOutOfMemory;
  return call->upstream ? pyramid.gradients() : pyramid.values();
}
