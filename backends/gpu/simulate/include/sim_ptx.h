// PTX instructions on registers of 64 bits. Layouts of fragments: PTX ISA 8.5, "Warp Level Matrix Instructions".
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"

typedef uint64_t sim_reg;

template <class T>
static inline sim_reg sim_bits(T value) {
  static_assert(sizeof(T) <= 8, "registers have 64 bits");
  sim_reg bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
static inline void sim_put(T &&to, sim_reg bits) {
  memcpy(&to, &bits, sizeof to);
}
static inline float sim_f32(sim_reg bits) { return sim_cast<float>(unsigned(bits)); }

static inline sim_reg sim_lop3(unsigned a, unsigned b, unsigned c, unsigned table) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i;
  return r;
}
static inline sim_reg sim_tf32(sim_reg a) { return (unsigned(a) + 0x1000u) & 0xFFFFE000u; }

// Two halves in a word: operation 0 adds, 1 subtracts, 2 multiplies, 3 multiplies and adds.
template <class H>
static inline sim_reg sim_pair(int operation, sim_reg a, sim_reg b, sim_reg c) {
  sim_reg r = 0;
  for (int i = 0; i < 32; i += 16) {
    H x, y, z;
    x.__x = uint16_t(a >> i), y.__x = uint16_t(b >> i), z.__x = uint16_t(c >> i);
    H made = operation == 0 ? x + y : operation == 1 ? x - y : operation == 2 ? x * y : __hfma(x, y, z);
    r |= sim_reg(made.__x) << i;
  }
  return r;
}

// --- memory ------------------------------------------------------------------------------------------------
static inline void *sim_address(bool shared, sim_reg address) {
  return shared ? sim_shared_pointer(unsigned(address)) : reinterpret_cast<void *>(address);
}
static inline void sim_aligned(const void *p, int bytes) {
  if (reinterpret_cast<uintptr_t>(p) % unsigned(bytes)) sim_fail("an instruction's address is not a multiple of its size");
}
static inline void sim_load_word(sim_reg &to, bool shared, sim_reg address, int bytes, int vector, int offset) {
  char *p = static_cast<char *>(sim_address(shared, address));
  sim_aligned(p, bytes * vector);
  to = 0;
  memcpy(&to, p + offset * bytes, bytes);
}
static inline void sim_store_word(sim_reg from, bool shared, sim_reg address, int bytes, int vector, int offset) {
  char *p = static_cast<char *>(sim_address(shared, address));
  sim_aligned(p, bytes * vector);
  memcpy(p + offset * bytes, &from, bytes);
}
static inline void sim_async(sim_reg to, sim_reg from, int bytes, int source_bytes) {
  void *target = sim_shared_pointer(unsigned(to));
  sim_aligned(target, bytes);
  sim_aligned(reinterpret_cast<void *>(from), bytes);
  sim_copy(target, reinterpret_cast<void *>(from), bytes, source_bytes);
}

