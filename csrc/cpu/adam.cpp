// Adam in one pass over parameter, gradient and both moments. A second form updates only the rows that were visible.
#include "layout.h"
#include "parallel.h"
#include "simd.h"

namespace {

constexpr int64_t kTask = 16384;  // elements of one task: 256 KiB of the four arrays

struct Adam {
  float* __restrict__ parameter, * __restrict__ first, * __restrict__ second;
  const float* __restrict__ gradient;
  float beta1, beta2, eps;
  float rate;                // learning rate / (1 - beta1^step)
  float inverse_correction;  // 1 / sqrt(1 - beta2^step)

  // m += (1 - beta1)(g - m), v = beta2 v + (1 - beta2) g², p -= rate·m / (sqrt(v)·inverse_correction + eps)
  SPLAT_INLINE void update(int64_t i) const {
    const Floats g = load(gradient + i), old = load(first + i);
    const Floats m = old + (1.0f - beta1) * (g - old);
    const Floats v = beta2 * load(second + i) + ((1.0f - beta2) * g) * g;
    store(first + i, m);
    store(second + i, v);
    store(parameter + i, load(parameter + i) - rate * m / (square_root(v) * inverse_correction + eps));
  }

  SPLAT_INLINE void update_rest(int64_t i, int count) const {
    // The last few elements are copied to whole vectors.
    alignas(64) float p[kLanes] = {}, g[kLanes] = {}, m[kLanes] = {}, v[kLanes] = {};
    const size_t bytes = static_cast<size_t>(count) * sizeof(float);
    std::memcpy(p, parameter + i, bytes), std::memcpy(g, gradient + i, bytes);
    std::memcpy(m, first + i, bytes), std::memcpy(v, second + i, bytes);
    Adam rest = *this;
    rest.parameter = p, rest.gradient = g, rest.first = m, rest.second = v;
    rest.update(0);
    std::memcpy(parameter + i, p, bytes), std::memcpy(first + i, m, bytes), std::memcpy(second + i, v, bytes);
  }

  SPLAT_INLINE void update_range(int64_t begin, int64_t end) const {
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) update(i);
    if (i < end) update_rest(i, static_cast<int>(end - i));
  }
};

Adam make_adam(float* parameter, const float* gradient, float* first, float* second, const double* constants) {
  return {parameter,
          first,
          second,
          gradient,
          static_cast<float>(constants[0]),
          static_cast<float>(constants[1]),
          static_cast<float>(constants[2]),
          static_cast<float>(constants[3]),
          static_cast<float>(constants[4])};
}

}  // namespace

extern "C" {

// One step of `arrays` parameters at once. `pointers` has the parameter, gradient, first and second moment of each.
// `constants` has beta1, beta2, eps, the learning rate over its bias correction, and 1 / sqrt of the second bias
// correction of each. `counts` has the number of elements of each.
SPLAT_EXPORT Status SPLAT_KERNEL(adam)(float* const* pointers, const double* constants, const int64_t* counts,
                                       int64_t arrays, int threads) {
  int64_t tasks = 0;
  for (int64_t i = 0; i < arrays; ++i) tasks += (counts[i] + kTask - 1) / kTask;
  parallel_for(tasks, threads, [&](int64_t task, int) {
    int64_t i = 0;
    for (; task >= (counts[i] + kTask - 1) / kTask; ++i) task -= (counts[i] + kTask - 1) / kTask;
    const int64_t end = (task + 1) * kTask < counts[i] ? (task + 1) * kTask : counts[i];
    float* const* p = pointers + kAdamPointers * i;
    make_adam(p[0], p[1], p[2], p[3], constants + kAdamConstants * i).update_range(task * kTask, end);
  });
  return kOk;
}

// One step of one parameter, for the rows of `width` elements whose byte in `visible` is set. Other rows stay as they
// are.
SPLAT_EXPORT Status SPLAT_KERNEL(adam_rows)(float* parameter, const float* gradient, float* first, float* second,
                                            const double* constants, const uint8_t* visible, int64_t rows,
                                            int64_t width, int threads) {
  const Adam adam = make_adam(parameter, gradient, first, second, constants);
  constexpr int64_t kRows = 1024;
  parallel_for((rows + kRows - 1) / kRows, threads, [&](int64_t task, int) {
    const int64_t end = (task + 1) * kRows < rows ? (task + 1) * kRows : rows;
    for (int64_t row = task * kRows; row < end;) {
      // Consecutive visible rows are updated as one range.
      int64_t last = row;
      while (last < end && visible[last]) ++last;
      if (last > row) adam.update_range(row * width, last * width);
      row = last + 1;
    }
  });
  return kOk;
}
}
