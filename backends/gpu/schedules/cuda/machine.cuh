/* What the kernels written by hand stand on: real types, and matrix products of a warp.

   A warp's product is `mma.sync.m16n8k16`: c (16 x 8, float32) += a (16 x 16) * b (16 x 8), both of float16 or
   bfloat16. Which lane holds what (PTX ISA, "Matrix Fragments for mma.m16n8k16"), with g = lane / 4, t = lane % 4:

       a[0..3]: rows g, g + 8, g, g + 8; columns 2t, 2t, 2t + 8, 2t + 8 and the next one
       b[0..1]: rows 2t, 2t + 8 and the next one; column g
       c[0..3]: rows g, g, g + 8, g + 8; columns 2t, 2t + 1, 2t, 2t + 1

   float32 goes through the same units without loss: a number is the sum of three bfloat16 of 8 bits each, exactly
   (by truncation), and a product of two such sums keeps the terms above 2^-24. */
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#ifndef PARED_MACHINE
#define PARED_MACHINE
namespace pared {

__device__ __forceinline__ unsigned bits_of(float x) { return __float_as_uint(x); }

template <class T> struct Real;

template <> struct Real<__half> {
  static constexpr int PARTS = 1;
  static constexpr bool IS_HALF = true;
  static __device__ __forceinline__ float read(__half x) { return __half2float(x); }
  static __device__ __forceinline__ __half write(float x) { return __float2half_rn(x); }
  static __device__ __forceinline__ unsigned pair(float low, float high) {
    return (unsigned)__half_as_ushort(__float2half_rn(low)) |
           ((unsigned)__half_as_ushort(__float2half_rn(high)) << 16);
  }
};

template <> struct Real<__nv_bfloat16> {
  static constexpr int PARTS = 1;
  static constexpr bool IS_HALF = false;
  static __device__ __forceinline__ float read(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __forceinline__ __nv_bfloat16 write(float x) { return __float2bfloat16_rn(x); }
  static __device__ __forceinline__ unsigned pair(float low, float high) {
    return (unsigned)__bfloat16_as_ushort(__float2bfloat16_rn(low)) |
           ((unsigned)__bfloat16_as_ushort(__float2bfloat16_rn(high)) << 16);
  }
};

template <> struct Real<float> : Real<__nv_bfloat16> {
  static constexpr int PARTS = 3;
  static __device__ __forceinline__ float read(float x) { return x; }
  static __device__ __forceinline__ float write(float x) { return x; }
};

// Two numbers as registers of two 16-bit numbers each; the parts of a float32 add up to it exactly.
template <class T>
__device__ __forceinline__ void split(float low, float high, unsigned (&out)[Real<T>::PARTS]) {
  if constexpr (Real<T>::PARTS == 1) {
    out[0] = Real<T>::pair(low, high);
  } else {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const unsigned a = bits_of(low) & 0xffff0000u, b = bits_of(high) & 0xffff0000u;
      out[i] = (a >> 16) | b;
      // What is left of an infinity is 0, not NaN.
      low = __uint_as_float(a) == low ? 0.0f : low - __uint_as_float(a);
      high = __uint_as_float(b) == high ? 0.0f : high - __uint_as_float(b);
    }
  }
}

// Eight numbers behind each other as four pairs; `data` lies on a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ void load8(const T* data, unsigned (&out)[4][Real<T>::PARTS]) {
  if constexpr (sizeof(T) == 2) {
    const uint4 words = *reinterpret_cast<const uint4*>(data);
    out[0][0] = words.x, out[1][0] = words.y, out[2][0] = words.z, out[3][0] = words.w;
  } else {
    const float4 a = reinterpret_cast<const float4*>(data)[0], b = reinterpret_cast<const float4*>(data)[1];
    split<T>(a.x, a.y, out[0]), split<T>(a.z, a.w, out[1]);
    split<T>(b.x, b.y, out[2]), split<T>(b.z, b.w, out[3]);
  }
}

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (Real<T>::IS_HALF) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Two float16 less two others.
__device__ __forceinline__ unsigned subtract_halves(unsigned a, unsigned b) {
  unsigned out;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}

/* Adds up what WK warps behind each other have, in their order; true in the first of them, which has the sums then.

   WARPS: of the block, all of which come here. COUNT: numbers of a lane. */
template <int WK, int WARPS, int COUNT, class T> __device__ __forceinline__ bool add_up_warps(T* own) {
  if constexpr (WK > 1) {
    __shared__ T shared[WARPS][COUNT][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) shared[warp][i][lane] = own[i];
    __syncthreads();
    if (warp % WK) return false;
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      for (int p = 1; p < WK; ++p) own[i] += shared[warp + p][i][lane];
  }
  return true;
}

// 0: nothing, 1: Relu, 2: Gelu by erf, 3: Gelu by tanh.
template <int KIND> __device__ __forceinline__ float activate(float x) {
  if constexpr (KIND == 1) return x < 0.0f ? 0.0f : x;
  if constexpr (KIND == 2) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
  if constexpr (KIND == 3)
    return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
  return x;
}

}  // namespace pared
#endif
