// Vector mathematics of the rasteriser on top of isa.h: what compiler vector extensions do not say by themselves.
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

SPLAT_INLINE Ints as_ints(Floats a) { return reinterpret_cast<Ints>(a); }
SPLAT_INLINE Floats as_floats(Ints a) { return reinterpret_cast<Floats>(a); }
SPLAT_INLINE Ints broadcast_int(int32_t a) { return a - Ints{}; }
// a where the mask (all bits or none, as comparisons give it) is set, else 0.
SPLAT_INLINE Floats keep(Ints mask, Floats a) { return mask ? a : Floats{}; }

// minimum(a, b) and maximum(a, b) are b where either is NaN.
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
SPLAT_INLINE uint32_t sign_bits(Ints a) { return static_cast<uint32_t>(_mm256_movemask_ps(as_floats(a))); }
#elif defined(__x86_64__)
SPLAT_INLINE Floats minimum(Floats a, Floats b) { return _mm_min_ps(a, b); }
SPLAT_INLINE Floats maximum(Floats a, Floats b) { return _mm_max_ps(a, b); }
SPLAT_INLINE Floats square_root(Floats a) { return _mm_sqrt_ps(a); }
SPLAT_INLINE Floats rough_reciprocal(Floats a) { return _mm_rcp_ps(a); }
SPLAT_INLINE uint32_t sign_bits(Ints a) { return static_cast<uint32_t>(_mm_movemask_ps(as_floats(a))); }
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

// Appends base | i to `list` for each bit i that is set, in increasing order, and returns how many; may write
// kAppendSlack entries more.
constexpr int kAppendSlack = 16;
SPLAT_INLINE int append_bits(uint32_t* list, uint32_t base, uint64_t bits) {
#if defined(__AVX512F__)
  int count = 0;
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (uint32_t first = 0; bits >> first; first += 16) {
    const __m512i values = _mm512_or_si512(lanes, _mm512_set1_epi32(static_cast<int>(base | first)));
    const __mmask16 here = static_cast<__mmask16>(bits >> first);
    _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32(here, values));
    count += __builtin_popcount(here);
    if (first == 48) break;
  }
  return count;
#else
  int count = 0;
  for (; bits; bits &= bits - 1) list[count++] = base | static_cast<uint32_t>(__builtin_ctzll(bits));
  return count;
#endif
}

// 1 / a to about 2e-7, by one Newton step.
SPLAT_INLINE Floats reciprocal(Floats a) {
  const Floats r = rough_reciprocal(a);
  return r * (2.0f - a * r);
}

// 2^f for f in [0, 1]: minimax polynomial, relative error 2e-7 in float32.
SPLAT_INLINE Floats exp2_fraction(Floats f) {
  Floats p = broadcast(1.87757274e-3f) * f + 8.98934435e-3f;
  p = p * f + 5.58263175e-2f;
  p = p * f + 2.40153611e-1f;
  p = p * f + 6.93153083e-1f;
  return p * f + 9.9999994e-1f;
}

// 2^x; 0 or tiny for x under -126, which nobody here tells apart.
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
  return as_floats(as_ints(exp2_fraction(f)) + (as_ints(shifted) << 23));
#endif
}

SPLAT_INLINE Floats exponential(Floats x) { return exp2(x * kLog2E); }

// log2(x) for normal x > 0, absolute error 3e-7 near 1 and relative 2e-7 elsewhere.
SPLAT_INLINE Floats log2(Floats x) {
  // x = m·2^e with m in [sqrt(½), sqrt(2)); log m = 2 artanh((m - 1) / (m + 1)).
  const Ints offset = as_ints(x) - 0x3f3504f3;
  const Ints exponent = offset >> 23;
  const Floats m = as_floats(as_ints(x) - (exponent << 23));
  const Floats s = (m - 1.0f) / (m + 1.0f);
  const Floats q = s * s;
  Floats p = broadcast(2 * kLog2E / 9) * q + 2 * kLog2E / 7;
  p = p * q + 2 * kLog2E / 5;
  p = p * q + 2 * kLog2E / 3;
  p = p * q + 2 * kLog2E;
  return __builtin_convertvector(exponent, Floats) + p * s;
}

template <int... i>
SPLAT_INLINE Floats interleave_low(Floats a, Floats b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i / 2 + (i % 2) * kLanes)...);
}
template <int... i>
SPLAT_INLINE Floats interleave_high(Floats a, Floats b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (kLanes / 2 + i / 2 + (i % 2) * kLanes)...);
}
template <int... i>
SPLAT_INLINE Floats add_neighbours(Floats a, Floats b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (2 * i)...) + __builtin_shufflevector(a, b, (2 * i + 1)...);
}
using Lanes = std::make_integer_sequence<int, kLanes>;

// rows[i][j] becomes rows[j][i]: the perfect shuffle, log2(kLanes) times.
SPLAT_INLINE void transpose(Floats (&rows)[kLanes]) {
  for (int width = 1; width < kLanes; width *= 2) {
    Floats shuffled[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      shuffled[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2], Lanes{});
      shuffled[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2], Lanes{});
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = shuffled[i];
  }
}

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

