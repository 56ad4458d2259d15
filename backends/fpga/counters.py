"""Thresholds as hardware: what counts how many of them a traced accumulator reaches.

In order of preference: one multiplication by a constant and a shift (`scaling.py`); few comparisons; a
binary search whose next threshold comes from a table of the bits found so far, for any curve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from ...compiler.errors import UnsupportedOp
from .graph import Ints, Requant
from .scaling import Scaling, find_scaling, signed_digits

if TYPE_CHECKING:
    from da4ml.trace import FixedVariable

Counter: TypeAlias = "Callable[[FixedVariable], FixedVariable]"
Objects: TypeAlias = npt.NDArray[np.object_]

_FEW = 3
# Comparisons and multiplications side by side; from then on a search is smaller.
_MOST_PARTS = 7
# Depth of a gate beside that of an adder, for the places of registers.
_GATES = 0.5
# A table of 2^11 thresholds is some thousand LUT4 per neuron.
_MOST_SEARCHED = (1 << 12) - 1


def counter(layer: Requant, channel: int, line: tuple[int, int], ends: tuple[int, int]) -> Counter:
    """Return what counts the thresholds that `sign * (gain * v + bias)` reaches, for v in `ends`.

    Args:
        layer: the requantization.
        channel: its row.
        line: gain and bias.
        ends: least and most v.

    Raises:
        UnsupportedOp: `fpga-thresholds`: a curve of more levels than a search takes.
    """
    gain, bias = line
    sign, row = int(layer.sign[channel]), layer.thresholds[channel]
    least = -((sign * bias - row) // gain)  # ceil((T - sign * bias) / gain), on a = sign * v
    low, high = ends if sign > 0 else (-ends[1], -ends[0])
    always = int((least <= low).sum())
    inner = least[(least > low) & (least <= high)]
    if not inner.size:
        return lambda x: x * 0 + always
    parts = _parts(inner, low, high)
    if len(parts) > _MOST_PARTS:
        if inner.size > _MOST_SEARCHED:
            raise UnsupportedOp(
                "fpga-thresholds",
                f"node {layer.name!r}, channel {channel}: {inner.size} thresholds that no multiplication "
                f"equals, at most {_MOST_SEARCHED} are searched",
                "use fewer bits for activations, or powers of two: quantize{scale=pow2}",
            )
        parts = [_searched(inner, high + 1)]
    return lambda v: tree([part(v * sign) for part in parts], add) + always


def _parts(inner: Ints, low: int, high: int) -> list[Counter]:
    """Return counters of parts of the thresholds: one multiplication where it equals all, else halves."""
    scaling = find_scaling(inner, low, high) if inner.size > 1 else None
    if scaling is not None and 2 + signed_digits(scaling.factor) < inner.size:
        return [_scaled(scaling, int(inner.size))]
    if inner.size <= _FEW or scaling is not None:
        return [_compared(int(t)) for t in inner]
    half = inner.size // 2
    first = _parts(inner[:half], low, high)
    # that many comparisons will not be taken
    return first if len(first) > _MOST_PARTS else first + _parts(inner[half:], low, high)


def _scaled(scaling: Scaling, levels: int) -> Counter:
    def count(a: FixedVariable) -> FixedVariable:
        if scaling.even is not None:
            return _clipped(_half_even(a, scaling), levels)
        line = times(a, scaling.factor) * 2.0**-scaling.shift + scaling.bias * 2.0**-scaling.shift
        return _clipped(line.relu(None, 0, "TRN"), levels)  # floor and maximum with 0 at once

    return count


def _half_even(a: FixedVariable, scaling: Scaling) -> FixedVariable:
    """Return the rounded count, not below 0; see scaling.Scaling.even.

    Rounding up and clearing the lowest bit at ties gives the even neighbour, rounding down and setting it the
    odd one: no second addition.
    """
    up = scaling.even == 1
    line = (a + scaling.bias + (1 if up else 0)) * 2.0**-scaling.shift
    signed, whole, fraction = line.kif
    below = line.quantize(0, 0, fraction, "WRAP", "TRN")
    floor = line.quantize(signed, whole, 0, "WRAP", "TRN")
    if up:
        lowest = _gate(floor.quantize(0, 1, 0, "WRAP", "TRN") & _gate(below.unary_bit_op("any"), line), line)
        fixed = floor.quantize(signed, whole, -1, "WRAP", "TRN") | lowest
    elif fraction < scaling.shift:  # never all ones
        fixed = floor
    else:
        fixed = floor | _gate(below.unary_bit_op("all"), line)
    return _gate(fixed, line, _GATES).relu(None, 0, "TRN")


def _gate(made: FixedVariable, source: FixedVariable, levels: float = 0.0) -> FixedVariable:
    """Say that a bit operation, a level of logic to da4ml, is `levels` behind `source`."""
    made.latency = source.latency + levels
    return made


def _clipped(count: FixedVariable, levels: int) -> FixedVariable:
    """Return min(count, levels) of a whole count that is not negative.

    By bits, without da4ml's minimum: its constants (0.6.0) fail beside values that shifts made small.
    """
    if count.high <= levels:
        return count
    bits = levels.bit_length()
    low = count.quantize(0, bits, 0, "WRAP", "TRN")
    if levels & (levels + 1) == 0:
        high = count.quantize(0, count.kif[1], -bits, "WRAP", "TRN")
        over = _gate(high.unary_bit_op("any"), count)
    else:
        keep = (count - (levels + 1)).is_negative()
        low, over = _gate(low & _repeated(keep, (1 << bits) - 1), keep), ~keep
    return _gate(low | _repeated(over, levels), over, _GATES)


def _repeated(bit: FixedVariable, places: int) -> FixedVariable:
    """Return `places` where the bit is 1, else 0: wires."""
    found = None
    for place in range(places.bit_length()):
        if places >> place & 1:
            moved = bit * 2.0**place
            found = moved if found is None else _gate(found | moved, bit)
    assert found is not None, "some place is wanted"
    return found


def _searched(inner: Ints, never: int) -> Counter:
    """Return a binary search, highest bit first; `never` is a threshold beyond all accumulators."""
    width = int(inner.size).bit_length()
    padded = np.concatenate([inner, np.full((1 << width) - 1 - inner.size, never, np.int64)])

    def count(a: FixedVariable) -> FixedVariable:
        found = _at_least(a, int(padded[(1 << width - 1) - 1]))
        for known in range(1, width):
            half = 1 << width - 1 - known
            table = padded[np.arange(1 << known) * 2 * half + half - 1]
            bit = _at_least(a, found.lookup(table.astype(np.float64)))
            found = _gate(found * 2 | bit, bit)
        return found

    return count


def _at_least(a: FixedVariable, limit: FixedVariable | int) -> FixedVariable:
    return ~(a - limit).is_negative()


def _compared(threshold: int) -> Counter:
    return lambda a: a >= threshold


def times(a: FixedVariable, factor: int) -> FixedVariable:
    """Return `factor * a` as additions.

    Not da4ml's own product: that cuts bits with an operation which its interpreter gets wrong above 32 bits
    (0.6.0).
    """
    from da4ml.cmvm import solve

    ends = [(float(a.low), float(a.high), float(a.step))]
    matrix = np.array([[factor]], np.float32)
    additions = solve(
        matrix, qintervals=ends, latencies=[float(a.latency)], hard_dc=2, adder_size=1, carry_size=-1
    )
    return np.asarray(additions(objects([a], (1,))), object)[0]


def tree(
    items: list[FixedVariable], join: Callable[[FixedVariable, FixedVariable], FixedVariable]
) -> FixedVariable:
    """Join in a balanced tree, so that depth grows with the logarithm."""
    while len(items) > 1:
        pairs = [join(a, b) for a, b in zip(items[::2], items[1::2], strict=False)]
        items = pairs + (items[-1:] if len(items) % 2 else [])
    return items[0]


def add(a: FixedVariable, b: FixedVariable) -> FixedVariable:
    """Return a + b."""
    return a + b


def objects(items: list[FixedVariable], shape: tuple[int, ...]) -> Objects:
    """Return variables as an array."""
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)
