// Runs every kernel at least once under the sanitizers, on images of awkward sizes. It does without Python, so that
// every buffer is a heap block of exact size, which AddressSanitizer fences. tests/test_cuda_emulation.py builds and
// starts this program. It prints the number of launches. With --overrun, one launch is told that a tensor is longer
// than it is, which the sanitizers must detect.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <set>
#include <vector>

#include "../cuda/launch.h"
#include "../cuda/voxel_problem.h"
#include "../cuda/xray_problem.h"

extern "C" {
const char* splat_emulation_fault(void);
}

namespace {

int launches = 0;
std::set<int> kernels;

void check(int status, const char* what) {
  ++launches;
  if (status == kOk) return;
  std::fprintf(stderr, "%s: status %d, %s\n", what, status, splat_emulation_fault());
  std::exit(1);
}

struct Size {
  int batch, channels, depth, height, width;
};

Int64 voxels(const int (&size)[5]) { return 1ll * size[0] * size[1] * size[2] * size[3] * size[4]; }

// A tensor with exactly the bytes that its elements take, planar or with the channels last.
struct Buffer {
  std::unique_ptr<unsigned char[]> bytes;
  SsimTensor tensor{};

  Buffer(const int (&size)[5], int type, bool channels_last) {
    const Int64 count = voxels(size), width = type == kFloat32 ? 4 : type == kUint8 ? 1 : 2;
    bytes.reset(new unsigned char[count * width]);
    for (Int64 i = 0; i < count; ++i) {
      if (type == kFloat32) reinterpret_cast<float*>(bytes.get())[i] = 0.01f * static_cast<float>(i * 7 % 100);
      if (type == kUint8) bytes[i] = static_cast<unsigned char>(i * 37);
      if (width == 2) reinterpret_cast<unsigned short*>(bytes.get())[i] = static_cast<unsigned short>(0x3800 + i % 99);
    }
    tensor.data = bytes.get();
    tensor.type = type;
    tensor.top = 1.f;
    const Int64 c = size[1], d = size[2], h = size[3], w = size[4];
    const Int64 planar[5] = {c * d * h * w, d * h * w, h * w, w, 1}, last[5] = {c * d * h * w, 1, h * w * c, w * c, c};
    for (int axis = 0; axis < 5; ++axis) tensor.stride[axis] = channels_last ? last[axis] : planar[axis];
  }
};

// Taps along slices, height and width.
struct Window {
  int taps[3];
  Window(int all) : taps{all, all, all} {}
  Window(int slices, int height, int width) : taps{slices, height, width} {}
};

struct Case {
  Size size;
  Window window;
  int type, target;
  bool valid, channels_last, both, weighted, map;
};

std::vector<float> block_sums(SsimProblem& p, const SsimOptions& o, int operation) {
  Int64 blocks = 0;
  if (splat_ssim_cuda_prepare(&p, &o, operation, &blocks) != kOk) std::exit(2);
  kernels.insert(p.kernel);
  std::vector<float> sums(kSumKinds * blocks);
  p.block_sums = sums.data();
  return sums;
}

void run(const Case& c) {
  const int size[5] = {c.size.batch, c.size.channels, c.size.depth, c.size.height, c.size.width};
  const int spatial_dims = c.size.depth > 1 ? 3 : 2;
  const int* const n = c.window.taps;
  SsimOptions o{{1.5, 1.5, 1.5}, 0.01, 0.03, 1., 0., spatial_dims, {n[0], n[1], n[2]}, c.valid, 0, c.both, 0, 2};
  const bool cubic = spatial_dims == 2 || (n[0] == n[1] && n[1] == n[2]);
  SsimProblem p{};
  for (int axis = 0; axis < 5; ++axis) p.size[axis] = size[axis];
  Buffer x(size, c.type, c.channels_last), y(size, c.target, c.channels_last), gx(size, kFloat32, c.channels_last);
  Buffer gy(size, c.type, c.channels_last);
  p.image[0] = x.tensor;
  p.image[1] = y.tensor;
  p.dssim_scale = p.l1_scale = 1.f;
  std::vector<float> sums = block_sums(p, o, kOperationForward);
  const int map_size[5] = {size[0], size[1], p.map_size[0], p.map_size[1], p.map_size[2]};
  check(splat_ssim_cuda_ssim(nullptr, &p, nullptr), "value");
  if (c.both) {
    o.similarities = 1;
    sums = block_sums(p, o, kOperationForward);
    check(splat_ssim_cuda_ssim(nullptr, &p, nullptr), "sums of S and CS");
    o.similarities = 0;
    o.eps = 1e-3;
  }

  Buffer map(map_size, kFloat32, c.channels_last), weight(map_size, kFloat32, false), l1_weight(size, kFloat32, false);
  if (c.map) p.map = map.tensor;
  const bool plain =
      c.type == kFloat32 && c.target == kFloat32 && cubic && n[2] <= 11 && !(c.both || c.map || c.channels_last);
  if (c.weighted) p.weight = weight.tensor;
  const bool plain_pair = plain && spatial_dims == 3;  // has three adjoint maps, and no weight of |x - y|
  if (c.weighted && !plain_pair) p.l1_weight = l1_weight.tensor;
  p.grad[0] = gx.tensor;
  if (c.both) p.grad[1] = gy.tensor;
  o.gradient = 1;
  sums = block_sums(p, o, kOperationForward);
  if ((p.partial_maps == 3) != plain_pair) std::exit(2);
  std::vector<float> partials(p.partial_maps * voxels(map_size));
  p.partials = partials.data();
  check(splat_ssim_cuda_ssim(nullptr, &p, nullptr), "forward");
  sums = block_sums(p, o, kOperationBackward);
  check(splat_ssim_cuda_ssim(nullptr, &p, nullptr), "backward");
  if (spatial_dims == 2 && n[2] <= 11 && !c.both) {
    sums = block_sums(p, o, kOperationFused);
    check(splat_ssim_cuda_ssim(nullptr, &p, nullptr), "fused");
  }
}

// RGBA images, each over its own background. The last block reduces the means.
void run_rgba(bool channels_last) {
  const int size[5] = {2, 3, 1, 19, 23}, rgba_size[5] = {2, 4, 1, 19, 23};
  SsimOptions o{{1.5, 1.5, 1.5}, 0.01, 0.03, 1., 0., 2, {11, 11, 11}, 0, 1, 0, 0, 2};
  SsimProblem p{};
  for (int axis = 0; axis < 5; ++axis) p.size[axis] = size[axis];
  Buffer x(size, kFloat16, !channels_last), rgba(rgba_size, kUint8, channels_last), grad(size, kFloat32, true);
  std::vector<float> background(6, 0.5f), results(3);
  std::unique_ptr<unsigned> arrivals(new unsigned(0));
  p.image[0] = x.tensor;
  p.image[1] = rgba.tensor;
  p.image[1].type = kRgba;
  p.background = background.data();
  p.background_stride = 3;
  p.grad[0] = grad.tensor;
  p.dssim_scale = p.l1_scale = 1.f;
  const std::vector<float> sums = block_sums(p, o, kOperationFused);
  p.arrivals = arrivals.get();
  for (int k = 0; k < 2; ++k) {
    p.means.values[k] = sums.data() + k * (sums.size() / kSumKinds);
    p.means.count[k] = sums.size() / kSumKinds;
    p.means.results[k] = results.data() + k;
  }
  p.means.combined = results.data() + 2;
  p.means.groups = 1;
  p.means.kinds = 2;
  check(splat_ssim_cuda_ssim(nullptr, &p, nullptr), "RGBA");
  if (*arrivals != 0) std::exit(2);
}

void run_padding(int reflect) {
  const int size[5] = {2, 2, 6, 7, 9}, padded_size[5] = {2, 2, 16, 17, 19};
  Buffer x(size, kFloat16, true), y(size, kUint8, false), padded(padded_size, kFloat32, false),
      grad(size, kFloat32, true);
  SsimPadding a{};
  a.source[0] = x.tensor;
  a.source[1] = y.tensor;
  a.target = padded.tensor;
  a.grad = grad.tensor;
  for (int axis = 0; axis < 5; ++axis) a.size[axis] = size[axis];
  for (int& radius : a.radius) radius = 5;
  a.reflect = reflect;
  a.l1_scale = 0.5f;
  a.blocks = 3;
  std::vector<float> sums(2 * a.blocks), results(2), combined(2);
  a.block_sums = sums.data();
  check(splat_ssim_cuda_pad(nullptr, &a, nullptr), "pad");
  check(splat_ssim_cuda_fold(nullptr, &a, nullptr), "fold");
  check(splat_ssim_cuda_l1(nullptr, &a, nullptr), "l1");
  SsimReduction r{};
  r.values[0] = sums.data();
  r.count[0] = a.blocks;
  r.results[0] = results.data();
  r.combined = combined.data();
  r.result_stride = r.kinds = 1;
  r.groups = 2;
  check(splat_ssim_cuda_reduce(nullptr, &r, nullptr), "reduce");
}

// The kernel is told of `beyond` elements too many.
void run_scaling(Int64 beyond) {
  std::vector<float> gradient(3 * 1501, 1.f), upstream{2.f, 1.f, 3.f};
  SsimScaling a{gradient.data(), upstream.data(), 1501 + beyond, 1, 3, 2};
  check(splat_ssim_cuda_scale(nullptr, &a, nullptr), "scale");
}

void voxel_stage(VoxelProblem& p, VoxelStage stage) {
  p.stage = stage;
  check(splat_ssim_cuda_voxelize(nullptr, &p, nullptr), "voxelize");
}

// Forward and backward of the voxeliser on a crop that ends inside a brick.
void run_voxelizer(int channels) {
  const int count = 150;
  std::vector<float> means(3 * count), quats(4 * count), scales(3 * count), values(channels * count, 0.5f);
  for (int i = 0; i < 3 * count; ++i) means[i] = static_cast<float>(i * 7 % 29) - 4.f, scales[i] = 0.3f + i % 5;
  for (int i = 0; i < 4 * count; ++i) quats[i] = 1.f + static_cast<float>(i % 3);
  VoxelProblem p{};
  for (int k = 0; k < 3; ++k) {
    p.to_world[4 * k] = p.to_index[4 * k] = 1.;
    p.start[k] = 1;
    p.size[k] = 9 + 4 * k;
    p.bricks[k] = 2 + k / 2;
  }
  p.count = count;
  p.channels = channels;
  p.means = means.data(), p.quats = quats.data(), p.scales = scales.data(), p.values = values.data();
  const int voxels = p.size[0] * p.size[1] * p.size[2], bricks = p.bricks[0] * p.bricks[1] * p.bricks[2];
  std::vector<VoxelRecord> records(count);
  std::vector<Int64> counts(count), ends(count), starts(bricks + 1);
  p.records = records.data(), p.brick_counts = counts.data(), p.pair_ends = ends.data();
  voxel_stage(p, kStagePrepare);
  std::partial_sum(counts.begin(), counts.end(), ends.begin());
  std::vector<int> pair_bricks(ends.back()), pair_gaussians(ends.back()), order(ends.back()), sorted(ends.back());
  p.pair_bricks = pair_bricks.data(), p.pair_gaussians = pair_gaussians.data();
  voxel_stage(p, kStagePairs);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return pair_bricks[a] < pair_bricks[b]; });
  for (std::size_t i = 0; i < order.size(); ++i) sorted[i] = pair_gaussians[order[i]];
  for (int b = 0; b <= bricks; ++b) {
    starts[b] = std::count_if(pair_bricks.begin(), pair_bricks.end(), [&](int brick) { return brick < b; });
  }
  std::vector<float> volume(channels * voxels), gradient(channels * voxels, 1.f), sums(9 * count);
  p.brick_gaussians = sorted.data(), p.brick_starts = starts.data();
  p.volume = volume.data(), p.gradient = gradient.data(), p.sums = sums.data();
  voxel_stage(p, kStageRender);
  std::vector<float> by_mean(3 * count), by_quat(4 * count), by_scale(3 * count), by_value(channels * count);
  p.grad_means = by_mean.data(), p.grad_quats = by_quat.data();
  p.grad_scales = by_scale.data(), p.grad_values = by_value.data();
  voxel_stage(p, kStageGather);
  voxel_stage(p, kStageChain);
}

