/* softmax(q * k^T * scale + mask) * v, a block of rows of q at a time, without the matrix of scores in memory.

   Dao, "FlashAttention-2" (arXiv 2307.08691): keys come in tiles; each row keeps its largest score so far and the
   sum of exponentials below it, in float32, and what it has added up is scaled down when the largest grows. */
namespace pared {

// Elements from one index to the next, of batch, head and row (and column) of every operand.
struct Strides {
  long long qb, qh, ql, kb, kh, kl, vb, vh, vl, ob, oh, ol, mb, mh, ml, ms, cb, ch, cl, cs;
};

// 16 rows and 8 columns of a tile [key][column] as b of a product.
template <class T>
__device__ __forceinline__ void load_values(const T* tile, int pitch, unsigned (&low)[Real<T>::PARTS],
                                            unsigned (&high)[Real<T>::PARTS]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if constexpr (sizeof(T) == 2) {
    unsigned address;
    asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }"
        : "=r"(address)
        : "l"(tile + lane % 16 * pitch));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(low[0]), "=r"(high[0])
                 : "r"(address));
  } else {
    const T* from = tile + 2 * t * pitch + g;
    split<T>(from[0], from[pitch], low);
    split<T>(from[8 * pitch], from[9 * pitch], high);
  }
}

template <class T>
__device__ __forceinline__ void load_pair(const T* from, unsigned (&out)[Real<T>::PARTS]) {
  if constexpr (sizeof(T) == 2)
    out[0] = *reinterpret_cast<const unsigned*>(from);
  else
    split<T>(from[0], from[1], out);
}

// Rows of KEYS x WIDTH numbers to shared memory, zeros behind the last.
template <class T, int KEYS, int WIDTH, int PITCH, int THREADS>
__device__ __forceinline__ void stage(T* tile, const T* from, long long stride, int rows) {
  constexpr int VECTOR = 16 / sizeof(T), ACROSS = WIDTH / VECTOR;
  for (int i = threadIdx.x; i < KEYS * ACROSS; i += THREADS) {
    const int row = i / ACROSS, column = i % ACROSS * VECTOR;
    uint4 word = make_uint4(0, 0, 0, 0);
    if (row < rows) word = *reinterpret_cast<const uint4*>(from + row * stride + column);
    *reinterpret_cast<uint4*>(tile + row * PITCH + column) = word;
  }
}

// Sums of products of all parts that count, the smallest first.
template <class T>
__device__ __forceinline__ void mma_parts(float (&c)[4], const unsigned (&a)[Real<T>::PARTS][4],
                                          const unsigned (&low)[Real<T>::PARTS], const unsigned (&high)[Real<T>::PARTS]) {
#pragma unroll
  for (int order = Real<T>::PARTS - 1; order >= 0; --order)
#pragma unroll
    for (int i = 0; i <= order; ++i) mma<T>(c, a[i], low[order - i], high[order - i]);
}

/* L rows of q, S of k and v; D columns of q and k, DV of v. KEYS: rows of k in a tile. A warp has 16 rows of q.

   MASK: 0: none, 1: added before the choice, 2: behind it. CHOICE: 0: none, 1: scores stay where `choice` is true,
   2: where it is false; elsewhere they are `fill`. SAFE: weights of a row without a score are 0, not NaN. */
