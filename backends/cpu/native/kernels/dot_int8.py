"""Sums of four products uint8 x int8 per 32-bit lane, exact modulo 2^32, in each instruction set's own way.

* AVX-512 VNNI: `vpdpbusd`, 64 products per instruction.
* AVX2: bytes become 16-bit words, even and odd ones apart, and `vpmaddwd` adds pairs of their products in 32
  bits: two of them and two additions for 32 products. `vpmaddubsw` would be shorter and wrong: it adds pairs
  in 16 bits, and 2 * 255 * 127 saturates there. Widening a weight (3 shifts per 32 bytes) is shared by the
  pixels of a tile, widening a pixel (a mask and a shift) by its vectors of weights. Two `vpmaddwd` per cycle
  would be 115 GMAC/s on Zen 4; measured on 3x3 and 1x1 convolutions: 69 and 75 (fp32 FMA: 58).
* ARM dot products: `sdot` multiplies int8 by int8, so the data is moved by 128, and what that takes away,
  128 times the sum of the weights, is a second `sdot` that the pixels of a tile share.
* Otherwise: lane by lane in int32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import Expr

from .emit import llvm

if TYPE_CHECKING:
    from ..isa import Isa

LANES = 16
QUAD = 4


def dot_lanes(isa: Isa, sums: Expr, data: Expr, weights: Expr) -> Expr:
    """Return `sums[l] + sum_q data[l, q] * weights[l, q]`; int32x16, uint8x64, int8x64."""
    if isa.vnni:
        return llvm("llvm.x86.avx512.vpdpbusd.512", "int32x16", sums, data, weights)
    if isa.has("avx2"):
        return sums + _in_parts(_by_words, 2, data, weights)
    if isa.dotprod:
        return sums + _in_parts(_by_sdot, 4, data, weights)
    return _plain(sums, data, weights)


def _in_parts(part: Callable[[Expr, Expr], Expr], count: int, data: Expr, weights: Expr) -> Expr:
    """Apply `part` to the `count` parts of which 16 lanes consist.

    Sums are added outside: dots are chained, and an expression that holds its predecessor twice doubles with
    every link.
    """
    return _shuffled([part(_cut(data, i, count), _cut(weights, i, count)) for i in range(count)], LANES)


def _cut(value: Expr, index: int, count: int) -> Expr:
    lanes = value.ty.dtype.lanes // count
    return tirx.Shuffle([value], [tirx.IntImm("int32", index * lanes + i) for i in range(lanes)])


def _shuffled(values: list[Expr], lanes: int) -> Expr:
    return tirx.Shuffle(values, [tirx.IntImm("int32", i) for i in range(lanes)])


def _by_words(data: Expr, weights: Expr) -> Expr:
    """Return the sums of 8 lanes: even bytes of each lane, then odd ones."""
    bytes2, weights2 = tirx.reinterpret("uint16x16", data), tirx.reinterpret("int16x16", weights)
    eight = tirx.Broadcast(tirx.IntImm("int16", 8), 16)
    even = bytes2 & tirx.Broadcast(tirx.IntImm("uint16", 255), 16)
    odd = bytes2 >> tirx.Broadcast(tirx.IntImm("uint16", 8), 16)
    pairs = [
        llvm("llvm.x86.avx2.pmadd.wd", "int32x8", tirx.reinterpret("int16x16", left), right)
        for left, right in ((even, (weights2 << eight) >> eight), (odd, weights2 >> eight))
    ]
    return pairs[0] + pairs[1]


def _by_sdot(data: Expr, weights: Expr) -> Expr:
    """Return the sums of 4 lanes: x = (x - 128) + 128."""
    moved = tirx.reinterpret("int8x16", data ^ tirx.Broadcast(tirx.IntImm("uint8", 128), 16))
    lowest = tirx.Broadcast(tirx.IntImm("int8", -128), 16)
    none = tirx.Broadcast(tirx.IntImm("int32", 0), 4)
    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
    return llvm(name, "int32x4", none, moved, weights) - llvm(name, "int32x4", none, lowest, weights)


def _plain(sums: Expr, data: Expr, weights: Expr) -> Expr:
    for q in range(QUAD):
        lanes = [tirx.IntImm("int32", QUAD * lane + q) for lane in range(LANES)]
        left, right = (tirx.Cast("int32x16", tirx.Shuffle([side], lanes)) for side in (data, weights))
        sums = sums + left * right
    return sums
