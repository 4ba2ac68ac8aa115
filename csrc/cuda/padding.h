// Reflect and replicate padding as a copy, the adjoint of that copy, and the sum of |x - y|.
//
// The SSIM of the padded image is computed with "valid". The gradient of the padded image is then folded back: every
// voxel sums over the padded positions that show it, in a fixed order.
#pragma once
#include "reduce.h"

namespace {

// The index in [0, size) that position `i` of the padded axis shows. For reflection the launcher checks that
// radius < size.
SPLAT_DEVICE int shown(int i, int size, int reflect) {
  if (i < 0) return reflect ? -i : 0;
  if (i >= size) return reflect ? 2 * (size - 1) - i : size - 1;
  return i;
}

// The part of a tile that one thread processes: column x of slice z, in kTileRows rows that begin at y and are `pitch`
// apart. Tiles are numbered along the width, then the height, the `depth` slices, the channels and the batch. The
// divisions have 32 bits and are done once for all rows.
struct TilePlace {
  int batch, channel, z, y, x, pitch;

  SPLAT_DEVICE TilePlace(const SsimPadding& a, unsigned tile, int depth) {
    const int lanes = 1 << a.lane_bits;
    pitch = kTileThreads >> a.lane_bits;
    x = static_cast<int>(tile % a.strips) * lanes + (thread_index() & (lanes - 1));
    tile /= a.strips;
    y = static_cast<int>(tile % a.tiles) * pitch * kTileRows + (thread_index() >> a.lane_bits);
    tile /= a.tiles;
    z = static_cast<int>(tile % depth);
    tile /= depth;
    channel = static_cast<int>(tile % a.size[1]);
    batch = static_cast<int>(tile / a.size[1]);
  }
};

SPLAT_DEVICE Int64 offset_of(const SsimTensor& tensor, const TilePlace& p, int z, int y, int x) {
  return plane_offset(tensor, p.batch, p.channel) + z * tensor.stride[2] + y * tensor.stride[3] + x * tensor.stride[4];
}

// Fills one tile a block: target (float32) = source at the position shown.
SPLAT_DEVICE void pad(const SsimPadding& a) {
  const TilePlace p(a, block_index(), a.size[2] + 2 * a.radius[0]);
  if (p.x >= a.size[4] + 2 * a.radius[2]) return;
  const int x = shown(p.x - a.radius[2], a.size[4], a.reflect), z = shown(p.z - a.radius[0], a.size[2], a.reflect);
  Int64 offset[kTileRows];
  bool wanted[kTileRows];
  Real values[kTileRows];
#pragma unroll
  for (int k = 0; k < kTileRows; ++k) {
    const int row = p.y + k * p.pitch;
    offset[k] = offset_of(a.source[0], p, z, shown(row - a.radius[1], a.size[3], a.reflect), x);
    wanted[k] = row < a.size[3] + 2 * a.radius[1];
  }
  load_elements(a.source[0], offset, wanted, values);
  float* const target = static_cast<float*>(a.target.data);
#pragma unroll
  for (int k = 0; k < kTileRows; ++k) {
    if (wanted[k]) store_global(target + offset_of(a.target, p, p.z, p.y + k * p.pitch, p.x), values[k]);
  }
}

// The positions of the padded axis that show voxel i: a run of consecutive positions that contains the voxel's own, and
// up to two mirror images. With replication, all positions beyond a border voxel show it. With reflection, -i and
// 2(size - 1) - i show voxel i if the padding reaches that far.
struct Shows {
  int first, last, mirror_low, mirror_high;  // a mirror is -1, never a padded index, if there is none

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

// Fills one tile a block: for each voxel, the sum of the padded gradient over the positions that show it, plus the
// gradient of the L1 term.
SPLAT_DEVICE void fold(const SsimPadding& a) {
  const TilePlace p(a, block_index(), a.size[2]);
  if (p.x >= a.size[4]) return;
  const Shows zs(p.z, a.size[2], a.radius[0], a.reflect), xs(p.x, a.size[4], a.radius[2], a.reflect);
  for (int k = 0; k < kTileRows; ++k) {
    const int row = p.y + k * p.pitch;
    if (row >= a.size[3]) return;
    const Shows ys(row, a.size[3], a.radius[1], a.reflect);
    Real sum = 0.f;
    for (int z = 0; z < zs.count(); ++z) {
      for (int y = 0; y < ys.count(); ++y) {
        for (int x = 0; x < xs.count(); ++x) {
          sum = sum + load_element(a.target, offset_of(a.target, p, zs.place(z), ys.place(y), xs.place(x)));
        }
      }
    }
    if (a.l1_scale != 0.f) {
      const Real x = load_element(a.source[0], offset_of(a.source[0], p, p.z, row, p.x));
      const Real y = load_element(a.source[1], offset_of(a.source[1], p, p.z, row, p.x));
      Real share = a.l1_scale;
      if (a.l1_weight.data) share = share * load_element(a.l1_weight, offset_of(a.l1_weight, p, p.z, row, p.x));
      sum = sum + times_sign(share, x - y);
    }
    store_element(a.grad, offset_of(a.grad, p, p.z, row, p.x), sum);
  }
}

// Each image has `blocks` blocks. Each block sums |x - y|, times its weight, over every `blocks`-th tile.
SPLAT_DEVICE void l1(const SsimPadding& a) {
  const unsigned tiles = static_cast<unsigned>(a.strips) * a.tiles * a.size[2] * a.size[1];  // of an image
  const unsigned first = block_index() / a.blocks * tiles;
  Real sum = 0.f;
  for (unsigned tile = first + block_index() % a.blocks; tile < first + tiles; tile += a.blocks) {
    const TilePlace p(a, tile, a.size[2]);
    bool wanted[kTileRows];
    Real x[kTileRows], y[kTileRows], share[kTileRows];
#pragma unroll
    for (int k = 0; k < kTileRows; ++k) {
      wanted[k] = p.x < a.size[4] && p.y + k * p.pitch < a.size[3];
      share[k] = 1.f;
    }
    auto read = [&](const SsimTensor& tensor, Real(&values)[kTileRows]) {
      Int64 offset[kTileRows];
#pragma unroll
      for (int k = 0; k < kTileRows; ++k) offset[k] = offset_of(tensor, p, p.z, p.y + k * p.pitch, p.x);
      load_elements(tensor, offset, wanted, values);
    };
    read(a.source[0], x);
    read(a.source[1], y);
    if (a.l1_weight.data) read(a.l1_weight, share);
#pragma unroll
    for (int k = 0; k < kTileRows; ++k) sum = multiply_add(share[k], absolute(x[k] - y[k]), sum);
  }
  block_sum<kTileThreads>(sum, a.block_sums + block_index());
}

}  // namespace
