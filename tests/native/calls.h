// Calls of every CPU kernel on made-up numbers, for the programs beside this file.
//
// The kernels are called through `kernels`, which a program fills: with those it is linked with, or with those of a
// library that it loads.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../csrc/cpu/ssim.h"

extern "C" {
Status SPLAT_KERNEL(ssim2d)(const Arguments*);
Status SPLAT_KERNEL(ssim3d)(const Arguments*);
Status SPLAT_KERNEL(ms_ssim)(const void*);
Status SPLAT_KERNEL(raster_project)(const int64_t* sizes, const double* planes, const float* const* inputs,
                                 float* means2d, float* depths, float* conics, float* opacities, float* colors,
                                 int32_t* radii);
Status SPLAT_KERNEL(raster_project_backward)(const int64_t* sizes, const double* planes, const float* const* inputs,
                                          const int32_t* radii, const float* colors, const float* const* v_outputs,
                                          float* const* v_inputs, float* v_poses);
Status SPLAT_KERNEL(raster_records)(const int64_t* sizes, const float* means2d, const float* conics,
                                 const float* opacities, const float* colors, const int32_t* radii, float* records,
                                 int32_t* boxes, int64_t* totals);
Status SPLAT_KERNEL(raster_composite)(const int64_t* sizes, double max_alpha, float* records, int32_t* lists,
                                   const int32_t* boxes, const float* depths, const float* backgrounds, float* colors,
                                   float* alphas);
Status SPLAT_KERNEL(raster_composite_backward)(const int64_t* sizes, double max_alpha, float* records, int32_t* lists,
                                            const float* conics, const float* opacities, float* colors, float* alphas,
                                            const float* v_colors, const float* v_alphas, float* v_means2d,
                                            float* v_conics, float* v_values, float* v_opacities, float* absolute);
Status SPLAT_KERNEL(raster_accumulate)(const int64_t* sizes, double max_alpha, float* records, int32_t* lists,
                                    const float* pixel_weights, float* sums);
Status SPLAT_KERNEL(voxelize_forward)(const float* means, const float* quats, const float* scales, const float* values,
                                   int64_t count, int64_t channels, const double* geometry, const int64_t* window,
                                   float* volume, int threads);
Status SPLAT_KERNEL(voxelize_backward)(const float* means, const float* quats, const float* scales, const float* values,
                                    int64_t count, int64_t channels, const double* geometry, const int64_t* window,
                                    const float* gradient, float* grad_means, float* grad_quats, float* grad_scales,
                                    float* grad_values, int threads);
Status SPLAT_KERNEL(xray_forward)(const float* means, const float* quats, const float* scales, const float* values,
                               int64_t count, int64_t channels, const double* frames, const int64_t* numbers,
                               float* pictures, int threads);
Status SPLAT_KERNEL(xray_backward)(const float* means, const float* quats, const float* scales, const float* values,
                                int64_t count, int64_t channels, const double* frames, const int64_t* numbers,
                                const float* gradient, float* grad_means, float* grad_quats, float* grad_scales,
                                float* grad_values, int threads);
Status SPLAT_KERNEL(adam)(float* const* pointers, const double* constants, const int64_t* counts, int64_t arrays,
                       int threads);
Status SPLAT_KERNEL(adam_rows)(float* parameter, const float* gradient, float* first, float* second,
                            const double* constants, const uint8_t* visible, int64_t rows, int64_t width, int threads);
int64_t SPLAT_KERNEL(peak_fma)(int64_t iterations, int threads, float* sums);
Status SPLAT_KERNEL(peak_copy)(const float* from, float* to, int64_t count, int threads);
}

#define FOR_EACH_KERNEL(DO) DO(ssim2d) DO(ssim3d) DO(ms_ssim) DO(raster_project) DO(raster_project_backward) \
    DO(raster_records) DO(raster_composite) DO(raster_composite_backward) DO(raster_accumulate) DO(voxelize_forward) \
    DO(voxelize_backward) DO(xray_forward) DO(xray_backward) DO(adam) DO(adam_rows) DO(peak_fma) DO(peak_copy)

namespace {

struct Kernels {
#define SPLAT_POINTER(name) decltype(&SPLAT_KERNEL(name)) name;
  FOR_EACH_KERNEL(SPLAT_POINTER)
#undef SPLAT_POINTER
};
Kernels kernels;

using Values = std::vector<float>;

void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what.c_str());
  std::_Exit(1);
}

