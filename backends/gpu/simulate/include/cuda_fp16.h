#pragma once
#include "sim_float16.h"

#define SIM_T __half
#define SIM_T2 __half2
#define SIM_BITS sim_half_bits
#define SIM_VALUE sim_half_value
#include "sim_half_type.inc"
using half = __half;
using half2 = __half2;

static inline __half __float2half(float v) { return __half(v); }
static inline __half __float2half_rn(float v) { return __half(v); }
static inline __half __double2half(double v) { return __half(v); }
static inline float __half2float(__half h) { return h; }
static inline __half __int2half_rn(int v) { return __half(v); }
static inline int __half2int_rn(__half h) { return __float2int_rn(h); }
static inline int __half2int_rz(__half h) { return __float2int_rz(h); }
static inline unsigned short __half_as_ushort(__half h) { return h.__x; }
static inline short __half_as_short(__half h) { return short(h.__x); }
static inline __half __ushort_as_half(unsigned short bits) { return sim_cast<__half>(bits); }
static inline __half __short_as_half(short bits) { return sim_cast<__half>(bits); }
static inline __half2 make_half2(__half x, __half y) { return {x, y}; }
static inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
static inline __half2 __half2half2(__half x) { return {x, x}; }
static inline __half2 __float2half2_rn(float v) { return {v, v}; }
static inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
static inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
static inline float2 __half22float2(__half2 v) { return {float(v.x), float(v.y)}; }
