// The C ABI of the CUDA kernels: fills in a problem, cuts it into blocks, starts kernels. Host code only, compiled by
// the C++ compiler into the library and, with another launch(), into the emulation.
//
// Nothing here allocates, synchronises or reads device memory; stream, device and every buffer come from the caller.

#include "launch.h"

#include <cmath>
#include <initializer_list>

#include "../cpu/export.h"

namespace {

constexpr Int64 kMostBlocks = 2147483647;  // the x axis of a CUDA grid

// What the launcher must know of a kernel: outputs a block covers, steps before the first output, blocks an SM holds.
struct Shape {
  int columns, rows, warm_up, resident;
};

Shape shape_of(SsimKernel kernel) {
  switch (kernel) {
    case kForward2dWide:
    case kAdjoint2dWide: return {128, 1, 14, 3};
    case kForward2d:
    case kAdjoint2d: return {256, 1, 10, 3};
    case kFused2d:
    case kFused2dStrided:
    case kFused2dWeighted:
    case kFused2dWeightedStrided: return {246, 1, 21, 2};
    case kValue3d:
    case kPartials3d:
    case kWeighted3d:
    case kBackward3d: return {32, 16, 10, 2};
    case kForward3d:
    case kAdjoint3d: return {32, 16, 10, 1};
    case kForward3dWide:
    case kAdjoint3dWide: return {32, 8, 14, 1};
    default: return {256, 1, 10, 4};
  }
}

Int64 divide_up(Int64 a, Int64 b) { return (a + b - 1) / b; }

// Float32 with neighbouring columns side by side, rows less than 2^31 apart: what the plain kernels read and write.
bool plain(const SsimTensor& tensor) {
  const Int64 row = tensor.stride[3];
  return tensor.type == kFloat32 && tensor.stride[4] == 1 && row == static_cast<int>(row);
}

// Whether a weight of the map lies like an adjoint map: what the plain kernels read.
bool like_a_map(const SsimTensor& weight, const SsimProblem& p) {
  const Int64 plane = p.map_slice * p.map_size[0];
  const Int64 stride[5] = {plane * p.size[1], plane, p.map_slice, p.map_size[2], 1};
  const int size[5] = {p.size[0], p.size[1], p.map_size[0], p.map_size[1], p.map_size[2]};
  bool alike = weight.type == kFloat32;
  for (int axis = 0; axis < 5; ++axis) alike = alike && (size[axis] == 1 || weight.stride[axis] == stride[axis]);
  return alike;
}

bool plain_slices(const SsimProblem& p) {
  const Int64 row = p.image[0].stride[3], limit = 1ll << 31;
  return row == p.image[1].stride[3] && row >= 0 && row * p.size[3] + p.size[4] < limit &&
         static_cast<Int64>(p.size[3]) * p.size[4] < limit;
}

SsimKernel choose(const SsimProblem& p, const SsimOptions& o, SsimOperation operation) {
  const bool wide = o.window_size > 11, volume = o.spatial_dims == 3;
  bool simple = plain(p.image[0]) && plain(p.image[1]) && !wide && !o.both && (!volume || plain_slices(p));
  if (operation == kOperationFused) {
    simple = simple && plain(p.grad[0]);
    if (p.weight.data) return simple ? kFused2dWeighted : kFused2dWeightedStrided;
    return simple ? kFused2d : kFused2dStrided;
  }
  if (operation == kOperationBackward) {
    simple = simple && plain(p.grad[0]) && !p.grad[1].data && !p.l1_weight.data;
    if (volume) return simple ? kBackward3d : wide ? kAdjoint3dWide : kAdjoint3d;
    return wide ? kAdjoint2dWide : kAdjoint2d;
  }
  simple = simple && !o.contrast && !p.map.data && !p.plane_weight && (!p.weight.data || like_a_map(p.weight, p));
  if (simple && !p.partials && !p.weight.data) return volume ? kValue3d : kValue2d;
  if (simple && p.partials && volume) return p.weight.data ? kWeighted3d : kPartials3d;
  if (volume) return wide ? kForward3dWide : kForward3d;
  return wide ? kForward2dWide : kForward2d;
}

// Cuts `length` steps of the marching axis for `columns` independent walks: the number of segments whose blocks finish
// first when every one of `places` places takes blocks in turn, each costing its steps and the warm-up.
int segment_length(int length, Int64 columns, int warm_up, Int64 places) {
  const Int64 most = divide_up(8 * places, columns) < length ? divide_up(8 * places, columns) : length;
  Int64 best_cost = 0;
  int best = length;
  for (Int64 n = 1; n <= most; ++n) {
    const Int64 segment = divide_up(length, n), cost = divide_up(columns * n, places) * (segment + warm_up);
    if (n == 1 || cost < best_cost) {
      best_cost = cost;
      best = static_cast<int>(segment);
    }
  }
  return best;
}

// Window weights from the edge to the centre in double precision, padded with zeros to the kernel's taps.
void fill_taps(SsimProblem& p, const SsimOptions& o) {
  const int kernel_radius = o.window_size > 11 ? 7 : 5, radius = o.window_size / 2;
  double weight[kMostTaps / 2 + 1], sum = 0.;
  for (int k = 0; k <= radius; ++k) {
    weight[k] = std::exp(-0.5 * k * k / (o.sigma * o.sigma));
    sum += k == 0 ? weight[k] : 2. * weight[k];
  }
  for (int k = 0; k <= kMostTaps / 2; ++k) {
    const int distance = kernel_radius - k;
    p.taps[k] = distance >= 0 && distance <= radius ? static_cast<float>(weight[distance] / sum) : 0.f;
  }
}

bool valid_options(const SsimProblem& p, const SsimOptions& o) {
  if (o.spatial_dims != 2 && o.spatial_dims != 3) return false;
  if (o.window_size < 3 || o.window_size > kMostTaps || o.window_size % 2 == 0) return false;
  if (!(o.sigma > 0.) || o.multiprocessors < 1 || (o.spatial_dims == 2 && p.size[2] != 1)) return false;
  for (int axis = 0; axis < 5; ++axis) {
    if (p.size[axis] < 1 || p.size[axis] > kMostBlocks - 4096) return false;
  }
  for (int axis = 5 - o.spatial_dims; axis < 5; ++axis) {
    if (o.valid && p.size[axis] < o.window_size) return false;
  }
  return true;
}

// The product, or one more than a grid has where it is larger.
Int64 block_count(std::initializer_list<int> factors) {
  const Int64 most = kMostBlocks + 1ll;
  Int64 blocks = 1;
  for (int factor : factors) blocks = factor > most / blocks ? most : blocks * factor;
  return blocks;
}

Int64 block_count(const SsimProblem& p) {
  return block_count({p.strips, p.tiles, p.segments, p.size[0], p.size[1]});
}

// Cuts the slices, with `radius` more on both sides, into tiles that are no wider than needed. Returns their number in
// the whole batch.
Int64 cut_into_tiles(SsimPadding& a, const int (&radius)[3]) {
  const int depth = a.size[2] + 2 * radius[0], height = a.size[3] + 2 * radius[1], width = a.size[4] + 2 * radius[2];
  a.lane_bits = 5;
  while (1 << a.lane_bits < width && 1 << a.lane_bits < kTileThreads) ++a.lane_bits;
  a.strips = static_cast<int>(divide_up(width, 1 << a.lane_bits));
  a.tiles = static_cast<int>(divide_up(height, (kTileThreads >> a.lane_bits) * kTileRows));
  return block_count({a.strips, a.tiles, depth, a.size[1], a.size[0]});
}

}  // namespace

