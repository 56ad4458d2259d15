// CUDA C++ for a host compiler: qualifiers, built-in variables, functions of threads, warps and blocks.
// Names and meanings: CUDA C++ Programming Guide 12. Included before everything else.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <math.h>
#include <sys/types.h>
#include <type_traits>
#include <utility>

#include "sim_runtime.h"
#include "sim_vector.h"

#define __CUDACC__ 1
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 8
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __builtin_align__(n) alignas(n)

static const int warpSize = 32;

// --- one thread ------------------------------------------------------------------------------------------
template <class To, class From>
static inline To sim_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}
static inline float __int_as_float(int v) { return sim_cast<float>(v); }
static inline float __uint_as_float(unsigned v) { return sim_cast<float>(v); }
static inline int __float_as_int(float v) { return sim_cast<int>(v); }
static inline unsigned __float_as_uint(float v) { return sim_cast<unsigned>(v); }
static inline double __longlong_as_double(long long v) { return sim_cast<double>(v); }
static inline long long __double_as_longlong(double v) { return sim_cast<long long>(v); }

#define SIM_ORDER(T)                                       \
  static inline T max(T a, T b) { return a > b ? a : b; } \
  static inline T min(T a, T b) { return a < b ? a : b; }
SIM_ORDER(int)
SIM_ORDER(unsigned)
SIM_ORDER(long)
SIM_ORDER(unsigned long)
SIM_ORDER(long long)
SIM_ORDER(unsigned long long)
#undef SIM_ORDER
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(float a, double b) { return fmax(a, b); }
static inline double max(double a, float b) { return fmax(a, b); }
static inline double min(float a, double b) { return fmin(a, b); }
static inline double min(double a, float b) { return fmin(a, b); }
static inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
static inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
static inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
static inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }

// Rounded before anything else sees it: never part of a fused multiply-add.
template <class T>
static inline T sim_rounded(T value) {
  volatile T kept = value;
  return kept;
}
static inline float __fadd_rn(float a, float b) { return sim_rounded(a + b); }
static inline float __fsub_rn(float a, float b) { return sim_rounded(a - b); }
static inline float __fmul_rn(float a, float b) { return sim_rounded(a * b); }
static inline float __fdiv_rn(float a, float b) { return sim_rounded(a / b); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
static inline float rsqrtf(float a) { return float(1.0 / sqrt(double(a))); }
static inline double rsqrt(double a) { return 1.0 / sqrt(a); }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf(a) expf(a)
#define __exp10f(a) powf(10.0f, a)
#define __logf(a) logf(a)
#define __log2f(a) log2f(a)
#define __log10f(a) log10f(a)
#define __powf(a, b) powf(a, b)
#define __sinf(a) sinf(a)
#define __cosf(a) cosf(a)
#define __tanf(a) tanf(a)
#define __tanhf(a) tanhf(a)
static inline float __saturatef(float a) { return fminf(fmaxf(a, 0.0f), 1.0f); }

// The device saturates where the host's conversions do not.
template <class To>
static inline To sim_saturated(double value, double low, double high) {
  if (std::isnan(value)) return 0;
  return value <= low ? To(low) : value >= high ? std::is_signed<To>::value ? To(~(To(1) << (8 * sizeof(To) - 1))) : To(~To(0)) : To(value);
}
static inline int __float2int_rn(float a) { return sim_saturated<int>(rint(double(a)), -2147483648.0, 2147483648.0); }
static inline int __float2int_rz(float a) { return sim_saturated<int>(trunc(double(a)), -2147483648.0, 2147483648.0); }
static inline int __float2int_rd(float a) { return sim_saturated<int>(floor(double(a)), -2147483648.0, 2147483648.0); }
static inline int __float2int_ru(float a) { return sim_saturated<int>(ceil(double(a)), -2147483648.0, 2147483648.0); }
static inline unsigned __float2uint_rn(float a) { return sim_saturated<unsigned>(rint(double(a)), 0.0, 4294967296.0); }
static inline unsigned __float2uint_rz(float a) { return sim_saturated<unsigned>(trunc(double(a)), 0.0, 4294967296.0); }
static inline float __int2float_rn(int a) { return float(a); }
static inline float __uint2float_rn(unsigned a) { return float(a); }

static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
static inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i);
  return r;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned select) {
  uint64_t both = uint64_t(b) << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    unsigned pick = select >> (4 * i), byte = unsigned(both >> (8 * (pick & 7))) & 0xFF;
    r |= (pick & 8 ? (byte & 0x80 ? 0xFFu : 0u) : byte) << (8 * i);
  }
  return r;
}
static inline int __mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
static inline int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
  return unsigned(((uint64_t(hi) << 32 | lo) << (n & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
  return unsigned((uint64_t(hi) << 32 | lo) >> (n & 31));
}

template <class A, class B, class C>
static inline C sim_dot4(unsigned a, unsigned b, C sum) {
  for (int i = 0; i < 4; ++i) sum += C(A(a >> (8 * i))) * C(B(b >> (8 * i)));
  return sum;
}
static inline int __dp4a(int a, int b, int c) { return sim_dot4<int8_t, int8_t>(a, b, c); }
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return sim_dot4<uint8_t, uint8_t>(a, b, c); }
static inline int __dp4a(char4 a, char4 b, int c) { return __dp4a(sim_cast<int>(a), sim_cast<int>(b), c); }
static inline unsigned __dp4a(uchar4 a, uchar4 b, unsigned c) {
  return __dp4a(sim_cast<unsigned>(a), sim_cast<unsigned>(b), c);
}

template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcg(const T *p) { return *p; }
template <class T> static inline T __ldca(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline void __stcs(T *p, T v) { *p = v; }
template <class T> static inline void __stcg(T *p, T v) { *p = v; }
static inline size_t __cvta_generic_to_shared(const void *p) { return sim_shared_address(p); }
static inline void *__cvta_shared_to_generic(size_t a) { return sim_shared_pointer(unsigned(a)); }

// --- atomics: one host thread runs everything ------------------------------------------------------------
#define SIM_ATOMIC(name, expression)          \
  template <class T, class U>                 \
  static inline T name(T *at, U given) {      \
    T old = *at, v = T(given);                \
    *at = T(expression);                      \
    return old;                               \
  }
SIM_ATOMIC(atomicAdd, old + v)
SIM_ATOMIC(atomicSub, old - v)
SIM_ATOMIC(atomicMax, old > v ? old : v)
SIM_ATOMIC(atomicMin, old < v ? old : v)
SIM_ATOMIC(atomicAnd, old & v)
SIM_ATOMIC(atomicOr, old | v)
SIM_ATOMIC(atomicXor, old ^ v)
SIM_ATOMIC(atomicExch, v)
#undef SIM_ATOMIC
template <class T>
static inline T atomicCAS(T *at, T compare, T value) {
  T old = *at;
  if (old == compare) *at = value;
  return old;
}

#include "sim_warp.h"