void xray_stage(XrayProblem& p, XrayStage stage) {
  p.stage = stage;
  check(splat_ssim_cuda_xray(nullptr, &p, nullptr), "xray");
}

// Forward and backward of the projector, three views on a detector that ends inside a tile.
void run_projector(int channels, bool cone) {
  const int count = 150, views = 3, width = 37, height = 21, tiles = 3 * 2;
  std::vector<float> means(3 * count), quats(4 * count), scales(3 * count), values(channels * count, 0.5f);
  for (int i = 0; i < 3 * count; ++i) means[i] = static_cast<float>(i * 7 % 29) - 14.f, scales[i] = 0.3f + i % 5;
  for (int i = 0; i < 4 * count; ++i) quats[i] = 1.f + static_cast<float>(i % 3);
  XrayProblem p{};
  for (int v = 0; v < views; ++v) {
    // The source, or the first pixel, lies along -x. Columns follow y, rows -z, both with a little of x.
    const XrayView view{{-30. - v, -18., 10.}, {0.1 * v, 1., 0.}, {0., 0.2, -1.}, {1., 0., 0.}, {}, 0.};
    p.views[v] = view;
    if (cone) p.views[v].origin[1] = p.views[v].origin[2] = 0.;
    if (cone) p.views[v].last[0] = 60., p.views[v].last[1] = -18., p.views[v].last[2] = 10.;
  }
  p.detector = {width, height, cone};
  p.count = count, p.channels = channels, p.view_count = views, p.is_last = 1;
  p.tiles[0] = 3, p.tiles[1] = 2;
  p.means = means.data(), p.quats = quats.data(), p.scales = scales.data(), p.values = values.data();
  std::vector<XrayShadow> shadows(views * count);
  std::vector<Int64> counts(views * count), ends(views * count), starts(views * tiles + 1);
  p.shadows = shadows.data(), p.tile_counts = counts.data(), p.pair_ends = ends.data();
  xray_stage(p, kXrayStagePrepare);
  std::partial_sum(counts.begin(), counts.end(), ends.begin());
  std::vector<float> pictures(views * channels * width * height), gradient(pictures.size(), 1.f);
  p.pictures = pictures.data(), p.gradient = gradient.data();
  for (const int part : {0, 1}) {  // the first Gaussians of the first view, and all others
    p.begin = part ? 40 : 0, p.end = part ? views * count : 40;
    const Int64 pairs = ends[p.end - 1] - (part ? ends[39] : 0);
    if (pairs == 0) std::exit(2);
    std::vector<int> pair_tiles(pairs), pair_shadows(pairs), order(pairs), sorted(pairs);
    p.pair_tiles = pair_tiles.data(), p.pair_shadows = pair_shadows.data();
    xray_stage(p, kXrayStagePairs);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return pair_tiles[a] < pair_tiles[b]; });
    for (Int64 i = 0; i < pairs; ++i) sorted[i] = pair_shadows[order[i]];
    for (int t = 0; t <= views * tiles; ++t) {
      starts[t] = std::count_if(pair_tiles.begin(), pair_tiles.end(), [&](int tile) { return tile < t; });
    }
    p.tile_shadows = sorted.data(), p.tile_starts = starts.data();
    xray_stage(p, kXrayStageRender);
  }
  std::vector<float> sums(kXraySums * views * count), by_mean(3 * count), by_quat(4 * count), by_scale(3 * count);
  std::vector<double> totals(kXraySums * count), value_totals(channels * count);
  p.sums = sums.data(), p.totals = totals.data(), p.value_totals = value_totals.data();
  p.grad_means = by_mean.data(), p.grad_quats = by_quat.data(), p.grad_scales = by_scale.data();
  xray_stage(p, kXrayStageGather);
  xray_stage(p, kXrayStageChain);
}

}  // namespace