extern "C" {

// Bytes of the structures, for Python to compare with its own: problem, options, padding, reduction, scaling.
SPLAT_EXPORT void splat_ssim_cuda_layout(int* bytes) {
  bytes[0] = sizeof(SsimProblem);
  bytes[1] = sizeof(SsimOptions);
  bytes[2] = sizeof(SsimPadding);
  bytes[3] = sizeof(SsimReduction);
  bytes[4] = sizeof(SsimScaling);
}

// Name of kernel `id`, or nullptr past the last: what a module must contain, in the order of its table.
SPLAT_EXPORT const char* splat_ssim_cuda_kernel_name(int id) {
#define SPLAT_SSIM_NAME(id, name, threads) #name,
  static const char* const names[] = {SPLAT_SSIM_KERNELS(SPLAT_SSIM_NAME)};
#undef SPLAT_SSIM_NAME
  return id >= 0 && id < kKernelCount ? names[id] : nullptr;
}

// Fills in everything of `p` that follows from tensors, sizes and options, and chooses the kernel. Puts the number of
// blocks into *blocks: block_sums takes kSumKinds times as many floats. Partials take 3 maps, 4 where o.both is set or
// the kernel is not a plain one: 4 always suffice.
SPLAT_EXPORT int splat_ssim_cuda_prepare(SsimProblem* p, const SsimOptions* o, int operation, Int64* blocks) {
  if (!valid_options(*p, *o)) return kBadArgument;
  if (operation == kOperationFused && (o->spatial_dims == 3 || o->window_size > 11)) return kBadArgument;
  const int radius = o->window_size / 2;
  for (int axis = 0; axis < 3; ++axis) {
    const bool trimmed = o->valid && (axis > 0 || o->spatial_dims == 3);
    p->lead[axis] = trimmed ? radius : 0;
    p->map_size[axis] = p->size[axis + 2] - 2 * p->lead[axis];
  }
  p->map_slice = static_cast<Int64>(p->map_size[1]) * p->map_size[2];
  p->partial_stride = p->map_slice * p->map_size[0] * p->size[0] * p->size[1];
  fill_taps(*p, *o);
  p->c1 = static_cast<float>(o->k1 * o->data_range * (o->k1 * o->data_range));
  p->c2 = static_cast<float>(o->k2 * o->data_range * (o->k2 * o->data_range));
  p->apart = static_cast<float>(0.05 * o->data_range);
  p->kernel = choose(*p, *o, static_cast<SsimOperation>(operation));
  const Shape shape = shape_of(static_cast<SsimKernel>(p->kernel));
  const int* outputs = operation == kOperationForward ? p->map_size : p->size + 2;
  const Int64 planes = static_cast<Int64>(p->size[0]) * p->size[1], places = o->multiprocessors * shape.resident;
  p->strips = static_cast<int>(divide_up(outputs[2], shape.columns));
  p->tiles = o->spatial_dims == 3 ? static_cast<int>(divide_up(outputs[1], shape.rows)) : 1;
  const int length = o->spatial_dims == 3 ? outputs[0] : outputs[1];
  p->segment = segment_length(length, planes * p->strips * p->tiles, shape.warm_up, places);
  p->segments = static_cast<int>(divide_up(length, p->segment));
  *blocks = block_count(*p);
  return *blocks <= kMostBlocks ? kOk : kBadArgument;
}

// Starts the kernel splat_ssim_cuda_prepare chose.
SPLAT_EXPORT int splat_ssim_cuda_ssim(const void* module, const SsimProblem* p, void* stream) {
  if (p->kernel < 0 || p->kernel >= kPad) return kBadArgument;
  return launch(module, static_cast<SsimKernel>(p->kernel), block_count(*p), p, stream);
}

// Fills a->target from a->source[0].
SPLAT_EXPORT int splat_ssim_cuda_pad(const void* module, const SsimPadding* a, void* stream) {
  for (int axis = 0; axis < 3; ++axis) {
    if (a->reflect && a->radius[axis] >= a->size[axis + 2]) return kBadArgument;
  }
  SsimPadding tiled = *a;
  const Int64 tiles = cut_into_tiles(tiled, tiled.radius);
  return launch(module, kPad, tiles, &tiled, stream);
}

// Fills a->grad from a->target, the gradient of the padded image.
SPLAT_EXPORT int splat_ssim_cuda_fold(const void* module, const SsimPadding* a, void* stream) {
  SsimPadding tiled = *a;
  const Int64 tiles = cut_into_tiles(tiled, {0, 0, 0});
  return launch(module, kFold, tiles, &tiled, stream);
}

// Fills a->block_sums, a->blocks for each image, with sums of |source[0] - source[1]|.
SPLAT_EXPORT int splat_ssim_cuda_l1(const void* module, const SsimPadding* a, void* stream) {
  SsimPadding tiled = *a;
  if (cut_into_tiles(tiled, {0, 0, 0}) > kMostBlocks) return kBadArgument;
  return launch(module, kL1, block_count({a->blocks, a->size[0]}), &tiled, stream);
}

// Fills a->results.
SPLAT_EXPORT int splat_ssim_cuda_reduce(const void* module, const SsimReduction* a, void* stream) {
  return launch(module, kReduce, a->groups, a, stream);
}

// Multiplies a->gradient by a->upstream.
SPLAT_EXPORT int splat_ssim_cuda_scale(const void* module, const SsimScaling* a, void* stream) {
  if (a->blocks < 1) return kBadArgument;
  return launch(module, kScale, static_cast<Int64>(a->blocks) * a->groups, a, stream);
}
}