// `count` numbers in [low, high), the same for the same seed.
Values numbers(int64_t count, uint32_t seed, float low = 0.f, float high = 1.f) {
  Values values(static_cast<size_t>(count));
  uint32_t state = seed * 2654435761u + 12345u;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = low + (high - low) * static_cast<float>(state >> 8) / 16777216.f;
  }
  return values;
}

// The first place in `values` that is aligned as torch's tensors are, and as records (csrc/cpu/layout.h) must be.
float* at_cache_line(Values& values) {
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(values.data()) + 63) / 64 * 64);
}

void append(Values& all, const Values& more) { all.insert(all.end(), more.begin(), more.end()); }

// --- SSIM --------------------------------------------------------------------------------------------------------

struct Images {
  int64_t batch, channels, depth, height, width;
  Padding padding = kSame;
  int gradients = 3;         // 1: of the first image, 2: of the second, 3: of both
  bool interleaved = false, weighted = false, similarities = false;
  int64_t taps = 11;
  double eps = 0;
  bool alike = false;  // the second image is half the first: their structure is the same in part
};

Values second_image(const Values& first, bool alike) {
  Values second = numbers(static_cast<int64_t>(first.size()), 2);
  for (size_t i = 0; alike && i < second.size(); ++i) second[i] = (first[i] + second[i]) * 0.5f;
  return second;
}

View view_of(Values& values, const Images& s, int64_t depth, int64_t height, int64_t width) {
  const int64_t row = s.interleaved ? width * s.channels : width, slice = height * row;
  const int64_t channel = s.interleaved ? 1 : depth * slice, batch = depth * slice * (s.interleaved ? 1 : s.channels);
  return {reinterpret_cast<char*>(values.data()), kFloat32, batch, channel, slice, row};
}

// The map's view is addressed by positions in the image.
void move_to_border(View& view, const Images& s, int64_t radius) {
  const int64_t column = s.interleaved ? s.channels : 1, slices = s.depth > 1 ? view.slice : 0;
  view.data -= radius * (slices + view.row + column) * int64_t(sizeof(float));
}

Values run_ssim(const Images& s, int threads) {
  const int64_t count = s.batch * s.channels * s.depth * s.height * s.width, radius = s.taps / 2;
  Values x = numbers(count, 1), y = second_image(x, s.alike), weight = numbers(count, 3);
  Values by_x(x.size()), by_y(x.size());
  const int64_t lost = s.padding == kValid ? s.taps - 1 : 0, depth = s.depth > 1 ? s.depth - lost : 1;
  Values map(static_cast<size_t>(s.batch * s.channels * depth * (s.height - lost) * (s.width - lost)));
  const int64_t planes = s.batch * (s.interleaved ? 1 : s.channels);
  std::vector<double> window(static_cast<size_t>(s.taps)), coefficients(static_cast<size_t>(3 * planes));
  double total = 0;
  for (int64_t k = 0; k < s.taps; ++k) total += window[k] = std::exp(-double(k - radius) * double(k - radius) / 4.5);
  for (double& tap : window) tap /= total;
  for (int64_t k = 0; k < 2 * s.taps; ++k) window.push_back(window[static_cast<size_t>(k)]);  // of three axes
  for (int64_t plane = 0; plane < planes; ++plane) {
    coefficients[3 * plane] = 0.2;
    coefficients[3 * plane + 1] = s.similarities ? 0.3 : 0;
    coefficients[3 * plane + 2] = 0.1;
  }
  std::vector<double> sums(coefficients.size());
  Arguments a = {};
  a.img1 = view_of(x, s, s.depth, s.height, s.width), a.img2 = view_of(y, s, s.depth, s.height, s.width);
  if (s.weighted) a.weight = view_of(weight, s, s.depth, s.height, s.width), a.weighs_l1 = 1;
  if (s.gradients & 1) a.grad1 = view_of(by_x, s, s.depth, s.height, s.width);
  if (s.gradients & 2) a.grad2 = view_of(by_y, s, s.depth, s.height, s.width);
  a.map = view_of(map, s, depth, s.height - lost, s.width - lost);
  if (s.padding == kValid) move_to_border(a.map, s, radius);
  a.batch = s.batch, a.channels = s.channels, a.depth = s.depth, a.height = s.height, a.width = s.width;
  for (int64_t& taps : a.taps) taps = s.taps;
  a.interleaved = s.interleaved, a.padding = s.padding, a.threads = threads;
  a.similarities = s.similarities;
  a.window = window.data(), a.coefficients = coefficients.data(), a.sums = sums.data();
  a.c1 = 1e-4, a.c2 = 9e-4, a.data_range = 1, a.eps = s.eps;
  require((s.depth > 1 ? kernels.ssim3d(&a) : kernels.ssim2d(&a)) == 0, "ssim returns 0");
  Values all = by_x;
  append(all, by_y);
  append(all, map);
  for (double sum : sums) all.push_back(static_cast<float>(sum));
  return all;
}

