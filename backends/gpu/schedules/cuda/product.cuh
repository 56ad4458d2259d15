// Products by weights of few bits; see lowbit_product.py for how the weights lie.
namespace pared {

// Two codes at bits 0 and 16 of `word` as two numbers code - zero, exact.
template <class T, int BITS>
__device__ __forceinline__ unsigned codes(unsigned word, unsigned zeros, float zero) {
  constexpr unsigned MASK = ((1u << BITS) - 1) * 0x10001u;
  word &= MASK;
  if constexpr (Real<T>::IS_HALF) {
    // 0x6400 is 1024 in float16, whose last place is 1.
    return subtract_halves(word | 0x64006400u, zeros);
  } else {
    // 0x4b000000 is 2^23 in float32, whose last place is 1; the difference fits bfloat16.
    const float low = __uint_as_float((word & 0xffffu) | 0x4b000000u) - zero;
    const float high = __uint_as_float((word >> 16) | 0x4b000000u) - zero;
    return (bits_of(low) >> 16) | (bits_of(high) & 0xffff0000u);
  }
}

template <class T> struct Zero {
  unsigned pair;
  float single;
  __device__ __forceinline__ explicit Zero(int zero)
      : pair((0x6400u + zero) * 0x10001u), single(8388608.0f + zero) {}
};

/* y[m][n] = activate(sum over k of x[m][k] * (w[n][k] - zero) * scale + bias[n]).

   SPAN: chunks of 32 columns that share a scale within one load. ZERO: the zero point of all, -1: one per block.
   TILES: of 8 rows of data per warp. R: of 16 rows of weights per warp. WK, WR: warps along k and n. */
template <class T, class S, int BITS, int M, int N, int K, int BLOCK, int ZERO, int TILES, int R, int WK, int WR,
          int DEPTH, int ACTIVATION, bool BIAS>
__device__ __forceinline__ void product(const T* __restrict__ x, const uint4* __restrict__ w,
                                        const S* __restrict__ scale, const unsigned char* __restrict__ zero,
                                        const float* __restrict__ bias, T* __restrict__ y) {
  constexpr int CHUNKS = 8 / BITS, STEPS = (K + 32 * CHUNKS - 1) / (32 * CHUNKS), PARTS = Real<T>::PARTS;
  constexpr int BLOCKS = BLOCK ? (K + BLOCK - 1) / BLOCK : 1, PER = BLOCK ? BLOCK / 32 : CHUNKS;
  constexpr int SPAN = PER % CHUNKS == 0 ? CHUNKS : CHUNKS % PER == 0 ? PER : 1;
  constexpr int COUNT = (N + 15) / 16, WORDS = 16 * BITS / 32, PAIRS = 16 / BITS;
  // Sizes that come out even need no questions.
  constexpr bool EVEN_N = N % (16 * R * WR) == 0, EVEN_K = K % (32 * CHUNKS) == 0;
  constexpr bool EVEN_STEPS = STEPS % (WK * DEPTH) == 0;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int part = warp % WK, first = (blockIdx.x * WR + warp / WK) * R, m0 = blockIdx.y * TILES * 8;
  float total[R][TILES][4];
#pragma unroll
  for (int i = 0; i < R * TILES * 4; ++i) total[i / (4 * TILES)][i / 4 % TILES][i % 4] = 0.0f;

  for (int begin = part; begin < STEPS; begin += WK * DEPTH) {
    uint4 loaded[DEPTH][R];
#pragma unroll
    for (int d = 0; d < DEPTH; ++d)
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int step = begin + d * WK;
        loaded[d][r] = (EVEN_STEPS || step < STEPS) && (EVEN_N || first + r < COUNT)
                           ? __ldg(w + ((long long)(first + r) * STEPS + step) * 32 + lane)
                           : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
      const int step = begin + d * WK;
      if (!EVEN_STEPS && step >= STEPS) break;
#pragma unroll
      for (int span = 0; span < CHUNKS; span += SPAN) {
        float sum[R][TILES][4];
#pragma unroll
        for (int i = 0; i < R * TILES * 4; ++i) sum[i / (4 * TILES)][i / 4 % TILES][i % 4] = 0.0f;
        const int block = BLOCK ? min((step * CHUNKS + span) * 32 / (BLOCK ? BLOCK : 1), EVEN_K ? 1 << 30 : BLOCKS - 1) : 0;
#pragma unroll
        for (int chunk = span; chunk < span + SPAN; ++chunk) {
          const int k = (step * CHUNKS + chunk) * 32 + 8 * t;
          unsigned data[TILES][4][PARTS];
#pragma unroll
          for (int i = 0; i < TILES; ++i) {
            const int m = m0 + 8 * i + g;
            if (m < M && (EVEN_K || k < K)) {
              load8<T>(x + (long long)m * K + k, data[i]);
            } else {
#pragma unroll
              for (int e = 0; e < 4 * PARTS; ++e) data[i][e / PARTS][e % PARTS] = 0;
            }
          }
#pragma unroll
          for (int r = 0; r < R; ++r) {
            const int n = (first + r) * 16 + g;
            const Zero<T> upper(ZERO >= 0 ? ZERO : EVEN_N || n < N ? zero[(long long)n * BLOCKS + block] : 0);
            const Zero<T> lower(ZERO >= 0 ? ZERO : EVEN_N || n + 8 < N ? zero[(long long)(n + 8) * BLOCKS + block] : 0);
            const unsigned words[4] = {loaded[d][r].x, loaded[d][r].y, loaded[d][r].z, loaded[d][r].w};
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              unsigned a[4];
#pragma unroll
              for (int p = 0; p < 4; ++p) {
                const int index = j * 4 + p;
                const Zero<T>& z = p % 2 ? lower : upper;
                a[p] = codes<T, BITS>(words[chunk * WORDS + index / PAIRS] >> (BITS * (index % PAIRS)), z.pair,
                                      z.single);
              }
#pragma unroll
              for (int i = 0; i < TILES; ++i)
#pragma unroll
                for (int e = PARTS - 1; e >= 0; --e) mma<T>(sum[r][i], a, data[i][2 * j][e], data[i][2 * j + 1][e]);
            }
          }
        }
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int n = (first + r) * 16 + g;
          float factor[2] = {1.0f, 1.0f};
          if (BLOCKS > 1) {
            factor[0] = EVEN_N || n < N ? Real<S>::read(scale[(long long)n * BLOCKS + block]) : 0.0f;
            factor[1] = EVEN_N || n + 8 < N ? Real<S>::read(scale[(long long)(n + 8) * BLOCKS + block]) : 0.0f;
          }
#pragma unroll
          for (int i = 0; i < TILES; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) total[r][i][e] += sum[r][i][e] * factor[e / 2];
        }
      }
    }
  }
  if (!add_up_warps<WK, WK * WR, R * TILES * 4>(total[0][0])) return;
#pragma unroll
  for (int i = 0; i < R * TILES * 4; ++i) {
    const int r = i / (4 * TILES), tile = i / 4 % TILES, e = i % 4;
    const int n = (first + r) * 16 + g + 8 * (e / 2), m = m0 + 8 * tile + 2 * t + e % 2;
    if (n >= N || m >= M) continue;
    float value = total[r][tile][e];
    if (BLOCKS == 1) value *= Real<S>::read(scale[n]);
    if (BIAS) value += bias[n];
    y[(long long)m * N + n] = Real<T>::write(activate<ACTIVATION>(value));
  }
}

}  // namespace pared
