// The device side of the emulation: defines for g++ and clang++ what ../cuda/device.h defines for nvcc.
#pragma once
#include <cmath>
#include <cstring>

#include "fibers.h"

#define SPLAT_DEVICE inline
// The lambda's static variable gives every declaration (and template instance) an address that identifies it.
#define SPLAT_SHARED(Type, name, count)                    \
  Type* const name = static_cast<Type*>(emulation::shared( \
      [] {                                                 \
        static const char site = 0;                        \
        return &site;                                      \
      }(),                                                 \
      sizeof(Type) * (count)))
#define SPLAT_ENTRY(name, threads, blocks, Argument) static void name(const Argument& a)

#if defined(SPLAT_COUNT)
#include "counting.h"
#else
typedef float Real;

namespace emulation {
inline void count_barrier() {}
inline void count_shared(const void*, int, bool, int) {}
inline void count_global(int, bool) {}
}  // namespace emulation

SPLAT_DEVICE Real multiply_add(Real a, Real b, Real c) { return std::fmaf(a, b, c); }
SPLAT_DEVICE Real reciprocal(Real x) { return 1.f / x; }
SPLAT_DEVICE Real square_root(Real x) { return std::sqrt(x); }
SPLAT_DEVICE Real absolute(Real a) { return std::fabs(a); }
SPLAT_DEVICE Real power_of_two(Real a) { return std::exp2(a); }
SPLAT_DEVICE float plain_value(Real a) { return a; }
#endif

SPLAT_DEVICE int thread_index() { return emulation::thread_index(); }
SPLAT_DEVICE unsigned block_index() { return emulation::block_index(); }
SPLAT_DEVICE void barrier(int line = __builtin_LINE()) {
  emulation::count_barrier();
  emulation::wait(emulation::Wait::kBlock, line);
}
SPLAT_DEVICE void barrier_of_roles(int) {
  emulation::count_barrier();
  emulation::wait(emulation::Wait::kBlock, -2);
}
template <class T>
SPLAT_DEVICE T shuffle_down(T v, int lanes) {
  emulation::exchange(&v, sizeof v, thread_index() + lanes);
  return v;
}
template <class T>
SPLAT_DEVICE T broadcast(T v) {
  emulation::exchange(&v, sizeof v, thread_index() & ~31);
  return v;
}

template <class T>
SPLAT_DEVICE T load_shared(const T* p, int line = __builtin_LINE()) {
  emulation::count_shared(p, sizeof(T), false, line);
  return *p;
}
template <class T>
SPLAT_DEVICE void store_shared(T* p, T v, int line = __builtin_LINE()) {
  emulation::count_shared(p, sizeof(T), true, line);
  *p = v;
}
SPLAT_DEVICE Real load_global(const float* p) {
  emulation::count_global(4, false);
  return *p;
}
SPLAT_DEVICE Real load_own(const float* p) { return load_global(p); }
SPLAT_DEVICE double load_own(const double* p) {
  emulation::count_global(8, false);
  return *p;
}
SPLAT_DEVICE Real load_fresh(const float* p) { return load_global(p); }
SPLAT_DEVICE unsigned arrive(unsigned* count, unsigned last) {
  const unsigned before = *count;
  *count = before >= last ? 0 : before + 1;
  return before;
}
SPLAT_DEVICE unsigned load_global(const unsigned short* p) {
  emulation::count_global(2, false);
  return *p;
}
SPLAT_DEVICE unsigned load_global(const unsigned char* p) {
  emulation::count_global(1, false);
  return *p;
}
SPLAT_DEVICE int load_global(const int* p) {
  emulation::count_global(4, false);
  return *p;
}
SPLAT_DEVICE Int64 load_global(const Int64* p) {
  emulation::count_global(8, false);
  return *p;
}
SPLAT_DEVICE void store_global(int* p, int v) {
  emulation::count_global(4, true);
  *p = v;
}
SPLAT_DEVICE void store_global(Int64* p, Int64 v) {
  emulation::count_global(8, true);
  *p = v;
}
SPLAT_DEVICE void store_global(double* p, double v) {
  emulation::count_global(8, true);
  *p = v;
}
SPLAT_DEVICE void store_global(float* p, Real v) {
  emulation::count_global(4, true);
  *p = plain_value(v);
}
SPLAT_DEVICE void store_global_pair(float* p, Real a, Real b) {
  emulation::count_global(8, true);
  p[0] = plain_value(a);
  p[1] = plain_value(b);
}
SPLAT_DEVICE void store_global(unsigned short* p, unsigned short bits) {
  emulation::count_global(2, true);
  *p = bits;
}

template <class T>
SPLAT_DEVICE void advance(T*& p, int elements) {
  p += elements;
}

SPLAT_DEVICE unsigned to_bits(Real v) {
  const float plain = plain_value(v);
  unsigned bits;
  std::memcpy(&bits, &plain, sizeof bits);
  return bits;
}
SPLAT_DEVICE Real from_bits(unsigned bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
SPLAT_DEVICE Real from_float16(unsigned bits) {
  const unsigned short half_bits = static_cast<unsigned short>(bits);
  _Float16 v;
  std::memcpy(&v, &half_bits, sizeof v);
  return static_cast<float>(v);
}
SPLAT_DEVICE unsigned short to_float16(Real v) {
  const _Float16 half = static_cast<_Float16>(plain_value(v));
  unsigned short bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}

// One step of the marching filter, see ../cuda/filter.h.
template <int kState>
SPLAT_DEVICE Real filter_step(Real (&state)[kState], Real v, const float* taps) {
  const Real out = multiply_add(taps[0], v, state[0]);
  for (int k = 0; k < kState - 1; ++k) {
    state[k] = multiply_add(taps[k + 1 <= kState / 2 ? k + 1 : kState - k - 1], v, state[k + 1]);
  }
  state[kState - 1] = v * taps[0];
  return out;
}
