// The C ABI of the CUDA kernels: it fills in a problem, cuts it into blocks and starts kernels. This is host code. The
// C++ compiler compiles it into the library and, with another start(), into the emulation.
//
// Nothing here allocates, synchronises or reads device memory. Stream, device and every buffer come from the caller.

#include "launch.h"

#include <atomic>
#include <cmath>
#include <initializer_list>

#include "../cpu/export.h"

namespace {

constexpr Int64 kMostBlocks = 2147483647;  // limit of the x axis of a CUDA grid
constexpr int kFusedWidth = 256;           // columns that a block of a fused kernel filters
constexpr int kDefaultWindow = 11;         // has kernels for plain data that other windows do not have

// The first axis of a window that the images have: 0 for volumes, 1 for images.
int first_axis(const SsimOptions& o) { return 3 - o.spatial_dims; }

// Whether the window is the same along all axes. Such windows have kernels of their own.
bool is_cubic(const SsimOptions& o) {
  bool alike = true;
  for (int axis = first_axis(o); axis < 3; ++axis) {
    alike = alike && o.window_size[axis] == o.window_size[2] && o.sigma[axis] == o.sigma[2];
  }
  return alike;
}

// The number of taps of the kernels that run a window. If its axes differ, these are the narrowest shared kernels that
// are wide enough.
int kernel_taps(const SsimOptions& o) {
  if (is_cubic(o)) return o.window_size[2];
  int widest = 0;
  for (int axis = first_axis(o); axis < 3; ++axis) widest = o.window_size[axis] > widest ? o.window_size[axis] : widest;
  return widest <= kDefaultWindow ? kDefaultWindow : kMaxTaps;
}

// What the launcher must know about a kernel: the columns and rows of outputs that a block covers, the steps before the
// first output, and the number of blocks that an SM holds.
struct Shape {
  int columns, rows, warm_up, resident;
};

// The shape of a kernel that `choose` returns, for a window of `taps` taps.
Shape shape_of(SsimKernel kernel, int taps) {
  const int halo = taps - 1, outputs = taps > kDefaultWindow ? 1 : 2;  // outputs of a thread
  switch (kernel) {
    case kForward2d:
    case kAdjoint2d: return {128 * outputs, 1, halo, 3};
    case kFused2d:
    case kFused2dRgba:
    case kFused2dStrided:
    case kFused2dWeighted:
    case kFused2dWeightedStrided: return {kFusedWidth - halo, 1, 2 * taps - 1, 2};
    case kFused2dLone: return {kFusedWidth, 1, 2 * taps - 1, 2};
    case kValue3d:
    case kPartials3d:
    case kWeighted3d:
    case kBackward3d: return {32, 16, halo, 2};
    case kForward3d:
    case kAdjoint3d: return {32, 8 * outputs, halo, 1};
    default: return {256, 1, halo, 4};
  }
}

Int64 divide_up(Int64 a, Int64 b) { return (a + b - 1) / b; }

bool fits_int(Int64 stride) { return stride == static_cast<int>(stride); }

// Whether the plain kernels can read and write a tensor: float32, columns contiguous, rows less than 2^31 elements
// apart.
bool plain(const SsimTensor& tensor) {
  return tensor.type == kFloat32 && tensor.stride[4] == 1 && fits_int(tensor.stride[3]);
}

// Whether a weight of the map has the layout of an adjoint map, as the plain kernels require.
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

// Whether one kernel can make both the sums and the gradient. There is one for images with a window of at most 11 taps.
// It makes the gradient of one image, without weights of planes and without eps, and its steps along the weights have
// 32 bits.
bool has_fused(const SsimProblem& p, const SsimOptions& o) {
  if (o.spatial_dims == 3 || o.window_size[2] > kDefaultWindow || o.eps != 0. || o.both || p.plane_weight) return false;
  for (const SsimTensor& weight : {p.weight, p.l1_weight}) {
    if (!fits_int(weight.stride[3]) || !fits_int(weight.stride[4])) return false;
  }
  return true;
}

// Chooses one of the kernels of the default window. of_window and of_axes then find the corresponding kernel of the
// actual window.
SsimKernel choose(const SsimProblem& p, const SsimOptions& o, SsimOperation operation) {
  const bool volume = o.spatial_dims == 3;
  bool simple = plain(p.image[0]) && plain(p.image[1]) && kernel_taps(o) <= kDefaultWindow && is_cubic(o) && !o.both;
  if (volume) simple = simple && plain_slices(p);
  if (operation == kOperationFused) {
    if (p.background) return kFused2dRgba;
    simple = simple && plain(p.grad[0]);
    if (p.weight.data) return simple ? kFused2dWeighted : kFused2dWeightedStrided;
    if (!simple) return kFused2dStrided;
    const int window = o.window_size[2];
    const bool two_strips = p.size[4] > kFusedWidth - (window - 1);  // the second would have few columns
    return two_strips && p.size[4] <= kFusedWidth && window == kDefaultWindow ? kFused2dLone : kFused2d;
  }
  if (operation == kOperationBackward) {
    simple = simple && plain(p.grad[0]) && !p.grad[1].data && !p.l1_weight.data;
    return !volume ? kAdjoint2d : simple ? kBackward3d : kAdjoint3d;
  }
  simple = simple && !o.similarities && o.eps == 0. && !p.map.data && !p.plane_weight;
  if (simple && !o.gradient && !p.weight.data) return volume ? kValue3d : kValue2d;
  if (simple && o.gradient && volume && !p.weight.data) return kPartials3d;
  if (simple && o.gradient && volume && like_a_map(p.weight, p)) return kWeighted3d;
  return volume ? kForward3d : kForward2d;
}

// The number of adjoint maps that a forward kernel hands to a backward kernel. The two must agree: three if both are
// plain, else the four that serve any tensor.
int partial_maps(const SsimProblem& p, const SsimOptions& o) {
  const SsimKernel forward = choose(p, o, kOperationForward), backward = choose(p, o, kOperationBackward);
  const bool three = (forward == kPartials3d || forward == kWeighted3d) && backward == kBackward3d;
  return three ? 3 : 4;
}

// The kernel of `taps` taps for windows that differ along the axes. Only kernels for any tensor have one.
SsimKernel of_axes(SsimKernel kernel, int taps) {
  if (kernel == kForward3d) return taps == kMaxTaps ? kForward3dAxes_15 : kForward3dAxes_11;
  if (kernel == kAdjoint3d) return taps == kMaxTaps ? kAdjoint3dAxes_15 : kAdjoint3dAxes_11;
  return kKernelCount;
}

// The kernel for `window` that corresponds to `kernel` of the default window. Narrower windows have one kernel where
// the default window has several. Wider windows have only the kernels for any tensor.
SsimKernel of_window(SsimKernel kernel, int window) {
  struct Kernels {
    SsimKernel forward2d, adjoint2d, forward3d, adjoint3d, value2d, fused2d, fused2d_strided, plain3d, backward3d;
  };
#define SPLAT_WIDE(taps) kForward2d_##taps, kAdjoint2d_##taps, kForward3d_##taps, kAdjoint3d_##taps
#define SPLAT_NARROW(taps) \
  SPLAT_WIDE(taps), kValue2d_##taps, kFused2d_##taps, kFused2dStrided_##taps, kPlain3d_##taps, kBackward3d_##taps
  static const Kernels windows[] = {
      {SPLAT_NARROW(3)},
      {SPLAT_NARROW(5)},
      {SPLAT_NARROW(7)},
      {SPLAT_NARROW(9)},
      {},
      {SPLAT_WIDE(13), kKernelCount, kKernelCount, kKernelCount, kKernelCount, kKernelCount},
      {SPLAT_WIDE(15), kKernelCount, kKernelCount, kKernelCount, kKernelCount, kKernelCount},
  };
#undef SPLAT_NARROW
#undef SPLAT_WIDE
  if (window == kDefaultWindow) return kernel;
  const Kernels& own = windows[(window - 3) / 2];
  switch (kernel) {
    case kForward2d: return own.forward2d;
    case kAdjoint2d: return own.adjoint2d;
    case kForward3d: return own.forward3d;
    case kAdjoint3d: return own.adjoint3d;
    case kValue2d: return own.value2d;
    case kFused2d:
    case kFused2dLone:
    case kFused2dWeighted: return own.fused2d;
    case kFused2dStrided:
    case kFused2dWeightedStrided: return own.fused2d_strided;
    case kValue3d:
    case kPartials3d:
    case kWeighted3d: return own.plain3d;
    case kBackward3d: return own.backward3d;
    default: return kKernelCount;
  }
}

// The length of the segments into which `length` steps of the marching axis are cut. There are `columns` independent
// walks, and `places` blocks run at once. Among all numbers of segments it takes the one that finishes first, where a
// block costs its steps and its warm-up.
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

// The weights of one axis from the edge to the centre, computed in double precision.
void fill_taps(float (&taps)[kMaxTaps / 2 + 1], int window, double sigma) {
  const int radius = window / 2;
  double weight[kMaxTaps / 2 + 1], sum = 0.;
  for (int k = 0; k <= radius; ++k) {
    weight[k] = std::exp(-0.5 * k * k / (sigma * sigma));
    sum += k == 0 ? weight[k] : 2. * weight[k];
  }
  for (int k = 0; k <= radius; ++k) taps[k] = static_cast<float>(weight[radius - k] / sum);
  if (radius == 0) return;
  double rest = 1. - taps[radius];
  for (int k = 0; k < radius - 1; ++k) rest -= 2. * taps[k];
  taps[radius - 1] = static_cast<float>(rest / 2.);
}

void fill_taps(SsimProblem& p, const SsimOptions& o) {
  if (is_cubic(o)) return fill_taps(p.taps, o.window_size[2], o.sigma[2]);
  for (int axis = 0; axis < 3; ++axis) {
    float taps[kMaxTaps / 2 + 1];
    const int radius = o.window_size[axis] / 2;
    fill_taps(taps, o.window_size[axis], o.sigma[axis]);
    for (int k = 0; k <= radius; ++k) {
      if (axis > 0) p.plane_taps[axis - 1][k] = taps[radius - k];
      else p.slice_taps[k] = p.slice_taps[2 * radius - k] = taps[k];
    }
  }
}

// Sets the strides of axes of length 1. Such a stride means nothing, and torch leaves any value there. But kernels do
// step by it, to places that they then do not read, and the choice of a kernel looks at strides.
void settle_strides(SsimTensor& tensor, const int (&size)[5]) {
  for (int axis = 0; axis < 5; ++axis) {
    if (size[axis] == 1) tensor.stride[axis] = axis == 4 ? 1 : 0;
  }
}

void settle_strides(SsimProblem& p) {
  const int map_size[5] = {p.size[0], p.size[1], p.map_size[0], p.map_size[1], p.map_size[2]};
  for (SsimTensor* tensor : {&p.image[0], &p.image[1], &p.grad[0], &p.grad[1], &p.l1_weight}) {
    settle_strides(*tensor, p.size);
  }
  for (SsimTensor* tensor : {&p.map, &p.weight}) settle_strides(*tensor, map_size);
}

// Only one kernel takes a background.
bool valid_background(const SsimProblem& p, const SsimOptions& o, int operation) {
  if ((p.image[1].type == kRgba) != (p.background != nullptr)) return false;
  if (!p.background) return true;
  return operation == kOperationFused && has_fused(p, o) && o.window_size[2] == kDefaultWindow && p.size[1] == 3;
}

bool valid_options(const SsimProblem& p, const SsimOptions& o) {
  if (o.spatial_dims != 2 && o.spatial_dims != 3) return false;
  if (!(o.eps >= 0.) || o.multiprocessors < 1) return false;
  const bool cubic = is_cubic(o);
  if (o.spatial_dims == 2 && !cubic) return false;
  for (int axis = first_axis(o); axis < 3; ++axis) {
    const int window = o.window_size[axis];
    if (window < (cubic ? 3 : 1) || window > kMaxTaps || window % 2 == 0 || !(o.sigma[axis] > 0.)) return false;
  }
  if (o.spatial_dims == 2 && p.size[2] != 1) return false;
  for (int axis = 0; axis < 5; ++axis) {
    if (p.size[axis] < 1 || p.size[axis] > kMostBlocks - 4096) return false;
  }
  for (int axis = 5 - o.spatial_dims; axis < 5; ++axis) {
    if (o.valid && p.size[axis] < o.window_size[axis - 2]) return false;
  }
  return true;
}

// The product of the factors. If it exceeds the limit of a grid, the result is that limit plus 1.
Int64 block_count(std::initializer_list<int> factors) {
  const Int64 most = kMostBlocks + 1ll;
  Int64 blocks = 1;
  for (int factor : factors) blocks = factor > most / blocks ? most : blocks * factor;
  return blocks;
}

Int64 block_count(const SsimProblem& p) { return block_count({p.strips, p.tiles, p.segments, p.size[0], p.size[1]}); }

// Cuts the slices, with `radius` more on both sides, into tiles that are no wider than needed. Returns the number of
// tiles in the whole batch.
Int64 cut_into_tiles(SsimPadding& a, const int (&radius)[3]) {
  const int depth = a.size[2] + 2 * radius[0], height = a.size[3] + 2 * radius[1], width = a.size[4] + 2 * radius[2];
  for (SsimTensor* tensor : {&a.source[0], &a.source[1], &a.grad, &a.l1_weight}) settle_strides(*tensor, a.size);
  a.lane_bits = 5;
  while (1 << a.lane_bits < width && 1 << a.lane_bits < kTileThreads) ++a.lane_bits;
  a.strips = static_cast<int>(divide_up(width, 1 << a.lane_bits));
  a.tiles = static_cast<int>(divide_up(height, (kTileThreads >> a.lane_bits) * kTileRows));
  return block_count({a.strips, a.tiles, depth, a.size[1], a.size[0]});
}

std::atomic<Int64> starts[kKernelCount];

}  // namespace