struct SimMatrices {
  sim_reg address;
  sim_reg *registers[4];
  int count;
  bool transposed, store;
};
static inline void sim_matrices_run(void **lanes, unsigned mask) {
  if (mask != ~0u) sim_fail("ldmatrix: not all 32 lanes of the warp are here");
  const SimMatrices &first = *static_cast<SimMatrices *>(lanes[0]);
  for (int m = 0; m < first.count; ++m) {
    char *rows[8];
    for (int r = 0; r < 8; ++r) {
      rows[r] = static_cast<char *>(sim_shared_pointer(unsigned(static_cast<SimMatrices *>(lanes[8 * m + r])->address)));
      sim_aligned(rows[r], 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      sim_reg &r = *static_cast<SimMatrices *>(lanes[lane])->registers[m];
      if (!first.store) r = 0;
      for (int e = 0; e < 2; ++e) {
        int row = lane / 4, column = lane % 4 * 2 + e;
        char *at = first.transposed ? rows[column] + 2 * row : rows[row] + 2 * column;
        char *half = reinterpret_cast<char *>(&r) + 2 * e;
        memcpy(first.store ? at : half, first.store ? half : at, 2);
      }
    }
  }
}
template <class... R>
static inline void sim_matrices(int line, bool store, bool transposed, sim_reg address, R &...registers) {
  SimMatrices call = {address, {&registers...}, int(sizeof...(R)), transposed, store};
  sim_warp(sim_matrices_run, &call, ~0u, line);
}

// --- mma.sync ----------------------------------------------------------------------------------------------
enum SimKind { SIM_F16, SIM_BF16, SIM_TF32, SIM_F32, SIM_S32, SIM_S8, SIM_U8, SIM_S4, SIM_U4, SIM_B1 };
static inline int sim_kind_bits(SimKind kind) {
  static const int bits[] = {16, 16, 32, 32, 32, 8, 8, 4, 4, 1};
  return bits[kind];
}
static inline double sim_element(SimKind kind, sim_reg word, int index) {
  int bits = sim_kind_bits(kind);
  unsigned raw = bits == 32 ? unsigned(word) : unsigned(word >> (index * bits)) & ((1u << bits) - 1);
  switch (kind) {
    case SIM_F16: return sim_half_value(uint16_t(raw));
    case SIM_BF16: return sim_bfloat_value(uint16_t(raw));
    case SIM_TF32: return sim_cast<float>(raw & 0xFFFFE000u);
    case SIM_F32: return sim_cast<float>(raw);
    case SIM_S32: return int(raw);
    case SIM_S8: return int8_t(raw);
    case SIM_S4: return int(raw << 28) >> 28;
    default: return raw;
  }
}
static inline void sim_set_element(SimKind kind, sim_reg &word, int index, double value, bool saturated) {
  if (kind == SIM_F32) {
    word = sim_cast<unsigned>(float(value));
  } else if (kind == SIM_F16) {
    word = (word & ~(sim_reg(0xFFFF) << (16 * index))) | sim_reg(sim_half_bits(value)) << (16 * index);
  } else {
    if (saturated) value = fmin(fmax(value, -2147483648.0), 2147483647.0);
    word = unsigned(int64_t(value));
  }
}

struct SimProductCall {
  int m, n, k;
  SimKind of_d, of_a, of_b, of_c;
  int bits;  // of single bits: 0 none, 1 xor, 2 and
  bool saturated;
  sim_reg *d, *a, *b, *c;
};

// Lane, register and place within it of element (row, column) of c and d, and of (row, k) of a and b.
struct SimPlace {
  int lane, word, index;
};
static inline SimPlace sim_place_sum(SimKind kind, int row, int column) {
  int i = (row >= 8) * 2 + (column & 1), packed = 32 / sim_kind_bits(kind);
  return {row % 8 * 4 + column / 2, i / packed, i % packed};
}
static inline SimPlace sim_place_factor(SimKind kind, int rows, int row, int k) {
  int packed = 32 / sim_kind_bits(kind), part = k / (4 * packed);
  return {row % 8 * 4 + k / packed % 4, rows == 16 ? part * 2 + row / 8 : part, k % packed};
}

static inline void sim_product_run(void **lanes, unsigned mask) {
  if (mask != ~0u) sim_fail("mma.sync: not all 32 lanes of the warp are here");
  static double a[16][256], b[8][256];
  const SimProductCall &call = *static_cast<SimProductCall *>(lanes[0]);
  for (int k = 0; k < call.k; ++k) {
    for (int i = 0; i < call.m; ++i) {
      SimPlace p = sim_place_factor(call.of_a, call.m, i, k);
      a[i][k] = sim_element(call.of_a, static_cast<SimProductCall *>(lanes[p.lane])->a[p.word], p.index);
    }
    for (int j = 0; j < call.n; ++j) {
      SimPlace p = sim_place_factor(call.of_b, 8, j, k);
      b[j][k] = sim_element(call.of_b, static_cast<SimProductCall *>(lanes[p.lane])->b[p.word], p.index);
    }
  }
  for (int i = 0; i < call.m; ++i)
    for (int j = 0; j < call.n; ++j) {
      SimPlace from = sim_place_sum(call.of_c, i, j), to = sim_place_sum(call.of_d, i, j);
      double sum = sim_element(call.of_c, static_cast<SimProductCall *>(lanes[from.lane])->c[from.word], from.index);
      for (int k = 0; k < call.k; ++k)
        sum += call.bits == 1 ? double(a[i][k] != b[j][k]) : a[i][k] * b[j][k];
      sim_set_element(call.of_d, static_cast<SimProductCall *>(lanes[to.lane])->d[to.word], to.index, sum, call.saturated);
    }
}