// sums[i] = the sum over the lanes of values[i], for i < n, in a fixed order. Destroys `values`, and writes `sums` up to
// n rounded up to kLanes.
template <int n>
SPLAT_INLINE void sum_lanes(Floats (&values)[n], float* sums) {
  sum_lanes_from<1, n>(values, sums);
}

// Lane l of part j is element columns·l + j of kLanes·columns consecutive ones: `next` is merged in where they are its.
template <int columns, int j, int source, int... l>
SPLAT_INLINE Floats pick(Floats so_far, Floats next, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(
      so_far, next, ((l * columns + j) / kLanes == source ? kLanes + (l * columns + j) % kLanes : l)...);
}
template <int columns, int j, int source = 0>
SPLAT_INLINE Floats part_of_rows(const Floats* rows, Floats so_far) {
  if constexpr (source == columns) {
    return so_far;
  } else {
    return part_of_rows<columns, j, source + 1>(rows, pick<columns, j, source>(so_far, rows[source], Lanes{}));
  }
}
// Element i of vector k is lane i / columns of part i % columns, counting i from k·kLanes.
template <int columns, int k, int source, int... l>
SPLAT_INLINE Floats place(Floats so_far, Floats next, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(
      so_far, next, ((k * kLanes + l) % columns == source ? kLanes + (k * kLanes + l) / columns : l)...);
}
template <int columns, int k, int source = 0>
SPLAT_INLINE Floats vector_of_rows(const Floats* parts, Floats so_far) {
  if constexpr (source == columns) {
    return so_far;
  } else {
    return vector_of_rows<columns, k, source + 1>(parts, place<columns, k, source>(so_far, parts[source], Lanes{}));
  }
}

// The `columns` parts of kLanes rows of that many values; lanes beyond `valid` repeat the last valid row.
template <int columns, int... j>
SPLAT_INLINE void read_rows(const float* rows, int valid, Floats* parts, std::integer_sequence<int, j...>) {
  alignas(64) float padded[kLanes * columns];
  if (valid < kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      for (int i = 0; i < columns; ++i) padded[l * columns + i] = rows[(l < valid ? l : valid - 1) * columns + i];
    }
    rows = padded;
  }
  const Floats whole[] = {load(rows + j * kLanes)...};
  ((parts[j] = part_of_rows<columns, j>(whole, whole[0])), ...);
}
template <int columns>
SPLAT_INLINE void read_rows(const float* rows, int valid, Floats* parts) {
  read_rows<columns>(rows, valid, parts, std::make_integer_sequence<int, columns>{});
}

// The inverse; writes the valid rows only.
template <int columns, int... k>
SPLAT_INLINE void write_rows(float* rows, int valid, const Floats* parts, std::integer_sequence<int, k...>) {
  if (valid == kLanes) {
    (store(rows + k * kLanes, vector_of_rows<columns, k>(parts, parts[0])), ...);
    return;
  }
  alignas(64) float padded[kLanes * columns];
  (store(padded + k * kLanes, vector_of_rows<columns, k>(parts, parts[0])), ...);
  std::memcpy(rows, padded, static_cast<size_t>(valid) * columns * sizeof(float));
}
template <int columns>
SPLAT_INLINE void write_rows(float* rows, int valid, const Floats* parts) {
  write_rows<columns>(rows, valid, parts, std::make_integer_sequence<int, columns>{});
}

// soa[j·kLanes + l] = rows[l·stride + j] for j < columns; lanes beyond `valid` repeat the last valid row.
SPLAT_INLINE void load_rows(const float* rows, int64_t stride, int columns, int valid, float* soa) {
  int done = 0;
  // The last block of columns may overlap the one before it, so that whole vectors are always read.
  for (; columns >= kLanes && done < columns; done += kLanes) {
    const int first = done + kLanes <= columns ? done : columns - kLanes;
    Floats block[kLanes];
    for (int l = 0; l < kLanes; ++l) block[l] = load(rows + (l < valid ? l : valid - 1) * stride + first);
    transpose(block);
    for (int j = 0; j < kLanes; ++j) store(soa + (first + j) * kLanes, block[j]);
  }
  for (int j = done; j < columns; ++j) {
    for (int l = 0; l < kLanes; ++l) soa[j * kLanes + l] = rows[(l < valid ? l : valid - 1) * stride + j];
  }
}

// The inverse: rows[l·stride + j] = soa[j·kLanes + l] for l < valid, j < columns.
SPLAT_INLINE void store_rows(float* rows, int64_t stride, int columns, int valid, const float* soa) {
  int done = 0;
  for (; columns >= kLanes && done < columns; done += kLanes) {
    const int first = done + kLanes <= columns ? done : columns - kLanes;
    Floats block[kLanes];
    for (int j = 0; j < kLanes; ++j) block[j] = load(soa + (first + j) * kLanes);
    transpose(block);
    for (int l = 0; l < valid; ++l) store(rows + l * stride + first, block[l]);
  }
  for (int l = 0; l < valid; ++l) {
    for (int j = done; j < columns; ++j) rows[l * stride + j] = soa[j * kLanes + l];
  }
}

}  // namespace
