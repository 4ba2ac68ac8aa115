// Vectors of float32 and int32, and operations that the compiler's vector extensions lack.
//
// Some functions differ only in precision or order. Each has its own users, whose results must keep their bits.
#pragma once
#include <cstring>
#include <utility>

#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr float kLn2 = 0.693147180559945f;
constexpr float kLog2E = 1.44269504088896f;

// The widest vectors: compiler vector extensions, so one source serves every instruction set. Loads and stores through
// the unaligned types need only element alignment. (Not a template of the width: g++ drops may_alias there.)
struct Wide {
  static constexpr int kWidth = kLanes;
  typedef float F __attribute__((vector_size(kWidth * 4)));
  typedef int32_t I __attribute__((vector_size(kWidth * 4)));
  typedef float UnalignedF __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
  typedef int32_t UnalignedI __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
};
// Vectors of half the width, for work that would leave most of a wide one empty.
struct Narrow {
  static constexpr int kWidth = kLanes > 4 ? kLanes / 2 : kLanes;
  typedef float F __attribute__((vector_size(kWidth * 4)));
  typedef int32_t I __attribute__((vector_size(kWidth * 4)));
  typedef float UnalignedF __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
};
using Floats = Wide::F;
using Ints = Wide::I;

template <class V = Wide>
SPLAT_INLINE typename V::F load(const float* p) {
  return *reinterpret_cast<const typename V::UnalignedF*>(p);
}
template <class V = Wide>
SPLAT_INLINE void store(float* p, typename V::F v) {
  *reinterpret_cast<typename V::UnalignedF*>(p) = v;
}
SPLAT_INLINE Ints load_ints(const int32_t* p) { return *reinterpret_cast<const Wide::UnalignedI*>(p); }
SPLAT_INLINE void store_ints(int32_t* p, Ints v) { *reinterpret_cast<Wide::UnalignedI*>(p) = v; }

template <class V = Wide>
SPLAT_INLINE typename V::F broadcast(float a) {
  return a - typename V::F{};
}
SPLAT_INLINE Ints broadcast_int(int32_t a) { return a - Ints{}; }

// 0, 1, 2, …
template <class V = Wide>
SPLAT_INLINE typename V::F lane_numbers() {
  typename V::F lanes{};
  for (int i = 0; i < V::kWidth; ++i) lanes[i] = static_cast<float>(i);
  return lanes;
}

// The same bits as another type.
template <class To, class From>
SPLAT_INLINE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

// --- masks: all bits of a lane or none, as comparisons give them -----------------------------------------------------

// `yes` where the mask is set, else `no`. It works on bits, because g++ forms other fused multiply-adds from `mask ?
// yes : no`.
SPLAT_INLINE Floats select(Ints mask, Floats yes, Floats no) {
  return bits_as<Floats>((mask & bits_as<Ints>(yes)) | (~mask & bits_as<Ints>(no)));
}
// a where the mask is set, else 0. The second form is faster where the mask is stored or used again as bits (measured
// in the voxeliser: 10%), the first one elsewhere.
SPLAT_INLINE Floats keep(Ints mask, Floats a) { return mask ? a : Floats{}; }
template <class I, class F>
SPLAT_INLINE F keep_bits(I mask, F a) {
  return bits_as<F>(mask & bits_as<I>(a));
}

SPLAT_INLINE bool any(Ints lanes) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)lanes) != 0;
#else
  return (lanes[0] | lanes[1] | lanes[2] | lanes[3]) != 0;
#endif
}

// --- arithmetic ------------------------------------------------------------------------------------------------------
//
// minimum(a, b) and maximum(a, b) are b where either is NaN. rough_reciprocal has 12 to 14 bits.