// PyramidArguments of csrc/cpu/ms_ssim.cpp.
struct Pyramid {
  Arguments finest;
  int64_t volumes, scales;
  const double* weights;
  double *terms, *values;
  const double* upstream;
};

Values run_ms_ssim(Images s, int threads) {
  s.padding = kValid;
  const int64_t count = s.batch * s.channels * s.depth * s.height * s.width;
  const auto planes = static_cast<size_t>(s.batch * s.channels);
  Values x = numbers(count, 1), y = second_image(x, s.alike), by_x(x.size()), by_y(x.size());
  constexpr int64_t kScales = 3;
  const double window[] = {0.2, 0.6, 0.2, 0.2, 0.6, 0.2, 0.2, 0.6, 0.2}, weights[kScales] = {0.3, 0.2, 0.5};
  std::vector<double> terms(kScales * planes), values(planes);
  const std::vector<double> upstream(planes, 0.7);
  Pyramid call = {};
  Arguments& a = call.finest;
  a.img1 = view_of(x, s, s.depth, s.height, s.width), a.img2 = view_of(y, s, s.depth, s.height, s.width);
  a.batch = s.batch, a.channels = s.channels, a.depth = s.depth, a.height = s.height, a.width = s.width;
  for (int64_t& taps : a.taps) taps = 3;
  a.padding = kValid, a.threads = threads, a.window = window;
  a.c1 = 1e-4, a.c2 = 9e-4, a.data_range = 1;
  call.volumes = s.depth > 1, call.scales = kScales, call.weights = weights;
  call.terms = terms.data(), call.values = values.data();
  require(kernels.ms_ssim(&call) == 0, "ms_ssim");
  call.upstream = upstream.data();
  a.grad1 = view_of(by_x, s, s.depth, s.height, s.width), a.grad2 = view_of(by_y, s, s.depth, s.height, s.width);
  require(kernels.ms_ssim(&call) == 0, "the gradient of ms_ssim");
  append(by_x, by_y);
  for (double value : values) by_x.push_back(static_cast<float>(value));
  return by_x;
}

// --- the renderer ------------------------------------------------------------------------------------------------

struct Scene {
  int64_t count, cameras, width, height, tile;
  bool raw = false, antialiased = false;
};

constexpr int64_t kCoefficients = 16;

struct Projected {
  Values means2d, depths, conics, opacities, colors;
  std::vector<int32_t> radii;
};

// Fills `all` with images, gradients and the sums of pixels.
void composite(const Scene& s, Projected& p, int threads, Values& all, const Values& v_image, const Values& v_alpha,
               Projected& gradients) {
  const int64_t instances = s.cameras * s.count, pixels = s.cameras * s.width * s.height;
  Values room(static_cast<size_t>(16 * instances + 16)), image(static_cast<size_t>(3 * pixels));
  float* const records = at_cache_line(room);
  Values alphas(static_cast<size_t>(pixels)), background = numbers(3 * s.cameras, 20);
  std::vector<int32_t> boxes(static_cast<size_t>(2 * instances));
  int64_t totals[2];
  const int64_t first[] = {s.cameras, s.count, s.width, s.height, s.tile, 3, threads};
  require(kernels.raster_records(first, p.means2d.data(), p.conics.data(), p.opacities.data(), p.colors.data(),
                                       p.radii.data(), records, boxes.data(), totals) == 0, "records");
  std::vector<int32_t> lists(static_cast<size_t>(totals[1]));
  const int64_t sizes[] = {s.cameras, s.count, s.width, s.height, s.tile, 3, totals[0], threads};
  require(kernels.raster_composite(sizes, 0.99, records, lists.data(), boxes.data(), p.depths.data(),
                                         background.data(), image.data(), alphas.data()) == 0, "composite");
  Values absolute(static_cast<size_t>(2 * instances)), sums(static_cast<size_t>(4 * instances));
  require(kernels.raster_composite_backward(
              sizes, 0.99, records, lists.data(), p.conics.data(), p.opacities.data(), image.data(),
              alphas.data(), v_image.data(), v_alpha.data(), gradients.means2d.data(), gradients.conics.data(),
              gradients.colors.data(), gradients.opacities.data(), absolute.data()) == 0, "composite_backward");
  const Values pixel_weights = numbers(pixels, 21);
  require(kernels.raster_accumulate(sizes, 0.99, records, lists.data(), pixel_weights.data(),
                                          sums.data()) == 0, "accumulate");
  for (const Values* values : {&image, &alphas, &absolute, &sums}) append(all, *values);
}