template <class T, int L, int S, int D, int DV, int KEYS, int WARPS, int MASK, int CHOICE, bool SAFE>
__device__ __forceinline__ void attention(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                                          const T* __restrict__ mask, const unsigned char* __restrict__ choice,
                                          T* __restrict__ out, float scale, float fill, const Strides by) {
  constexpr int PARTS = Real<T>::PARTS, PAD = 16 / sizeof(T), PITCH = D + PAD, PITCH_V = DV + PAD;
  constexpr float LOG2E = 1.4426950408889634f;
  __shared__ __align__(16) T keys[KEYS * PITCH];
  __shared__ __align__(16) T values[KEYS * PITCH_V];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int row = (blockIdx.x * WARPS + warp) * 16 + g;
  q += blockIdx.z * by.qb + blockIdx.y * by.qh;
  k += blockIdx.z * by.kb + blockIdx.y * by.kh;
  v += blockIdx.z * by.vb + blockIdx.y * by.vh;
  out += blockIdx.z * by.ob + blockIdx.y * by.oh;
  if (MASK) mask += blockIdx.z * by.mb + blockIdx.y * by.mh;
  if (CHOICE) choice += blockIdx.z * by.cb + blockIdx.y * by.ch;

  unsigned own[D / 16][PARTS][4];
#pragma unroll
  for (int i = 0; i < D / 4; ++i) {
    const int step = i / 4, place = i % 4, line = row + 8 * (place % 2);
    unsigned pair[PARTS];
    if (line < L) {
      load_pair<T>(q + line * by.ql + 16 * step + 8 * (place / 2) + 2 * t, pair);
    } else {
#pragma unroll
      for (int e = 0; e < PARTS; ++e) pair[e] = 0;
    }
#pragma unroll
    for (int e = 0; e < PARTS; ++e) own[step][e][place] = pair[e];
  }

  float sum[DV / 8][4], largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < DV / 2; ++i) sum[i / 4][i % 4] = 0.0f;

  for (int start = 0; start < S; start += KEYS) {
    __syncthreads();
    stage<T, KEYS, D, PITCH, 32 * WARPS>(keys, k + start * by.kl, by.kl, S - start);
    stage<T, KEYS, DV, PITCH_V, 32 * WARPS>(values, v + start * by.vl, by.vl, S - start);
    __syncthreads();

    float score[KEYS / 8][4];
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) score[n][e] = 0.0f;
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        unsigned low[PARTS], high[PARTS];
        load_pair<T>(keys + (8 * n + g) * PITCH + 16 * step + 2 * t, low);
        load_pair<T>(keys + (8 * n + g) * PITCH + 16 * step + 2 * t + 8, high);
        mma_parts<T>(score[n], own[step], low, high);
      }
    }
    float found[2] = {largest[0], largest[1]};
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) {
      const int n = i / 4, e = i % 4, key = start + 8 * n + 2 * t + e % 2, line = row + 8 * (e / 2);
      float value = score[n][e] * scale;
      const float added = MASK && key < S && line < L ? Real<T>::read(mask[line * by.ml + key * by.ms]) : 0.0f;
      if (MASK == 1) value += added;
      if (CHOICE && key < S && line < L && !choice[line * by.cl + key * by.cs] == (CHOICE == 1)) value = fill;
      if (MASK == 2) value += added;
      score[n][e] = key < S ? value : -INFINITY;
      found[e / 2] = fmaxf(found[e / 2], score[n][e]);
    }
    float base[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      found[h] = fmaxf(found[h], __shfl_xor_sync(0xffffffffu, found[h], 1));
      found[h] = fmaxf(found[h], __shfl_xor_sync(0xffffffffu, found[h], 2));
      // A row that is masked as a whole stays without a largest score.
      base[h] = found[h] == -INFINITY ? 0.0f : found[h];
      // Differences times LOG2E, for the smallest finite score times it is infinite.
      const float shrink = exp2f((largest[h] - base[h]) * LOG2E);
      largest[h] = found[h];
      total[h] *= shrink;
#pragma unroll
      for (int n = 0; n < DV / 8; ++n) sum[n][2 * h] *= shrink, sum[n][2 * h + 1] *= shrink;
    }
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) {
      const int n = i / 4, e = i % 4;
      score[n][e] = exp2f((score[n][e] - base[e / 2]) * LOG2E);
      total[e / 2] += score[n][e];
    }
#pragma unroll
    for (int j = 0; j < KEYS / 16; ++j) {
      unsigned weights[PARTS][4];
#pragma unroll
      for (int place = 0; place < 4; ++place) {
        const float(&from)[4] = score[2 * j + place / 2];
        unsigned pair[PARTS];
        split<T>(from[2 * (place % 2)], from[2 * (place % 2) + 1], pair);
#pragma unroll
        for (int e = 0; e < PARTS; ++e) weights[e][place] = pair[e];
      }
#pragma unroll
      for (int n = 0; n < DV / 8; ++n) {
        unsigned low[PARTS], high[PARTS];
        load_values<T>(values + 16 * j * PITCH_V + 8 * n, PITCH_V, low, high);
        mma_parts<T>(sum[n], weights, low, high);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
    total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
  }
#pragma unroll
  for (int i = 0; i < DV / 2; ++i) {
    const int n = i / 4, e = i % 4, line = row + 8 * (e / 2);
    float value = sum[n][e] / total[e / 2];
    // No score leaves a sum of zeros, a score that is none NaN.
    if (SAFE && !(total[e / 2] > 0.0f)) value = total[e / 2] == 0.0f ? sum[n][e] : 0.0f;
    if (line < L) out[line * by.ol + 8 * n + 2 * t + e % 2] = Real<T>::write(value);
  }
}

}  // namespace pared
