// Products of bits: bit 1 stands for +1, bit 0 for -1; see lowbit_binary.py.
namespace pared {

// Signs of COUNT rows of C numbers as rows of CW words; a warp makes a word.
template <class T, int COUNT, int C, int CW>
__device__ __forceinline__ void binary_pack(const T* __restrict__ x, unsigned* __restrict__ y) {
  const int lane = threadIdx.x % 32;
  const long long word = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (word >= (long long)COUNT * CW) return;
  const int c = (int)(word % CW) * 32 + lane;
  const bool bit = c < C && Real<T>::read(x[word / CW * C + c]) >= 0.0f;
  const unsigned bits = __ballot_sync(0xffffffffu, bit);
  if (lane == 0) y[word] = bits;
}

template <int V> struct Words { unsigned at[V]; };
template <> struct __align__(16) Words<4> { unsigned at[4]; };
template <> struct __align__(8) Words<2> { unsigned at[2]; };

/* Sums of C products of -1 and +1 per tap of a convolution: one lane per output channel, PIXELS outputs per warp.

   x: [COUNT, H, W, CW] words. w: [KH * KW * CW / V, channels up to a multiple of 32, V] words.
   BITS: a result is the bit `sum >= threshold`; else the number sum * scale + bias, rounded once.
   WK, WP: warps of a block along the words of a sum and along pixels. */
template <class T, bool BITS, bool BIAS, int COUNT, int H, int W, int C, int M, int OH, int OW, int KH, int KW, int SH,
          int SW, int PH, int PW, int DH, int DW, int V, int PIXELS, int WK, int WP>
__device__ __forceinline__ void binary_product(const unsigned* __restrict__ x, const unsigned* __restrict__ w,
                                               const int* __restrict__ threshold, const double* __restrict__ scale,
                                               const double* __restrict__ bias, T* __restrict__ y) {
  constexpr int CW = (C + 31) / 32, GROUPS = CW / V, MW = (M + 31) / 32;
  constexpr long long OUTPUTS = (long long)COUNT * OH * OW;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp % WK, m = blockIdx.y * 32 + lane;
  const long long first = ((long long)blockIdx.x * WP + warp / WK) * PIXELS;
  int differ[PIXELS], valid[PIXELS], row[PIXELS], column[PIXELS];
  const Words<V>* image[PIXELS];
#pragma unroll
  for (int p = 0; p < PIXELS; ++p) {
    const long long output = first + p < OUTPUTS ? first + p : OUTPUTS - 1;
    differ[p] = valid[p] = 0;
    row[p] = (int)(output / OW % OH) * SH - PH;
    column[p] = (int)(output % OW) * SW - PW;
    image[p] = reinterpret_cast<const Words<V>*>(x) + output / (OH * OW) * H * W * GROUPS;
  }
  const Words<V>* weights = reinterpret_cast<const Words<V>*>(w) + m;
  for (int tap = 0; tap < KH * KW; ++tap) {
    bool inside[PIXELS];
    int offset[PIXELS];
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) {
      const int i = row[p] + tap / KW * DH, j = column[p] + tap % KW * DW;
      inside[p] = i >= 0 && i < H && j >= 0 && j < W;
      offset[p] = (i * W + j) * GROUPS;
      valid[p] += inside[p] ? C : 0;
    }
    for (int group = part; group < GROUPS; group += WK) {
      const Words<V> own = weights[(long long)(tap * GROUPS + group) * MW * 32];
#pragma unroll
      for (int p = 0; p < PIXELS; ++p) {
        if (!inside[p]) continue;
        const Words<V> data = image[p][offset[p] + group];
#pragma unroll
        for (int v = 0; v < V; ++v) differ[p] += __popc(own.at[v] ^ data.at[v]);
      }
    }
  }
  if (!add_up_warps<WK, WK * WP, PIXELS>(differ)) return;
#pragma unroll
  for (int p = 0; p < PIXELS; ++p) {
    const long long output = first + p;
    const int sum = valid[p] - 2 * differ[p];
    if constexpr (BITS) {
      const unsigned bits = __ballot_sync(0xffffffffu, m < M && sum >= threshold[m < M ? m : 0]);
      if (lane == 0 && output < OUTPUTS) reinterpret_cast<unsigned*>(y)[output * MW + blockIdx.y] = bits;
    } else if (m < M && output < OUTPUTS) {
      const double real = sum * scale[m] + (BIAS ? bias[m] : 0.0);
      y[output * M + m] = Real<T>::write((float)real);
    }
  }
}

}  // namespace pared
