// The operations of kernels that depend on the machine. This file defines them for nvcc and NVRTC;
// ../emulation/emulation.h defines them for the host emulation.
//
// Kernels use these names only, so that one source compiles for all three. Every access to global and shared memory
// goes through load_/store_ functions, because the emulation counts them.
#pragma once
#include "problem.h"

#if defined(SPLAT_EMULATION)
#include "../emulation/emulation.h"
#else

#define SPLAT_DEVICE __device__ __forceinline__
#define SPLAT_SHARED(Type, name, count) __shared__ __align__(16) Type name[count]
#define SPLAT_ENTRY(name, threads, blocks, Argument) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Argument a)

typedef float Real;

SPLAT_DEVICE int thread_index() { return threadIdx.x; }
SPLAT_DEVICE unsigned block_index() { return blockIdx.x; }
SPLAT_DEVICE void barrier() { __syncthreads(); }
// A barrier for `threads` threads of the block. Its warps may reach it at different places of the program, so this is
// not the aligned form: synccheck reports that one as an error there.
SPLAT_DEVICE void barrier_of_roles(int threads) { asm volatile("barrier.sync 1, %0;" ::"r"(threads) : "memory"); }
SPLAT_DEVICE Real shuffle_down(Real v, int lanes) { return __shfl_down_sync(0xffffffffu, v, lanes); }
SPLAT_DEVICE double shuffle_down(double v, int lanes) { return __shfl_down_sync(0xffffffffu, v, lanes); }
// The value of the warp's first thread. The compiler then knows that all threads have the same value.
SPLAT_DEVICE Real broadcast(Real v) { return __shfl_sync(0xffffffffu, v, 0); }

SPLAT_DEVICE Real multiply_add(Real a, Real b, Real c) { return fmaf(a, b, c); }
SPLAT_DEVICE Real reciprocal(Real x) {
  Real r;  // the error is 2^-23 instead of correct rounding, at a fifth of the cost
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
SPLAT_DEVICE Real square_root(Real x) {
  Real r;  // the error is 2^-23 instead of correct rounding, without a branch
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
SPLAT_DEVICE Real absolute(Real a) { return fabsf(a); }
SPLAT_DEVICE Real power_of_two(Real a) { return exp2f(a); }
template <class T>
SPLAT_DEVICE T load_shared(const T* p) {
  return *p;
}
template <class T>
SPLAT_DEVICE void store_shared(T* p, T v) {
  *p = v;
}
SPLAT_DEVICE Real load_global(const float* p) { return __ldg(p); }
SPLAT_DEVICE unsigned load_global(const unsigned short* p) { return __ldg(p); }
SPLAT_DEVICE unsigned load_global(const unsigned char* p) { return __ldg(p); }
SPLAT_DEVICE int load_global(const int* p) { return __ldg(p); }
SPLAT_DEVICE Int64 load_global(const Int64* p) { return __ldg(p); }
// For memory that the same thread writes later. It does not take the read-only path.
SPLAT_DEVICE Real load_own(const float* p) { return *p; }
SPLAT_DEVICE double load_own(const double* p) { return *p; }
// For memory that another block has written. It reads from the cache that all blocks share.
SPLAT_DEVICE Real load_fresh(const float* p) { return __ldcg(p); }
// Increments *count, which wraps to 0 after `last`, and returns the previous count. Threads that arrive later see what
// this thread has written.
SPLAT_DEVICE unsigned arrive(unsigned* count, unsigned last) {
  __threadfence();
  const unsigned before = atomicInc(count, last);
  __threadfence();
  return before;
}
SPLAT_DEVICE void store_global(float* p, Real v) { *p = v; }
SPLAT_DEVICE void store_global(double* p, double v) { *p = v; }
SPLAT_DEVICE void store_global(int* p, int v) { *p = v; }
SPLAT_DEVICE void store_global(Int64* p, Int64 v) { *p = v; }
SPLAT_DEVICE void store_global_pair(float* p, Real a, Real b) { *reinterpret_cast<float2*>(p) = make_float2(a, b); }
SPLAT_DEVICE void store_global(unsigned short* p, unsigned short bits) { *p = bits; }

// p += elements. This is volatile assembly because the compiler otherwise takes up to five instructions, with copies.
template <class T>
SPLAT_DEVICE void advance(T*& p, int elements) {
  static_assert(sizeof(T) == 4, "float");
  asm volatile("mad.wide.s32 %0, %1, 4, %0;" : "+l"(p) : "r"(elements));
}

SPLAT_DEVICE Real from_float16(unsigned bits) {
  Real r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(static_cast<unsigned short>(bits)));
  return r;
}
SPLAT_DEVICE unsigned short to_float16(Real v) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}
SPLAT_DEVICE Real from_bits(unsigned bits) { return __uint_as_float(bits); }
SPLAT_DEVICE unsigned to_bits(Real v) { return __float_as_uint(v); }

// One step of the marching filter, see filter.h. This is volatile assembly because ptxas otherwise renames the state
// around the loop and copies it back: up to 79 moves a row. The order matters: each register is read before it is
// written.
template <int kState>
SPLAT_DEVICE Real filter_step(Real (&state)[kState], Real v, const float* taps) {
  Real out;
  asm volatile("fma.rn.f32 %0, %1, %2, %3;" : "=f"(out) : "f"(v), "f"(taps[0]), "f"(state[0]));
#pragma unroll
  for (int k = 0; k < kState - 1; ++k) {
    const int tap = k + 1 <= kState / 2 ? k + 1 : kState - k - 1;
    asm volatile("fma.rn.f32 %0, %1, %2, %3;" : "=f"(state[k]) : "f"(v), "f"(taps[tap]), "f"(state[k + 1]));
  }
  asm volatile("mul.f32 %0, %1, %2;" : "=f"(state[kState - 1]) : "f"(v), "f"(taps[0]));
  return out;
}

#endif

// The sum over the lanes of a warp. Only the first lane gets it.
template <class T>
SPLAT_DEVICE T warp_sum(T v) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes >>= 1) v = v + shuffle_down(v, lanes);
  return v;
}

// `magnitude`, negated if v is negative; 0 if v is 0.
SPLAT_DEVICE Real times_sign(Real magnitude, Real v) {
  const Real flipped = from_bits(to_bits(magnitude) ^ (to_bits(v) & 0x80000000u));
  return v != 0.f ? flipped : Real(0.f);
}

struct alignas(8) Pair {
  Real x, y;
};
struct alignas(16) Quad {
  Real x, y, z, w;
};
