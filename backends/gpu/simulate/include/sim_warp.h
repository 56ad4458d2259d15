// What the threads of a block and the lanes of a warp do together.
#pragma once

#define __syncthreads() sim_barrier(0, 0, __LINE__)
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}
static inline void __nanosleep(unsigned) {}

static inline void sim_nothing(void **, unsigned) {}
static inline void sim_syncwarp(int line, unsigned mask = ~0u) { sim_warp(sim_nothing, nullptr, mask, line); }
#define __syncwarp(...) sim_syncwarp(__LINE__, ##__VA_ARGS__)
#define __activemask() sim_active(__LINE__)

template <class T>
struct SimShuffle {
  T value, result;
  int source;  // lane, or -1: its own value
};

template <class T>
static void sim_shuffle(void **lanes, unsigned mask) {
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    SimShuffle<T> *to = static_cast<SimShuffle<T> *>(lanes[i]);
    int source = to->source < 0 ? i : to->source;
    if (mask >> source & 1) {
      to->result = static_cast<SimShuffle<T> *>(lanes[source])->value;
    } else {  // undefined on a device
      unsigned poison[4] = {sim_poison(), sim_poison(), sim_poison(), sim_poison()};
      memcpy(&to->result, poison, sizeof(T));
    }
  }
}

// source: of CUDA's four; from: lane, delta or mask.
enum SimFrom { SIM_INDEX, SIM_UP, SIM_DOWN, SIM_XOR };
static inline int sim_source(SimFrom kind, int from, int width) {
  int lane = sim_lane(), first = lane & ~(width - 1);
  switch (kind) {
    case SIM_INDEX: return first | (from & (width - 1));
    case SIM_UP: return lane - from < first ? -1 : lane - from;
    case SIM_DOWN: return lane + from >= first + width ? -1 : lane + from;
    default: return (lane ^ from) >= first + width ? -1 : lane ^ from;
  }
}
template <class T>
static inline T sim_shuffled(int line, SimFrom kind, unsigned mask, T value, int from, int width = 32) {
  static_assert(sizeof(T) <= 16, "shuffles take scalars");
  SimShuffle<T> call = {value, value, sim_source(kind, from, width)};
  sim_warp(sim_shuffle<T>, &call, mask, line);
  return call.result;
}
#define __shfl_sync(...) sim_shuffled(__LINE__, SIM_INDEX, __VA_ARGS__)
#define __shfl_up_sync(...) sim_shuffled(__LINE__, SIM_UP, __VA_ARGS__)
#define __shfl_down_sync(...) sim_shuffled(__LINE__, SIM_DOWN, __VA_ARGS__)
#define __shfl_xor_sync(...) sim_shuffled(__LINE__, SIM_XOR, __VA_ARGS__)

struct SimVote {
  unsigned long long value;
  unsigned ballot, equal;
  long long sum, low, high;
  unsigned all, any, parity;
};
static inline void sim_vote(void **lanes, unsigned mask) {
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    SimVote *to = static_cast<SimVote *>(lanes[i]);
    to->ballot = to->equal = to->any = to->parity = 0, to->all = ~0u, to->sum = 0;
    to->low = to->high = (long long)to->value;
    for (int j = 0; j < 32; ++j) {
      if (!(mask >> j & 1)) continue;
      unsigned long long other = static_cast<SimVote *>(lanes[j])->value;
      to->ballot |= unsigned(other != 0) << j, to->equal |= unsigned(other == to->value) << j;
      to->sum += (long long)other, to->all &= unsigned(other), to->any |= unsigned(other);
      to->parity ^= unsigned(other);
      to->low = (long long)other < to->low ? (long long)other : to->low;
      to->high = (long long)other > to->high ? (long long)other : to->high;
    }
  }
}
static inline SimVote sim_voted(int line, unsigned mask, long long value) {
  SimVote call = {};
  call.value = (unsigned long long)value;
  sim_warp(sim_vote, &call, mask, line);
  return call;
}
template <class T>
static inline T sim_like(T, long long value) {
  return T(value);
}
#define __ballot_sync(mask, v) (sim_voted(__LINE__, mask, (v) ? 1 : 0).ballot)
#define __any_sync(mask, v) int(sim_voted(__LINE__, mask, (v) ? 1 : 0).ballot != 0)
#define __all_sync(mask, v) int(sim_voted(__LINE__, mask, (v) ? 0 : 1).ballot == 0)
#define __match_any_sync(mask, v) (sim_voted(__LINE__, mask, (long long)(v)).equal)
#define __reduce_add_sync(mask, v) sim_like(v, sim_voted(__LINE__, mask, v).sum)
#define __reduce_min_sync(mask, v) sim_like(v, sim_voted(__LINE__, mask, v).low)
#define __reduce_max_sync(mask, v) sim_like(v, sim_voted(__LINE__, mask, v).high)
#define __reduce_and_sync(mask, v) sim_like(v, sim_voted(__LINE__, mask, v).all)
#define __reduce_or_sync(mask, v) sim_like(v, sim_voted(__LINE__, mask, v).any)
#define __reduce_xor_sync(mask, v) sim_like(v, sim_voted(__LINE__, mask, v).parity)

// --- how the host calls a kernel ---------------------------------------------------------------------------
template <class T>
static inline T sim_argument(void *bits) {
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <class... T, size_t... I>
static inline void sim_call_with(void (*kernel)(T...), void **arguments, std::index_sequence<I...>) {
  kernel(sim_argument<T>(arguments[I])...);
}
template <class... T>
static inline void sim_call(void (*kernel)(T...), void **arguments) {
  sim_call_with(kernel, arguments, std::index_sequence_for<T...>());
}