Values run_rasterizer(const Scene& s, int threads) {
  const int64_t instances = s.cameras * s.count, pixels = s.cameras * s.width * s.height;
  const auto n = static_cast<size_t>(instances);
  Values means = numbers(3 * s.count, 10, -0.5f, 0.5f), quats = numbers(4 * s.count, 11, -1.f, 1.f);
  Values scales = numbers(3 * s.count, 12, s.raw ? -4.f : 0.02f, s.raw ? -2.f : 0.15f);
  Values opacities = numbers(s.count, 13, s.raw ? -2.f : 0.f, s.raw ? 2.f : 1.f);
  Values sh = numbers(3 * kCoefficients * s.count, 14, -0.3f, 0.3f), viewmats, Ks;
  const auto side = static_cast<float>(s.width);
  for (int64_t c = 0; c < s.cameras; ++c) {
    append(viewmats, {1, 0, 0, 0.1f * static_cast<float>(c), 0, 1, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1});
    append(Ks, {side, 0, side / 2, 0, side, side / 2, 0, 0, 1});
  }
  const float* inputs[] = {means.data(), quats.data(), scales.data(), opacities.data(), sh.data(), nullptr,
                           viewmats.data(), Ks.data()};
  const int64_t sizes[] = {s.count, s.cameras, kCoefficients, 0, 3, s.width, s.height, s.antialiased, s.raw, threads};
  const double planes[] = {0.01, 1e10, 0, 0.3};
  Projected p{Values(2 * n), Values(n), Values(3 * n), Values(n), Values(3 * n), std::vector<int32_t>(2 * n)};
  require(kernels.raster_project(sizes, planes, inputs, p.means2d.data(), p.depths.data(), p.conics.data(),
                                       p.opacities.data(), p.colors.data(), p.radii.data()) == 0, "project");
  Values all;
  Projected v{Values(2 * n), numbers(instances, 17), Values(3 * n), Values(n), Values(3 * n), {}};
  composite(s, p, threads, all, numbers(3 * pixels, 15, -1.f, 1.f), numbers(pixels, 16), v);
  const float* v_outputs[] = {v.means2d.data(), v.depths.data(), v.conics.data(), v.opacities.data(), v.colors.data()};
  Values by_mean(means.size()), by_quat(quats.size()), by_scale(scales.size()), by_opacity(opacities.size());
  Values by_sh(sh.size()), poses(static_cast<size_t>((s.count + 255) / 256 * s.cameras * 15));
  float* v_inputs[] = {by_mean.data(), by_quat.data(), by_scale.data(), by_opacity.data(), by_sh.data(), nullptr};
  require(kernels.raster_project_backward(sizes, planes, inputs, p.radii.data(), p.colors.data(), v_outputs,
                                                v_inputs, poses.data()) == 0, "project_backward");
  for (const Values* values : {&by_mean, &by_quat, &by_scale, &by_opacity, &by_sh, &poses}) append(all, *values);
  return all;
}

// --- the voxeliser, the projector and Adam --------------------------------------------------------------------------------------

Values run_voxelizer(int64_t count, int64_t channels, int threads) {
  const int64_t size[] = {35, 13, 21}, window[] = {-1, 2, 0, size[0], size[1], size[2]};  // x, y, z
  const double geometry[] = {1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0};
  const int64_t voxels = channels * size[0] * size[1] * size[2];
  const Values means = numbers(3 * count, 30, -2.f, 30.f), quats = numbers(4 * count, 31, -1.f, 1.f);
  const Values scales = numbers(3 * count, 32, 0.3f, 6.f), values = numbers(channels * count, 33, -1.f, 1.f);
  Values volume(static_cast<size_t>(voxels)), by_mean(means.size()), by_quat(quats.size()), by_scale(scales.size());
  Values by_value(values.size());
  const Values gradient = numbers(voxels, 34, -1.f, 1.f);
  require(kernels.voxelize_forward(means.data(), quats.data(), scales.data(), values.data(), count, channels,
                                         geometry, window, volume.data(), threads) == 0, "voxelize_forward");
  require(kernels.voxelize_backward(means.data(), quats.data(), scales.data(), values.data(), count, channels,
                                          geometry, window, gradient.data(), by_mean.data(), by_quat.data(),
                                          by_scale.data(), by_value.data(), threads) == 0, "voxelize_backward");
  for (const Values* more : {&by_mean, &by_quat, &by_scale, &by_value}) append(volume, *more);
  return volume;
}

