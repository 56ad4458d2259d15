// Products by weights with at most two of four in a row not zero (2:4); see lowbit_sparse.py.
namespace pared {

template <class T> struct Kept {
  typedef uint4 Load;
  typedef float Sum;
};
template <> struct Kept<signed char> {
  typedef uint2 Load;
  typedef int Sum;
};

// Two kept numbers at their places among four; `places`: 2 bits each.
__device__ __forceinline__ void spread_halves(unsigned kept, unsigned places, unsigned& low, unsigned& high) {
  const unsigned long long wide = (unsigned long long)(kept & 0xffffu) << (16 * (places & 3)) |
                                  (unsigned long long)(kept >> 16) << (16 * (places >> 2 & 3));
  low = (unsigned)wide;
  high = (unsigned)(wide >> 32);
}
__device__ __forceinline__ unsigned spread_bytes(unsigned kept, unsigned places) {
  return (kept & 0xffu) << (8 * (places & 3)) | (kept >> 8 & 0xffu) << (8 * (places >> 2 & 3));
}

__device__ __forceinline__ void mma_signed(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* y[m][n] = activate(sum over k of x[m][k] * w[n][k] + bias[n]); bytes: y is the sum itself, int32.

   w: [tile of 16 rows][chunk of 32 columns][lane], places: [tile][four chunks][lane]. TILES: of 8 rows of data. */
template <class T, class Y, int M, int N, int K, int TILES, int WK, int WR, int ACTIVATION, bool BIAS>
__device__ __forceinline__ void sparse_product(const T* __restrict__ x, const typename Kept<T>::Load* __restrict__ w,
                                               const uint2* __restrict__ places, const float* __restrict__ bias,
                                               Y* __restrict__ y) {
  typedef typename Kept<T>::Load Load;
  typedef typename Kept<T>::Sum Sum;
  constexpr int QUADS = (K + 127) / 128, COUNT = (N + 15) / 16;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int part = warp % WK, tile = blockIdx.x * WR + warp / WK, m0 = blockIdx.y * TILES * 8;
  Sum total[TILES][4];
#pragma unroll
  for (int i = 0; i < TILES * 4; ++i) total[i / 4][i % 4] = 0;

  if (tile < COUNT) {
    for (int quad = part; quad < QUADS; quad += WK) {
      Load loaded[4];
      const long long at = (long long)tile * QUADS + quad;
#pragma unroll
      for (int c = 0; c < 4; ++c) loaded[c] = __ldg(w + (at * 4 + c) * 32 + lane);
      const uint2 both = __ldg(places + at * 32 + lane);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        // 4 bits for each of: row g, columns 0 to 3 and 4 to 7; row g + 8 likewise.
        const unsigned where = (c < 2 ? both.x : both.y) >> (16 * (c % 2));
        const int k = (quad * 4 + c) * 32 + 8 * t;
        if constexpr (sizeof(T) == 1) {
          const unsigned a[4] = {spread_bytes(loaded[c].x, where), spread_bytes(loaded[c].y, where >> 8),
                                 spread_bytes(loaded[c].x >> 16, where >> 4),
                                 spread_bytes(loaded[c].y >> 16, where >> 12)};
#pragma unroll
          for (int i = 0; i < TILES; ++i) {
            const int m = m0 + 8 * i + g;
            uint2 data = make_uint2(0, 0);
            if (m < M && k < K) data = *reinterpret_cast<const uint2*>(x + (long long)m * K + k);
            mma_signed(total[i], a, data.x, data.y);
          }
        } else {
          unsigned a[2][4];
          spread_halves(loaded[c].x, where, a[0][0], a[0][2]);
          spread_halves(loaded[c].y, where >> 4, a[1][0], a[1][2]);
          spread_halves(loaded[c].z, where >> 8, a[0][1], a[0][3]);
          spread_halves(loaded[c].w, where >> 12, a[1][1], a[1][3]);
#pragma unroll
          for (int i = 0; i < TILES; ++i) {
            const int m = m0 + 8 * i + g;
            uint4 data = make_uint4(0, 0, 0, 0);
            if (m < M && k < K) data = *reinterpret_cast<const uint4*>(x + (long long)m * K + k);
            mma<T>(total[i], a[0], data.x, data.y);
            mma<T>(total[i], a[1], data.z, data.w);
          }
        }
      }
    }
  }
  if (!add_up_warps<WK, WK * WR, TILES * 4>(total[0])) return;
#pragma unroll
  for (int i = 0; i < TILES * 4; ++i) {
    const int e = i % 4, n = tile * 16 + g + 8 * (e / 2), m = m0 + 8 * (i / 4) + 2 * t + e % 2;
    if (n >= N || m >= M) continue;
    if constexpr (sizeof(T) == 1)
      y[(long long)m * N + n] = total[i / 4][e];
    else
      y[(long long)m * N + n] = Real<T>::write(activate<ACTIVATION>(BIAS ? total[i / 4][e] + bias[n] : total[i / 4][e]));
  }
}

}  // namespace pared
