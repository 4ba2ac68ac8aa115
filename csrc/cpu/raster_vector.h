// Converts rows of the rasteriser's tensors to vectors and back, and bits to lists.
#pragma once
#include <cstring>
#include <utility>

#include "simd.h"

namespace {

// Appends base | i to `list` for each bit i that is set, in increasing order. Returns the number of entries. It may
// write kAppendSlack more.
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

template <int... i>
SPLAT_INLINE Floats interleave_low(Floats a, Floats b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i / 2 + (i % 2) * kLanes)...);
}
template <int... i>
SPLAT_INLINE Floats interleave_high(Floats a, Floats b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (kLanes / 2 + i / 2 + (i % 2) * kLanes)...);
}
// Transposes: rows[i][j] becomes rows[j][i]. This is the perfect shuffle, applied log2(kLanes) times.
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

// Lane l of part j is element columns·l + j of kLanes·columns consecutive elements. `pick` merges in the lanes whose
// elements are in `next`, the vector of number `source`.
template <int columns, int j, int source, int... l>
SPLAT_INLINE Floats pick(Floats so_far, Floats next, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(so_far, next,
                                 ((l * columns + j) / kLanes == source ? kLanes + (l * columns + j) % kLanes : l)...);
}
template <int columns, int j, int source = 0>
SPLAT_INLINE Floats part_of_rows(const Floats* rows, Floats so_far) {
  if constexpr (source == columns) {
    return so_far;
  } else {
    return part_of_rows<columns, j, source + 1>(rows, pick<columns, j, source>(so_far, rows[source], Lanes{}));
  }
}
// The inverse: element i of the consecutive elements is lane i / columns of part i % columns. Vector k holds the
// elements from k·kLanes on.
template <int columns, int k, int source, int... l>
SPLAT_INLINE Floats place(Floats so_far, Floats next, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(so_far, next,
                                 ((k * kLanes + l) % columns == source ? kLanes + (k * kLanes + l) / columns : l)...);
}
template <int columns, int k, int source = 0>
SPLAT_INLINE Floats vector_of_rows(const Floats* parts, Floats so_far) {
  if constexpr (source == columns) {
    return so_far;
  } else {
    return vector_of_rows<columns, k, source + 1>(parts, place<columns, k, source>(so_far, parts[source], Lanes{}));
  }
}

// Reads kLanes rows of `columns` values as `columns` parts. Lanes beyond `valid` repeat the last valid row.
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

// The inverse of read_rows. It writes only the valid rows.
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

// soa[j·kLanes + l] = rows[l·stride + j] for j < columns. Lanes beyond `valid` repeat the last valid row.
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
