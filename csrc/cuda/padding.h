// Reflect and replicate padding as a copy, its adjoint, and the sum of |x - y|.
//
// A padded image is computed with "valid"; the gradient of the padded image is folded back: every voxel gathers the
// padded places that show it, in a fixed order.
#pragma once
#include "reduce.h"

namespace {

constexpr int kElementwiseThreads = 256;

// The index inside [0, size) that place `i` of the padded axis shows. The launcher makes sure that radius < size.
SPLAT_DEVICE int shown(int i, int size, int reflect) {
  if (i < 0) return reflect ? -i : 0;
  if (i >= size) return reflect ? 2 * (size - 1) - i : size - 1;
  return i;
}

// Splits a flat index over (batch, channel, depth, height, width).
SPLAT_DEVICE void unravel(Int64 flat, const int (&size)[5], const int (&radius)[3], int (&index)[5]) {
#pragma unroll
  for (int axis = 4; axis > 0; --axis) {
    const int extent = size[axis] + (axis >= 2 ? 2 * radius[axis >= 2 ? axis - 2 : 0] : 0);
    index[axis] = static_cast<int>(flat % extent);
    flat /= extent;
  }
  index[0] = static_cast<int>(flat);
}

SPLAT_DEVICE Int64 offset_of(const SsimTensor& tensor, int batch, int channel, int z, int y, int x) {
  return plane_offset(tensor, batch, channel) + z * tensor.stride[2] + y * tensor.stride[3] + x * tensor.stride[4];
}

// One thread a padded voxel: target = source at the shown place.
SPLAT_DEVICE void pad(const SsimPadding& a) {
  int i[5];
  unravel(static_cast<Int64>(block_index()) * kElementwiseThreads + thread_index(), a.size, a.radius, i);
  if (i[0] >= a.size[0]) return;
  const int z = shown(i[2] - a.radius[0], a.size[2], a.reflect), y = shown(i[3] - a.radius[1], a.size[3], a.reflect);
  const int x = shown(i[4] - a.radius[2], a.size[4], a.reflect);
  const Real v = load_element(a.source[0], offset_of(a.source[0], i[0], i[1], z, y, x));
  store_element(a.target, offset_of(a.target, i[0], i[1], i[2], i[3], i[4]), v);
}

// The places of the padded axis that show voxel i: two runs of consecutive ones beside i itself.
// Replicate: the borders show all that lies beyond them. Reflect: -i and 2(size - 1) - i, where they are in reach.
struct Shows {
  int first, last, mirror_low, mirror_high;  // mirrors: -1 (never a padded index) where there is none

  SPLAT_DEVICE Shows(int i, int size, int radius, int reflect) {
    first = last = i + radius;
    mirror_low = mirror_high = -1;
    if (reflect) {
      if (i > 0 && i <= radius) mirror_low = radius - i;
      if (i < size - 1 && size - 1 - i <= radius) mirror_high = 2 * (size - 1) - i + radius;
    } else {
      if (i == 0) first = 0;
      if (i == size - 1) last = size - 1 + 2 * radius;
    }
  }
  SPLAT_DEVICE int count() const { return last - first + 1 + (mirror_low >= 0) + (mirror_high >= 0); }
  SPLAT_DEVICE int place(int k) const {
    if (first + k <= last) return first + k;
    return k == last - first + 1 && mirror_low >= 0 ? mirror_low : mirror_high;
  }
};

// One thread a voxel: the sum of the padded gradient over the places that show it, and the gradient of the L1 term.
SPLAT_DEVICE void fold(const SsimPadding& a) {
  const int none[3] = {0, 0, 0};
  int i[5];
  unravel(static_cast<Int64>(block_index()) * kElementwiseThreads + thread_index(), a.size, none, i);
  if (i[0] >= a.size[0]) return;
  const Shows zs(i[2], a.size[2], a.radius[0], a.reflect), ys(i[3], a.size[3], a.radius[1], a.reflect);
  const Shows xs(i[4], a.size[4], a.radius[2], a.reflect);
  Real sum = 0.f;
  for (int z = 0; z < zs.count(); ++z) {
    for (int y = 0; y < ys.count(); ++y) {
      for (int x = 0; x < xs.count(); ++x) {
        sum = sum + load_element(a.target, offset_of(a.target, i[0], i[1], zs.place(z), ys.place(y), xs.place(x)));
      }
    }
  }
  if (a.l1_scale != 0.f) {
    const Real x = load_element(a.source[0], offset_of(a.source[0], i[0], i[1], i[2], i[3], i[4]));
    const Real y = load_element(a.source[1], offset_of(a.source[1], i[0], i[1], i[2], i[3], i[4]));
    Real share = a.l1_scale;
    if (a.l1_weight.data) share = share * load_element(a.l1_weight, offset_of(a.l1_weight, i[0], i[1], i[2], i[3], i[4]));
    sum = sum + times_sign(share, x - y);
  }
  store_element(a.grad, offset_of(a.grad, i[0], i[1], i[2], i[3], i[4]), sum);
}

// `blocks` blocks an image, each the sum of |x - y| over every `blocks`-th run of 256 voxels.
SPLAT_DEVICE void l1(const SsimPadding& a) {
  const int none[3] = {0, 0, 0}, batch = static_cast<int>(block_index() / a.blocks);
  const Int64 voxels = static_cast<Int64>(a.size[1]) * a.size[2] * a.size[3] * a.size[4];
  Int64 v = static_cast<Int64>(block_index() % a.blocks) * kElementwiseThreads + thread_index();
  Real sum = 0.f;
  for (; v < voxels; v += static_cast<Int64>(a.blocks) * kElementwiseThreads) {
    int i[5];
    unravel(v, a.size, none, i);
    const Real x = load_element(a.source[0], offset_of(a.source[0], batch, i[1], i[2], i[3], i[4]));
    const Real y = load_element(a.source[1], offset_of(a.source[1], batch, i[1], i[2], i[3], i[4]));
    Real share = 1.f;
    if (a.l1_weight.data) share = load_element(a.l1_weight, offset_of(a.l1_weight, batch, i[1], i[2], i[3], i[4]));
    sum = multiply_add(share, absolute(x - y), sum);
  }
  block_sum<kElementwiseThreads>(sum, a.block_sums + block_index());
}

}  // namespace