#if defined(__AVX512F__)
// The masked forms, with every lane on: g++ 12 warns of an undefined operand inside the plain ones.
SPLAT_INLINE Floats minimum(Floats a, Floats b) { return _mm512_maskz_min_ps(0xffff, a, b); }
SPLAT_INLINE Floats maximum(Floats a, Floats b) { return _mm512_maskz_max_ps(0xffff, a, b); }
SPLAT_INLINE Floats square_root(Floats a) { return _mm512_maskz_sqrt_ps(0xffff, a); }
SPLAT_INLINE Floats rough_reciprocal(Floats a) { return _mm512_maskz_rcp14_ps(0xffff, a); }
// One bit a lane: its sign bit, so also what a comparison gave.
SPLAT_INLINE uint32_t sign_bits(Ints a) { return _mm512_movepi32_mask(reinterpret_cast<__m512i>(a)); }
SPLAT_INLINE uint32_t at_least_bits(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
#elif defined(__AVX2__)
SPLAT_INLINE Floats minimum(Floats a, Floats b) { return _mm256_min_ps(a, b); }
SPLAT_INLINE Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }
SPLAT_INLINE Floats square_root(Floats a) { return _mm256_sqrt_ps(a); }
SPLAT_INLINE Floats rough_reciprocal(Floats a) { return _mm256_rcp_ps(a); }
SPLAT_INLINE uint32_t sign_bits(Ints a) { return static_cast<uint32_t>(_mm256_movemask_ps(bits_as<Floats>(a))); }
#elif defined(__x86_64__)
SPLAT_INLINE Floats minimum(Floats a, Floats b) { return _mm_min_ps(a, b); }
SPLAT_INLINE Floats maximum(Floats a, Floats b) { return _mm_max_ps(a, b); }
SPLAT_INLINE Floats square_root(Floats a) { return _mm_sqrt_ps(a); }
SPLAT_INLINE Floats rough_reciprocal(Floats a) { return _mm_rcp_ps(a); }
SPLAT_INLINE uint32_t sign_bits(Ints a) { return static_cast<uint32_t>(_mm_movemask_ps(bits_as<Floats>(a))); }
#else
SPLAT_INLINE Floats minimum(Floats a, Floats b) { return a < b ? a : b; }
SPLAT_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
SPLAT_INLINE Floats square_root(Floats a) {
  for (int l = 0; l < kLanes; ++l) a[l] = __builtin_sqrtf(a[l]);
  return a;
}
SPLAT_INLINE Floats rough_reciprocal(Floats a) { return 1.0f / a; }
SPLAT_INLINE uint32_t sign_bits(Ints a) {
  uint32_t bits = 0;
  for (int l = 0; l < kLanes; ++l) bits |= (static_cast<uint32_t>(a[l]) >> 31) << l;
  return bits;
}
#endif

#if !defined(__AVX512F__)
// One bit a lane: a >= b.
SPLAT_INLINE uint32_t at_least_bits(Floats a, Floats b) { return sign_bits(a >= b); }
#endif

// 1 / a to about 2e-7, by one Newton step.
SPLAT_INLINE Floats fast_reciprocal(Floats a) {
  const Floats r = rough_reciprocal(a);
  return r * (2.0f - a * r);
}

// 1 / a to 1.5 units in the last place. With the 14 bits of AVX-512 the Newton step is as exact as that, and takes half
// the time of a division.
SPLAT_INLINE Floats reciprocal(Floats a) {
#if defined(__AVX512F__)
  return fast_reciprocal(a);
#else
  return 1.0f / a;
#endif
}

// 2^f for f in [0, 1]: minimax polynomial, relative error 2e-7 in float32.
SPLAT_INLINE Floats exp2_fraction(Floats f) {
  Floats p = broadcast(1.87757274e-3f) * f + 8.98934435e-3f;
  p = p * f + 5.58263175e-2f;
  p = p * f + 2.40153611e-1f;
  p = p * f + 6.93153083e-1f;
  return p * f + 9.9999994e-1f;
}

// 2^x; 0 or tiny for x under -126, which no caller tells apart.
SPLAT_INLINE Floats exp2(Floats x) {
#if defined(__AVX512F__)
  // x - floor(x), then times 2^floor(x).
  const Floats f = _mm512_maskz_reduce_ps(0xffff, x, 0x09);
  return _mm512_maskz_scalef_ps(0xffff, exp2_fraction(f), x);
#else
  x = maximum(minimum(x, broadcast(126.0f)), broadcast(-126.0f));
  // Adding 1.5·2^23 rounds to the nearest integer and leaves it in the low bits.
  const float magic = 12582912.0f;
  const Floats shifted = (x - 0.5f) + magic;
  const Floats f = x - (shifted - magic);
  return bits_as<Floats>(bits_as<Ints>(exp2_fraction(f)) + (bits_as<Ints>(shifted) << 23));
#endif
}