Status launch(const void* module, SsimKernel kernel, Int64 blocks, const void* argument, void* stream) {
  const Status status = start(module, kernel, blocks, argument, stream);
  if (status == kOk) starts[kernel].fetch_add(1, std::memory_order_relaxed);
  return status;
}

extern "C" {

// How often kernel `id` was started in this process, on any device.
SPLAT_EXPORT Int64 splat_ssim_cuda_starts(int id) { return id >= 0 && id < kKernelCount ? starts[id].load() : 0; }

// Sizes in bytes of the structures, which Python compares with its own: problem, options, padding, reduction, scaling.
SPLAT_EXPORT void splat_ssim_cuda_layout(int* bytes) {
  bytes[0] = sizeof(SsimProblem);
  bytes[1] = sizeof(SsimOptions);
  bytes[2] = sizeof(SsimPadding);
  bytes[3] = sizeof(SsimReduction);
  bytes[4] = sizeof(SsimScaling);
}

// Name of kernel `id`, or nullptr past the last one. A module must contain all of them, and its table has this order.
SPLAT_EXPORT const char* splat_ssim_cuda_kernel_name(int id) {
#define SPLAT_SSIM_NAME(id, name, threads, unit) #name,
  static const char* const names[] = {SPLAT_SSIM_KERNELS(SPLAT_SSIM_NAME)};
#undef SPLAT_SSIM_NAME
  return id >= 0 && id < kKernelCount ? names[id] : nullptr;
}

// The unit of compilation that contains kernel `id`.
SPLAT_EXPORT int splat_ssim_cuda_kernel_unit(int id) {
#define SPLAT_SSIM_UNIT(id, name, threads, unit) unit,
  static const int units[] = {SPLAT_SSIM_KERNELS(SPLAT_SSIM_UNIT)};
#undef SPLAT_SSIM_UNIT
  return id >= 0 && id < kKernelCount ? units[id] : SPLAT_UNIT_ALL;
}

// Fills in all members of `p` that follow from tensors, sizes and options, and chooses the kernel. If gradients follow,
// p->grad must be set. Stores the number of blocks in *blocks; block_sums takes kSumKinds times as many floats. *blocks
// is 0 if a fused kernel is asked for and none can do the task.
SPLAT_EXPORT int splat_ssim_cuda_prepare(SsimProblem* p, const SsimOptions* options, int operation, Int64* blocks) {
  SsimOptions own = *options;
  const SsimOptions* const o = &own;
  if (!valid_options(*p, *o) || !valid_background(*p, *o, operation)) return kBadArgument;
  for (int axis = 0; axis < 3; ++axis) {
    p->radius[axis] = axis >= first_axis(*o) ? o->window_size[axis] / 2 : 0;
    p->lead[axis] = o->valid ? p->radius[axis] : 0;
    p->map_size[axis] = p->size[axis + 2] - 2 * p->lead[axis];
  }
  settle_strides(*p);
  if (operation == kOperationFused && !has_fused(*p, *o)) {
    *blocks = 0;
    return kOk;
  }
  p->map_slice = static_cast<Int64>(p->map_size[1]) * p->map_size[2];
  p->partial_stride = p->map_slice * p->map_size[0] * p->size[0] * p->size[1];
  fill_taps(*p, *o);
  p->c1 = static_cast<float>(o->k1 * o->data_range * (o->k1 * o->data_range));
  p->c2 = static_cast<float>(o->k2 * o->data_range * (o->k2 * o->data_range));
  p->eps = static_cast<float>(o->eps);
  p->apart = static_cast<float>(0.05 * o->data_range);
  p->similarities = o->similarities;
  if (o->gradient && operation != kOperationFused) {
    p->partial_maps = partial_maps(*p, *o);
    if (p->partial_maps == 4) own.both = 1;
  }
  const SsimKernel kernel = choose(*p, *o, static_cast<SsimOperation>(operation));
  p->counts_l1 = kernel == kValue2d || kernel == kValue3d;
  const int taps = kernel_taps(*o);
  Shape shape = shape_of(kernel, taps);
  p->kernel = is_cubic(*o) ? of_window(kernel, taps) : of_axes(kernel, taps);
  if (!is_cubic(*o)) shape.warm_up = 2 * p->radius[0];
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

// Starts the kernel that splat_ssim_cuda_prepare chose.
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

// Fills a->block_sums with sums of |source[0] - source[1]|, a->blocks sums for each image.
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
