// Products of int8 data and weights of 4 bits, both in blocks with a scale each; see lowbit_blocks.py.
namespace pared {

__device__ __forceinline__ void mma_bytes(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* y[m][n] = sum over blocks of (sum over the block of q[m][k] * w[n][k]) * (scale_w[n][block] * scale_q[m][block])
   + bias[n]; the inner sum is exact. A code stands in the upper half of its byte: products are 16 times too large,
   and shifted back. TILES: of 8 rows of data per warp. WK, WR: warps along k and n. */
template <int M, int N, int K, int BLOCK, int TILES, int WK, int WR, bool BIAS>
__device__ __forceinline__ void block_product(const signed char* __restrict__ q, const float* __restrict__ scale_q,
                                              const uint4* __restrict__ w, const float* __restrict__ scale_w,
                                              const float* __restrict__ bias, float* __restrict__ y) {
  constexpr int BLOCKS = K / BLOCK, CHUNKS = K / 32, PER = BLOCK / 32, COUNT = (N + 15) / 16, LOADS = (CHUNKS + 1) / 2;
  // What a warp takes at once: whole blocks, whole loads.
  constexpr int GROUP = PER % 2 ? 2 * PER : PER, GROUPS = (CHUNKS + GROUP - 1) / GROUP;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int part = warp % WK, tile = blockIdx.x * WR + warp / WK, m0 = blockIdx.y * TILES * 8, n = tile * 16 + g;
  float total[TILES][4];
#pragma unroll
  for (int i = 0; i < TILES * 4; ++i) total[i / 4][i % 4] = 0.0f;

  for (int group = part; group < GROUPS; group += WK) {
    uint4 loaded[GROUP / 2];
#pragma unroll
    for (int i = 0; i < GROUP / 2; ++i) {
      const int load = group * (GROUP / 2) + i;
      loaded[i] = load < LOADS && tile < COUNT ? __ldg(w + ((long long)tile * LOADS + load) * 32 + lane)
                                               : make_uint4(0, 0, 0, 0);
    }
    int sum[TILES][4];
#pragma unroll
    for (int c = 0; c < GROUP; ++c) {
      const int chunk = group * GROUP + c, block = chunk / PER;
      if (c % PER == 0) {
#pragma unroll
        for (int i = 0; i < TILES * 4; ++i) sum[i / 4][i % 4] = 0;
      }
      const unsigned first = c % 2 ? loaded[c / 2].z : loaded[c / 2].x, second = c % 2 ? loaded[c / 2].w : loaded[c / 2].y;
      const unsigned a[4] = {first << 4 & 0xf0f0f0f0u, first & 0xf0f0f0f0u, second << 4 & 0xf0f0f0f0u,
                             second & 0xf0f0f0f0u};
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
        const int m = m0 + 8 * i + g;
        uint2 data = make_uint2(0, 0);
        if (m < M && chunk < CHUNKS)
          data = *reinterpret_cast<const uint2*>(q + (long long)m * K + chunk * 32 + 8 * t);
        mma_bytes(sum[i], a, data.x, data.y);
      }
      if (c % PER == PER - 1 && block < BLOCKS) {
#pragma unroll
        for (int i = 0; i < TILES * 4; ++i) {
          const int e = i % 4, row = n + 8 * (e / 2), m = m0 + 8 * (i / 4) + 2 * t + e % 2;
          if (row < N && m < M) {
            const float factor = scale_w[(long long)row * BLOCKS + block] * scale_q[(long long)m * BLOCKS + block];
            total[i / 4][e] = fmaf((float)(sum[i / 4][e] >> 4), factor, total[i / 4][e]);
          }
        }
      }
    }
  }
  if (!add_up_warps<WK, WK * WR, TILES * 4>(total[0])) return;
#pragma unroll
  for (int i = 0; i < TILES * 4; ++i) {
    const int e = i % 4, row = n + 8 * (e / 2), m = m0 + 8 * (i / 4) + 2 * t + e % 2;
    if (row < N && m < M) y[(long long)m * N + row] = BIAS ? total[i / 4][e] + bias[row] : total[i / 4][e];
  }
}

}  // namespace pared
