// Halves: IEEE binary16 and bfloat16, rounded to nearest, ties to even.
#pragma once

static inline uint16_t sim_half_bits(double value) {
  uint64_t bits = sim_cast<uint64_t>(value);
  uint16_t sign = uint16_t(bits >> 48) & 0x8000;
  int exponent = int(bits >> 52 & 0x7FF) - 1023;
  uint64_t fraction = bits & 0xFFFFFFFFFFFFFull;
  if (exponent == 1024) return sign | (fraction ? 0x7FFF : 0x7C00);
  if (exponent < -25) return sign;
  // A binary16 number has 10 bits behind the leading one, fewer below 2^-14.
  int drop = exponent < -14 ? 42 + (-14 - exponent) : 42;
  uint64_t whole = fraction | 1ull << 52, kept = whole >> drop, rest = whole & ((1ull << drop) - 1);
  uint64_t half = 1ull << (drop - 1);
  kept += rest > half || (rest == half && (kept & 1));
  uint64_t result = exponent < -14 ? kept : kept + (uint64_t(exponent + 14) << 10);
  return sign | uint16_t(result > 0x7C00 ? 0x7C00 : result);
}
static inline float sim_half_value(uint16_t bits) {
  unsigned sign = unsigned(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3FF;
  if (exponent == 31) return sim_cast<float>(sign | 0x7F800000u | fraction << 13);
  if (exponent == 0) return sim_cast<float>(sign | sim_cast<unsigned>(float(fraction) * 0x1p-24f));
  return sim_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}
static inline uint16_t sim_bfloat_bits(float value) {
  unsigned bits = sim_cast<unsigned>(value);
  if (value != value) return 0x7FFF;
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
// From a double: to a float rounded to odd first, so that rounding twice is rounding once.
static inline float sim_to_odd(double value) {
  float near = float(value);
  if (double(near) == value || std::isnan(value) || std::isinf(near)) return near;
  unsigned bits = sim_cast<unsigned>(near);
  if (bits & 1) return near;
  bool grow = fabs(double(near)) < fabs(value);
  return sim_cast<float>(grow ? bits + 1 : bits - 1);
}
static inline uint16_t sim_bfloat_bits(double value) { return sim_bfloat_bits(sim_to_odd(value)); }
static inline float sim_bfloat_value(uint16_t bits) { return sim_cast<float>(unsigned(bits) << 16); }
// a * b + c of halves with one rounding at the end: the product is exact, the sum is rounded to odd.
static inline double sim_fused(double a, double b, double c) {
  double product = a * b, sum = product + c;
  if (!std::isfinite(sum)) return sum;
  double back = sum - product, error = (product - (sum - back)) + (c - back);
  if (error == 0 || (sim_cast<uint64_t>(sum) & 1)) return sum;
  bool grow = (error > 0) == (sum > 0);
  return sim_cast<double>(sim_cast<uint64_t>(sum) + (grow ? 1 : -1));
}
