// CUDA's vector types with their sizes and alignments.
#pragma once

#define SIM_VECTOR(T, name, a1, a2, a3, a4)                                                \
  struct alignas(a1) name##1 { T x; };                                                      \
  struct alignas(a2) name##2 { T x, y; };                                                   \
  struct alignas(a3) name##3 { T x, y, z; };                                                \
  struct alignas(a4) name##4 { T x, y, z, w; };                                             \
  static inline name##1 make_##name##1(T x) { return {x}; }                                 \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                         \
  static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                 \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

SIM_VECTOR(signed char, char, 1, 2, 1, 4)
SIM_VECTOR(unsigned char, uchar, 1, 2, 1, 4)
SIM_VECTOR(short, short, 2, 4, 2, 8)
SIM_VECTOR(unsigned short, ushort, 2, 4, 2, 8)
SIM_VECTOR(int, int, 4, 8, 4, 16)
SIM_VECTOR(long, long, 8, 16, 8, 16)
SIM_VECTOR(unsigned long, ulong, 8, 16, 8, 16)
SIM_VECTOR(long long, longlong, 8, 16, 8, 16)
SIM_VECTOR(unsigned long long, ulonglong, 8, 16, 8, 16)
SIM_VECTOR(float, float, 4, 8, 4, 16)
SIM_VECTOR(double, double, 8, 16, 8, 16)
#undef SIM_VECTOR

struct alignas(4) uint1 { unsigned x; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline uint1 make_uint1(unsigned x) { return {x}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