Values run_projector(int64_t count, int64_t channels, int64_t rows, int64_t columns, bool cone, int threads) {
  const int64_t views = 2, stride = columns + kXraySlack, sizes[] = {views, rows, columns, stride, cone};
  // Origin, column step, row step, and the vector to the first pixel or the direction of all rays.
  const double cones[] = {0, 0, -20, 1, 0, 0, 0, 1, 0, -5, -4, 35, -20, 1, 0, 0, 1, 0, 0, 0, 1, 35, -5, -4};
  const double beams[] = {-5, -4, -20, 1, 0, 0, 0, 1, 0, 0, 0, 1, -20, -5, -4, 0, 1, 0, 0, 0, 1, 1, 0, 0};
  const double* frames = cone ? cones : beams;
  const Values means = numbers(3 * count, 60, -3.f, 3.f), quats = numbers(4 * count, 61, -1.f, 1.f);
  const Values scales = numbers(3 * count, 62, 0.3f, 1.2f), values = numbers(channels * count, 63, -1.f, 1.f);
  const Values upstream = numbers(views * channels * rows * columns, 64, -1.f, 1.f);
  Values by_mean(means.size()), by_quat(quats.size()), by_scale(scales.size()), by_value(values.size());
  Values padded(static_cast<size_t>(views * channels * rows * stride)), gradient(padded.size()), pictures;
  require(kernels.xray_forward(means.data(), quats.data(), scales.data(), values.data(), count, channels, frames, sizes,
                               padded.data(), threads) == 0, "xray_forward");
  for (size_t row = 0, wide = static_cast<size_t>(columns); row < upstream.size() / wide; ++row) {
    const auto from = padded.begin() + static_cast<int64_t>(row) * stride;
    pictures.insert(pictures.end(), from, from + columns);
    for (size_t k = 0; k < wide; ++k) gradient[row * static_cast<size_t>(stride) + k] = upstream[row * wide + k];
  }
  require(kernels.xray_backward(means.data(), quats.data(), scales.data(), values.data(), count, channels, frames,
                                sizes, gradient.data(), by_mean.data(), by_quat.data(), by_scale.data(),
                                by_value.data(), threads) == 0, "xray_backward");
  for (const Values* more : {&by_mean, &by_quat, &by_scale, &by_value}) append(pictures, *more);
  return pictures;
}

Values run_adam(int threads) {
  const int64_t counts[] = {1, 40000, 17, 16384};
  const double one[] = {0.9, 0.999, 1e-8, 0.1, 1.0};
  std::vector<Values> arrays;
  std::vector<float*> pointers;
  std::vector<double> constants;
  for (int64_t count : counts) {
    for (uint32_t k = 0; k < 4; ++k) arrays.push_back(numbers(count, 40 + k));
    constants.insert(constants.end(), one, one + 5);
  }
  for (Values& values : arrays) pointers.push_back(values.data());
  require(kernels.adam(pointers.data(), constants.data(), counts, 4, threads) == 0, "adam");
  constexpr int64_t kRows = 3000, kWidth = 7;
  std::vector<uint8_t> visible(kRows);
  for (size_t i = 0; i < visible.size(); ++i) visible[i] = i % 5 != 0;
  Values p = numbers(kRows * kWidth, 50), g = numbers(kRows * kWidth, 51), m = g, v = g;
  require(kernels.adam_rows(p.data(), g.data(), m.data(), v.data(), one, visible.data(), kRows, kWidth,
                                  threads) == 0, "adam_rows");
  Values copy(p.size()), sums(static_cast<size_t>(threads));
  require(kernels.peak_copy(p.data(), copy.data(), int64_t(p.size()), threads) == 0, "peak_copy");
  require(kernels.peak_fma(3, threads, sums.data()) > 0, "peak_fma");
  for (const Values& values : arrays) append(p, values);
  for (const Values* values : {&m, &v, &copy}) append(p, *values);
  return p;
}

}  // namespace
