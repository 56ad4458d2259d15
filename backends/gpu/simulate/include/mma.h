// nvcuda::wmma. A lane holds an equal part of a tile, whichever: real layouts are not specified, so code must
// not depend on them. Every function needs the whole warp at one place with one pointer and one stride.
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace nvcuda {
namespace wmma {

struct row_major {};
struct col_major {};
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
enum layout_t { mem_row_major, mem_col_major };

namespace precision {
struct tf32 {};
}
namespace experimental {
namespace precision {
struct u4 {};
struct s4 {};
struct b1 {};
}  // namespace precision
enum bmmaBitOp { bmmaBitOpXOR = 1, bmmaBitOpAND = 2 };
enum bmmaAccumulateOp { bmmaAccumulateOpPOPC = 1 };
}  // namespace experimental

// What an element is stored as, how many of them a stored word holds, and its value in a sum.
template <class T> struct SimElement {
  using Stored = T;
  static const int packed = 1;
};
template <> struct SimElement<precision::tf32> {
  using Stored = float;
  static const int packed = 1;
};
template <> struct SimElement<experimental::precision::s4> {
  using Stored = int;
  static const int packed = 8;
};
template <> struct SimElement<experimental::precision::u4> {
  using Stored = unsigned;
  static const int packed = 8;
};
template <> struct SimElement<experimental::precision::b1> {
  using Stored = unsigned;
  static const int packed = 32;
};

template <class Use, int M, int N, int K> struct SimTile;
template <int M, int N, int K> struct SimTile<matrix_a, M, N, K> { static const int rows = M, columns = K; };
template <int M, int N, int K> struct SimTile<matrix_b, M, N, K> { static const int rows = K, columns = N; };
template <int M, int N, int K> struct SimTile<accumulator, M, N, K> { static const int rows = M, columns = N; };

template <class Use, int M, int N, int K, class T, class Layout = void>
class fragment {
 public:
  using element_type = typename SimElement<T>::Stored;
  using storage_element_type = element_type;
  using Tile = SimTile<Use, M, N, K>;
  using Kind = T;
  static const int packed = SimElement<T>::packed;
  // Packed words run along K: along rows of a, along columns of b.
  static const int rows = std::is_same<Use, matrix_b>::value ? Tile::rows / packed : Tile::rows;
  static const int columns = std::is_same<Use, matrix_b>::value ? Tile::columns : Tile::columns / packed;
  enum { num_elements = rows * columns / 32, num_storage_elements = num_elements };
  static const bool repeated = std::is_same<T, __half>::value && !std::is_same<Use, accumulator>::value;
  static_assert(rows * columns % 32 == 0, "a tile that 32 lanes cannot share");
  element_type x[num_elements];
};

template <class F>
struct SimMove {
  F *part;
  void *memory;
  unsigned stride;  // in stored words
  bool by_column;
};

// Element (i, j) of a tile, in the part of the lane that holds it; every lane's argument starts with its part.
template <class F>
static inline typename F::element_type *sim_whole(void **lanes, int i, int j) {
  int at = i * F::columns + j;
  return &(*static_cast<F **>(lanes[at / F::num_elements]))->x[at % F::num_elements];
}

template <class F, bool Load>
static void sim_move(void **lanes, unsigned mask) {
  if (mask != ~0u) sim_fail("wmma: not all 32 lanes of the warp are here");
  using E = typename F::element_type;
  const SimMove<F> &first = *static_cast<SimMove<F> *>(lanes[0]);
  // PTX ISA, "Matrix Storage for WMMA": a row starts at a multiple of a lane's registers, which hold a
  // float16 operand twice; strides of 16 bytes are enough (CUDA C++ Programming Guide, "Warp Matrix Functions").
  const unsigned natural = F::repeated ? 32 : F::num_elements * sizeof(E), step = natural < 16 ? natural : 16;
  for (int lane = 1; lane < 32; ++lane) {
    const SimMove<F> &other = *static_cast<SimMove<F> *>(lanes[lane]);
    if (other.memory != first.memory || other.stride != first.stride) sim_fail("wmma: lanes give different pointers or strides");
  }
  if (reinterpret_cast<uintptr_t>(first.memory) % natural || first.stride * sizeof(E) % step)
    sim_fail("wmma: a tile's pointer or stride is not a multiple of what its fragment needs");
  for (int i = 0; i < F::rows; ++i)
    for (int j = 0; j < F::columns; ++j) {
      E *there = static_cast<E *>(first.memory) + (first.by_column ? j * first.stride + i : i * first.stride + j);
      E *here = sim_whole<F>(lanes, i, j);
      if (Load)
        *here = *there;
      else
        *there = *here;
    }
}

template <bool Load, class F>
static inline void sim_moved(int line, F &part, const void *memory, unsigned stride, bool by_column) {
  SimMove<F> call = {&part, const_cast<void *>(memory), stride / F::packed, by_column};
  sim_warp(sim_move<F, Load>, &call, ~0u, line);
}
template <class Use, int M, int N, int K, class T, class L, class P>
static inline void sim_load(int line, fragment<Use, M, N, K, T, L> &part, const P *memory, unsigned stride) {
  sim_moved<true>(line, part, memory, stride, std::is_same<L, col_major>::value);
}
template <int M, int N, int K, class T, class P>
static inline void sim_load(int line, fragment<accumulator, M, N, K, T> &part, const P *memory, unsigned stride,
                            layout_t layout) {
  sim_moved<true>(line, part, memory, stride, layout == mem_col_major);
}
template <int M, int N, int K, class T, class P>
static inline void sim_store(int line, P *memory, fragment<accumulator, M, N, K, T> &part, unsigned stride,
                             layout_t layout) {
  sim_moved<false>(line, part, memory, stride, layout == mem_col_major);
}
template <int M, int N, int K, class T, class P>
static inline void sim_store(int line, P *memory, const fragment<accumulator, M, N, K, T> &part, unsigned stride,
                             layout_t layout) {
  sim_store(line, memory, const_cast<fragment<accumulator, M, N, K, T> &>(part), stride, layout);
}
template <class F, class V>
static inline void fill_fragment(F &part, V value) {
  for (auto &x : part.x) x = typename F::element_type(value);
}
static inline float __float_to_tf32(float v) {
  return sim_cast<float>((sim_cast<unsigned>(v) + 0x1000u) & 0xFFFFE000u);  // ties away from zero
}

// Products are exact in double, and so are the sums of halves of one magnitude; the last step rounds once.
template <class T> static inline double sim_in(float v, T) { return v; }
static inline double sim_in(float v, precision::tf32) {  // the low 13 bits are not looked at
  return sim_cast<float>(sim_cast<unsigned>(v) & 0xFFFFE000u);
}
template <class T> struct SimProduct {  // floats
  using Sum = double;
  static Sum add(typename SimElement<T>::Stored a, typename SimElement<T>::Stored b, Sum sum) {
    return sum + sim_in(float(a), T()) * sim_in(float(b), T());
  }
};
template <> struct SimProduct<double> {
  using Sum = double;
  static Sum add(double a, double b, Sum sum) { return sum + a * b; }
};
template <class T> struct SimWhole {
  using Sum = int;
  static Sum add(T a, T b, Sum sum) { return sum + int(a) * int(b); }
};
template <> struct SimProduct<signed char> : SimWhole<signed char> {};
template <> struct SimProduct<char> : SimWhole<char> {};
template <> struct SimProduct<unsigned char> : SimWhole<unsigned char> {};
template <> struct SimProduct<experimental::precision::s4> {
  using Sum = int;
  static Sum add(int a, int b, Sum sum) {
    for (int i = 0; i < 32; i += 4) sum += (a << (28 - i) >> 28) * (b << (28 - i) >> 28);
    return sum;
  }
};
template <> struct SimProduct<experimental::precision::u4> {
  using Sum = int;
  static Sum add(unsigned a, unsigned b, Sum sum) {
    for (int i = 0; i < 32; i += 4) sum += int(a >> i & 15) * int(b >> i & 15);
    return sum;
  }
};
template <bool And> struct SimBits {
  using Sum = int;
  static Sum add(unsigned a, unsigned b, Sum sum) { return sum + __builtin_popcount(And ? a & b : a ^ b); }
};

template <class D, class A, class B, class C> struct SimMma {
  D *d;
  A *a;
  B *b;
  C *c;
};
template <class D, class A, class B, class C, class Rule>
static void sim_mma_run(void **lanes, unsigned mask) {
  if (mask != ~0u) sim_fail("wmma: not all 32 lanes of the warp are here");
  using Call = SimMma<D, A, B, C>;
  void *pa[32], *pb[32], *pc[32], *pd[32];
  for (int i = 0; i < 32; ++i) {
    Call *call = static_cast<Call *>(lanes[i]);
    pa[i] = &call->a, pb[i] = &call->b, pc[i] = &call->c, pd[i] = &call->d;
  }
  for (int i = 0; i < D::rows; ++i)
    for (int j = 0; j < D::columns; ++j) {
      typename Rule::Sum sum = *sim_whole<C>(pc, i, j);
      for (int k = 0; k < A::columns; ++k) sum = Rule::add(*sim_whole<A>(pa, i, k), *sim_whole<B>(pb, k, j), sum);
      *sim_whole<D>(pd, i, j) = typename D::element_type(sum);
    }
}
template <class Rule, class D, class A, class B, class C>
static inline void sim_multiply(int line, D &d, const A &a, const B &b, const C &c) {
  SimMma<D, A, B, C> call = {&d, const_cast<A *>(&a), const_cast<B *>(&b), const_cast<C *>(&c)};
  sim_warp(sim_mma_run<D, A, B, C, Rule>, &call, ~0u, line);
}
template <class D, class A, class B, class C>
static inline void sim_mma(int line, D &d, const A &a, const B &b, const C &c, bool = false) {
  sim_multiply<SimProduct<typename A::Kind>>(line, d, a, b, c);
}
template <class D, class A, class B, class C>
static inline void sim_bmma(int line, D &d, const A &a, const B &b, const C &c,
                            experimental::bmmaBitOp op = experimental::bmmaBitOpXOR,
                            experimental::bmmaAccumulateOp = experimental::bmmaAccumulateOpPOPC) {
  if (op == experimental::bmmaBitOpAND)
    sim_multiply<SimBits<true>>(line, d, a, b, c);
  else
    sim_multiply<SimBits<false>>(line, d, a, b, c);
}

}  // namespace wmma
}  // namespace nvcuda

#define load_matrix_sync(...) sim_load(__LINE__, __VA_ARGS__)
#define store_matrix_sync(...) sim_store(__LINE__, __VA_ARGS__)
#define mma_sync(...) sim_mma(__LINE__, __VA_ARGS__)
#define bmma_sync(...) sim_bmma(__LINE__, __VA_ARGS__)
