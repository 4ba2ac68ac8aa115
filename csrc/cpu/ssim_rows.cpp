// Reads rows of images of any dtype as shifted sums and differences.
#include <cstring>
#include <utility>

#include "ssim_rows.h"

namespace {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};
typedef uint16_t Words __attribute__((vector_size(kLanes * 2)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

template <class Raw, class T>
SPLAT_INLINE Raw load_raw(const T* p) {
  Raw raw;
  std::memcpy(&raw, p, sizeof(Raw));
  return raw;
}

SPLAT_INLINE Floats load_lanes(const float* p) { return load(p); }

SPLAT_INLINE Floats load_lanes(const BFloat* p) {
  return bits_as<Floats>(__builtin_convertvector(load_raw<Words>(p), Ints) << 16);
}

SPLAT_INLINE Floats load_lanes(const Half* p) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  // Normal halves: once the bits are moved into place, the exponent is too small by 112, which is added to it. Infinity
  // and NaN: all bits of the exponent are set. Subnormal halves: the value is the integer with the same bits, times
  // 2^-24. With the bits moved into place it would be a subnormal float32, and those count as 0 here (parallel.cpp).
  const Ints raw = __builtin_convertvector(load_raw<Words>(p), Ints);
  const Ints size = raw & 0x7fff, exponent = raw & 0x7c00;
  const Ints normal = (size << 13) + (112 << 23), special = (size << 13) | 0x7f800000;
  const Ints subnormal = bits_as<Ints>(__builtin_convertvector(size, Floats) * 0x1p-24f);
  const Ints is_special = (Ints)(exponent == 0x7c00), is_subnormal = (Ints)(exponent == 0);
  const Ints magnitude = (is_special & special) | (is_subnormal & subnormal) | (~(is_special | is_subnormal) & normal);
  return bits_as<Floats>(magnitude | ((raw & 0x8000) << 16));
#endif
}

SPLAT_INLINE Floats load_lanes(const uint8_t* p) {
  return __builtin_convertvector(__builtin_convertvector(load_raw<Bytes>(p), Ints), Floats);
}

// Bytes become value · data_range / 255, rounded as a division would round it. So a float image made by dividing equals
// it. Other types are unchanged.
template <class T>
SPLAT_INLINE Floats in_range(Floats value, float data_range) {
  if constexpr (sizeof(T) > 1) return value;
  const Floats product = value * data_range;
  const Floats quotient = product * (1.0f / 255.0f);
  return quotient + (product - quotient * 255.0f) * (1.0f / 255.0f);
}

// See ShiftRow.
template <class X, class Y>
double shift_row(const char* from1, const char* from2, const float* __restrict__ weight, int64_t count,
                 const Shift& shift, int64_t column, float* __restrict__ sums, float* __restrict__ differences) {
  const ColumnConstants columns = shift.columns.from(column);
  const float scale = shift.scale;
  const Floats first_each = load(columns.each), first_difference = load(columns.difference);
  const X* x = reinterpret_cast<const X*>(from1);
  const Y* y = reinterpret_cast<const Y*>(from2);
  Floats lanes = {};
  auto block = [&](Floats a, Floats b, Floats each, Floats apart, const float* w, float* s, float* d, Ints inside)
                   __attribute__((always_inline)) {
                     a = in_range<X>(a, shift.data_range);
                     b = in_range<Y>(b, shift.data_range);
                     const Floats difference = a - b;
                     store(s, (a * scale - each) + (b * scale - each));
                     store(d, difference * scale - apart);
                     const Floats size = bits_as<Floats>(bits_as<Ints>(difference) & 0x7fffffff & inside);
                     lanes += w ? size * load(w) : size;
                   };
  int64_t j = 0;
  if (columns.mask == 0) {
    for (; j + kLanes <= count; j += kLanes)
      block(load_lanes(x + j), load_lanes(y + j), first_each, first_difference, weight ? weight + j : nullptr, sums + j,
            differences + j, Ints{} - 1);
  } else {
    for (; j + kLanes <= count; j += kLanes)
      block(load_lanes(x + j), load_lanes(y + j), load(columns.each + j), load(columns.difference + j),
            weight ? weight + j : nullptr, sums + j, differences + j, Ints{} - 1);
  }
  if (j < count) {
    X last_x[kLanes] = {};
    Y last_y[kLanes] = {};
    float last_weight[kLanes] = {}, last_s[kLanes], last_d[kLanes];
    int32_t inside[kLanes] = {};
    const int64_t rest = count - j;
    std::memcpy(last_x, x + j, rest * sizeof(X));
    std::memcpy(last_y, y + j, rest * sizeof(Y));
    if (weight) std::memcpy(last_weight, weight + j, rest * sizeof(float));
    for (int64_t k = 0; k < rest; ++k) inside[k] = -1;
    const ColumnConstants here = columns.from(j);
    block(load_lanes(last_x), load_lanes(last_y), load(here.each), load(here.difference),
          weight ? last_weight : nullptr, last_s, last_d, load_raw<Ints>(inside));
    std::memcpy(sums + j, last_s, rest * sizeof(float));
    std::memcpy(differences + j, last_d, rest * sizeof(float));
  }
  return sum_lanes_in_double(lanes);
}

template <class X, class Y>
Reader make_reader() {
  return {shift_row<X, Y>, int64_t(sizeof(X)), int64_t(sizeof(Y))};
}

template <class X>
Reader reader_for(int64_t dtype2) {
  switch (dtype2) {
    case kFloat32: return make_reader<X, float>();
    case kFloat16: return make_reader<X, Half>();
    case kBFloat16: return make_reader<X, BFloat>();
    case kUint8: return make_reader<X, uint8_t>();
    case kRgba: return {shift_row<X, float>, int64_t(sizeof(X)), 4};
  }
  return {};
}

// One colour of kLanes pixels over the background. `shifts` move the colour to the lowest byte.
SPLAT_INLINE Floats over(Ints pixels, Ints shifts, Floats background, float data_range) {
  const Floats colour = __builtin_convertvector((pixels >> shifts) & 255, Floats);
  const Floats alpha = in_range<uint8_t>(__builtin_convertvector((pixels >> 24) & 255, Floats), 1.0f);
  return in_range<uint8_t>(colour, data_range) * alpha + background * (1.0f - alpha);
}

// Loads at most kLanes pixels from `p` on, where only `there` pixels exist.
SPLAT_INLINE Ints load_pixels(const char* p, int64_t there) {
  if (there >= kLanes) return load_raw<Ints>(p);
  int32_t raw[kLanes] = {};
  std::memcpy(raw, p, size_t(4 * there));
  return load_raw<Ints>(raw);
}

// Repeats each pixel for its three colours: lane k has the pixel of element `kFirst` + k.
template <int kFirst, int... k>
SPLAT_INLINE Ints thrice(Ints pixels, std::integer_sequence<int, k...>) {
  return __builtin_shufflevector(pixels, pixels, ((kFirst + k) / 3)...);
}

SPLAT_INLINE Ints thrice(Ints pixels, int64_t first) {
  return first == 0 ? thrice<0>(pixels, Lanes{}) : first == 1 ? thrice<1>(pixels, Lanes{}) : thrice<2>(pixels, Lanes{});
}

// Composites elements of one colour, or of three interleaved colours, kLanes at a time. Element e belongs to pixel e /
// kChannels.
template <int kChannels>
void composite(const char* pixels, int64_t element, int64_t count, const Composite& how, float* __restrict__ colours) {
  // Indexed by the colour of the first lane: the shift of each lane's pixel, and its background.
  Ints shifts[kChannels];
  Floats background[kChannels];
  for (int first = 0; first < kChannels; ++first)
    for (int k = 0; k < kLanes; ++k) {
      const int64_t own = kChannels == 1 ? how.channel : (first + k) % kChannels;
      shifts[first][k] = int32_t(8 * own);
      background[first][k] = how.background[own];
    }
  const int64_t end = (element + count - 1) / kChannels + 1;
  int64_t pixel = element / kChannels, first = element % kChannels;
  for (int64_t j = 0; j < count; j += kLanes) {
    Ints raw = load_pixels(pixels + 4 * pixel, end - pixel);
    if constexpr (kChannels > 1) raw = thrice(raw, first);
    const Floats found = over(raw, shifts[first], background[first], how.data_range);
    if (count - j >= kLanes) store(colours + j, found);
    else std::memcpy(colours + j, &found, size_t(count - j) * sizeof(float));
    pixel += (first + kLanes) / kChannels;
    first = (first + kLanes) % kChannels;
  }
}

}  // namespace

extern "C" void SPLAT_KERNEL(ssim_composite)(const char* pixels, int64_t element, int64_t count, const Composite& how,
                                             float* __restrict__ colours) {
  if (how.channels == 1) composite<1>(pixels, element, count, how, colours);
  else composite<3>(pixels, element, count, how, colours);
}

extern "C" Reader SPLAT_KERNEL(ssim_reader)(int64_t dtype1, int64_t dtype2) {
  switch (dtype1) {
    case kFloat32: return reader_for<float>(dtype2);
    case kFloat16: return reader_for<Half>(dtype2);
    case kBFloat16: return reader_for<BFloat>(dtype2);
    case kUint8: return reader_for<uint8_t>(dtype2);
  }
  return {};
}