int main(int count, char** arguments) {
  const Size odd{1, 1, 1, 19, 251}, wide{1, 1, 1, 14, 260}, tiny{2, 1, 1, 1, 3}, color{1, 3, 1, 17, 24},
      volume{1, 1, 13, 17, 35}, flat{1, 2, 2, 1, 1};
  for (const Case& c : {
           Case{odd, 11, kFloat32, kFloat32, false, false, false, false, false},
           Case{odd, 11, kFloat32, kFloat32, false, false, false, true, false},
           Case{wide, 11, kFloat32, kFloat32, false, false, false, false, false},
           Case{color, 11, kFloat32, kFloat32, true, false, false, false, false},
           Case{color, 11, kFloat32, kFloat32, true, false, false, true, false},
           Case{tiny, 11, kFloat32, kFloat32, false, false, false, false, false},
           Case{color, 7, kFloat16, kUint8, false, true, true, true, true},
           Case{color, 15, kBfloat16, kBfloat16, true, true, true, false, true},
           Case{odd, 13, kFloat32, kUint8, false, false, false, true, false},
           Case{color, 11, kFloat32, kUint8, false, true, false, false, false},
           Case{color, 11, kFloat16, kUint8, false, true, false, true, false},
           Case{volume, 11, kFloat32, kFloat32, false, false, false, false, false},
           Case{volume, 11, kFloat32, kFloat32, true, false, false, false, false},
           Case{volume, 11, kFloat32, kFloat32, true, false, false, true, false},
           Case{flat, 11, kFloat32, kFloat32, false, false, false, false, false},
           Case{volume, 11, kFloat16, kUint8, false, true, true, true, true},
           Case{volume, 13, kFloat32, kFloat32, true, false, true, false, true},
           Case{volume, {1, 11, 5}, kFloat32, kFloat32, true, false, false, true, false},
           Case{volume, {5, 1, 3}, kFloat16, kUint8, false, true, true, true, true},
           Case{volume, {3, 15, 1}, kFloat32, kFloat32, false, false, false, false, false},
           Case{flat, {13, 3, 11}, kFloat32, kBfloat16, false, false, true, true, true},
       }) {
    run(c);
  }
  for (int window = 3; window <= kMaxTaps; window += 2) {
    run({{1, 2, 1, 17, 20}, window, kFloat32, kFloat32, false, false, false, window == 5, false});
    run({{1, 1, 15, 16, 17}, window, kFloat32, kFloat32, true, false, false, window == 7, false});
    run({{1, 2, 1, 9, 20}, window, kFloat16, kUint8, false, true, false, window == 3, false});
    run({{1, 1, 5, 9, 34}, window, kFloat32, kUint8, false, false, true, true, true});
  }
  run_rgba(false);
  run_rgba(true);
  run_padding(0);
  run_padding(1);
  run_scaling(count > 1 && !std::strcmp(arguments[1], "--overrun") ? 1 : 0);
  run_voxelizer(1);
  run_voxelizer(6);
  run_projector(1, true);
  run_projector(6, false);
  if (kernels.size() != kPad) std::fprintf(stderr, "only %zu of %d SSIM kernels ran\n", kernels.size(), kPad);
  std::printf("%d launches\n", launches);
  return kernels.size() == kPad ? 0 : 3;
}