// e^x by way of 2^x, which loses digits for large |x|: relative error 1e-7 |x|.
SPLAT_INLINE Floats fast_exponential(Floats x) { return exp2(x * kLog2E); }

// e^x to 2 units in the last place for x in [-87, 87]. The result is arbitrary for other x.
template <class V = Wide>
SPLAT_INLINE typename V::F exponential(typename V::F x) {
  typedef typename V::F F;
  typedef typename V::I I;
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
  const F magic = broadcast<V>(12582912.0f);
  const F shifted = x * 1.44269504f + magic;
  const F n = shifted - magic;
  F r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  F p = broadcast<V>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  const I power = (bits_as<I>(shifted) - bits_as<I>(magic) + 127) << 23;
  return p * bits_as<F>(power);
}

// log2(x) for normal x > 0, absolute error 3e-7 near 1 and relative 2e-7 elsewhere.
SPLAT_INLINE Floats log2(Floats x) {
  // x = m·2^e with m in [sqrt(½), sqrt(2)); log m = 2 artanh((m - 1) / (m + 1)).
  const Ints offset = bits_as<Ints>(x) - 0x3f3504f3;
  const Ints exponent = offset >> 23;
  const Floats m = bits_as<Floats>(bits_as<Ints>(x) - (exponent << 23));
  const Floats s = (m - 1.0f) / (m + 1.0f);
  const Floats q = s * s;
  Floats p = broadcast(2 * kLog2E / 9) * q + 2 * kLog2E / 7;
  p = p * q + 2 * kLog2E / 5;
  p = p * q + 2 * kLog2E / 3;
  p = p * q + 2 * kLog2E;
  return __builtin_convertvector(exponent, Floats) + p * s;
}

// --- sums of lanes, each in an order of its own that never changes ---------------------------------------------------

// Halves are added to halves.
typedef float Four __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Sixteen __attribute__((vector_size(64)));
SPLAT_INLINE float sum_lanes(Four v) { return (v[0] + v[2]) + (v[1] + v[3]); }
SPLAT_INLINE float sum_lanes(Eight v) {
  return sum_lanes(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
SPLAT_INLINE float sum_lanes(Sixteen v) {
  return sum_lanes(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                   __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}

// In double precision. The quarters of the vector are added first.
SPLAT_INLINE double sum_lanes_in_double(Floats lanes) {
  typedef double Doubles __attribute__((vector_size(32)));
  Doubles sum = {};
  for (int i = 0; i < kLanes / 4; ++i) {
    Four part;
    std::memcpy(&part, reinterpret_cast<const char*>(&lanes) + 16 * i, 16);
    sum += __builtin_convertvector(part, Doubles);
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

template <int... i>
SPLAT_INLINE Floats add_neighbours(Floats a, Floats b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (2 * i)...) + __builtin_shufflevector(a, b, (2 * i + 1)...);
}
using Lanes = std::make_integer_sequence<int, kLanes>;

template <int width, int n>
SPLAT_INLINE void sum_lanes_from(Floats* values, float* sums) {
  if constexpr (width == kLanes) {
    for (int i = 0; i < n; ++i) store(sums + i * kLanes, values[i]);
  } else {
    constexpr int half = (n + 1) / 2;
    for (int i = 0; i < half; ++i) {
      const Floats second = 2 * i + 1 < n ? values[2 * i + 1] : Floats{};
      values[i] = add_neighbours(values[2 * i], second, Lanes{});
    }
    sum_lanes_from<width * 2, half>(values, sums);
  }
}

// sums[i] = the sum over the lanes of values[i], for i < n. Neighbours are added first. Destroys `values`, and writes
// `sums` up to n rounded up to kLanes.
template <int n>
SPLAT_INLINE void sum_lanes_of_each(Floats (&values)[n], float* sums) {
  sum_lanes_from<1, n>(values, sums);
}

}  // namespace
