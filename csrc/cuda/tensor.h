// Reading and writing tensors of any type and strides.
#pragma once
#include "device.h"

namespace {

// byte · top / 255, rounded once. So a byte equals, to the last bit, an image that was made by that division.
SPLAT_DEVICE Real fraction(unsigned byte, float top) {
  const Real product = Real(static_cast<float>(byte)) * top, quotient = product * (1.f / 255);
  return multiply_add(multiply_add(-quotient, 255.f, product), 1.f / 255, quotient);
}

template <int kType>
SPLAT_DEVICE Real load_as(const SsimTensor& tensor, Int64 offset) {
  if constexpr (kType == kFloat32) {
    return load_global(static_cast<const float*>(tensor.data) + offset);
  } else if constexpr (kType == kUint8) {
    return fraction(load_global(static_cast<const unsigned char*>(tensor.data) + offset), tensor.top);
  } else {
    const unsigned bits = load_global(static_cast<const unsigned short*>(tensor.data) + offset);
    return kType == kFloat16 ? from_float16(bits) : from_bits(bits << 16);
  }
}

SPLAT_DEVICE Real load_element(const SsimTensor& tensor, Int64 offset) {
  switch (tensor.type) {
    case kFloat32: return load_as<kFloat32>(tensor, offset);
    case kFloat16: return load_as<kFloat16>(tensor, offset);
    case kBfloat16: return load_as<kBfloat16>(tensor, offset);
    default: return load_as<kUint8>(tensor, offset);
  }
}

// values[k] = the element at offset[k] if wanted[k] is set, else 0.
template <int kType, int kCount>
SPLAT_DEVICE void load_elements_as(const SsimTensor& tensor, const Int64 (&offset)[kCount],
                                   const bool (&wanted)[kCount], Real (&values)[kCount]) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) values[k] = wanted[k] ? load_as<kType>(tensor, offset[k]) : Real(0.f);
}

// The same for a type known at run time. It branches once for all elements, so that their loads are issued together.
template <int kCount>
SPLAT_DEVICE void load_elements(const SsimTensor& tensor, const Int64 (&offset)[kCount], const bool (&wanted)[kCount],
                                Real (&values)[kCount]) {
  switch (tensor.type) {
    case kFloat32: load_elements_as<kFloat32>(tensor, offset, wanted, values); break;
    case kFloat16: load_elements_as<kFloat16>(tensor, offset, wanted, values); break;
    case kBfloat16: load_elements_as<kBfloat16>(tensor, offset, wanted, values); break;
    default: load_elements_as<kUint8>(tensor, offset, wanted, values); break;
  }
}

// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
SPLAT_DEVICE unsigned short to_bfloat16(Real v) {
  const unsigned bits = to_bits(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

SPLAT_DEVICE void store_element(const SsimTensor& tensor, Int64 offset, Real v) {
  switch (tensor.type) {
    case kFloat32: store_global(static_cast<float*>(tensor.data) + offset, v); break;
    case kFloat16: store_global(static_cast<unsigned short*>(tensor.data) + offset, to_float16(v)); break;
    default: store_global(static_cast<unsigned short*>(tensor.data) + offset, to_bfloat16(v)); break;
  }
}

SPLAT_DEVICE Int64 plane_offset(const SsimTensor& tensor, int batch, int channel) {
  return batch * tensor.stride[0] + channel * tensor.stride[1];
}

// A position in a tensor that moves along the marching axis. read() sets values[k] to the element k·spacing columns to
// the right if wanted[k] is set, else to 0. The plain kind is a bare pointer: float32, width stride 1. It leaves
// values[k] unchanged if wanted[k] is not set, so its callers fill in zeros first.
template <bool kPlain>
struct Cursor {
  static constexpr bool kComposites = false;
  Int64 here, step;

  SPLAT_DEVICE Cursor(const SsimTensor&, Int64 offset, Int64 step_) : here(offset), step(step_) {}
  SPLAT_DEVICE void advance() { here += step; }

  template <int kCount>
  SPLAT_DEVICE void read(const SsimTensor& tensor, int spacing, const bool (&wanted)[kCount],
                         Real (&values)[kCount]) const {
    Int64 offset[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) offset[k] = here + k * spacing * tensor.stride[4];
    load_elements(tensor, offset, wanted, values);
  }
};

// Composites a channel of an RGBA pixel over `background`. The pixel's alpha lies `alpha` bytes after the channel.
struct Over {
  Int64 alpha;
  Real background;

  SPLAT_DEVICE Over(const SsimProblem& a, int batch, int channel)
      : alpha((3 - channel) * a.image[1].stride[1]),
        background(load_global(a.background + batch * a.background_stride + channel)) {}
  SPLAT_DEVICE Real load(const SsimTensor& tensor, Int64 offset) const {
    const Real share = fraction(load_global(static_cast<const unsigned char*>(tensor.data) + offset + alpha), 1.f);
    return multiply_add(load_as<kUint8>(tensor, offset), share, background * (1.f - share));
  }
};

// The cursor of an RGBA image, which it composites over the background.
struct RgbaCursor : Cursor<false> {
  static constexpr bool kComposites = true;
  Over over;

  SPLAT_DEVICE RgbaCursor(const Cursor<false>& cursor, const Over& over_) : Cursor<false>(cursor), over(over_) {}

  template <int kCount>
  SPLAT_DEVICE void read(const SsimTensor& tensor, int spacing, const bool (&wanted)[kCount],
                         Real (&values)[kCount]) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      values[k] = wanted[k] ? over.load(tensor, here + k * spacing * tensor.stride[4]) : Real(0.f);
    }
  }
};

template <>
struct Cursor<true> {
  static constexpr bool kComposites = false;
  const float* here;
  int step;  // saves one instruction a row; the launcher checks that the stride fits

  SPLAT_DEVICE Cursor(const SsimTensor& tensor, Int64 offset, Int64 step_)
      : here(static_cast<const float*>(tensor.data) + offset), step(static_cast<int>(step_)) {}
  SPLAT_DEVICE void advance() { ::advance(here, step); }

  template <int kCount>
  SPLAT_DEVICE void read(const SsimTensor&, int spacing, const bool (&wanted)[kCount], Real (&values)[kCount]) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (wanted[k]) values[k] = load_global(here + k * spacing);
    }
  }
};

}  // namespace
