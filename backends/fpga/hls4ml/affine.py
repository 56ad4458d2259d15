"""Thresholds as hls4ml has them: a constant multiplication, an addition, one rounding, saturating assignment.

A row of thresholds becomes the cheapest line that equals it (scaling.py); the lines of all channels get one
denominator and one rounding mode, and saturation is put where the codes' range ends. The result is then
proven: a chain of monotone steps that is right on both sides of every threshold and at both ends of the
accumulator's range is right everywhere between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..graph import Ints
from ..scaling import find_scaling
from .formats import Affine, Format, Rounding, apply, holding

# Constants pass through double on their way into the project; sums are tried in int64.
_MOST_CONSTANT_BITS, _MOST_SUM_BITS = 52, 61


@dataclass(frozen=True)
class Line:
    """`count = round((factor * s * a + bias) / 2^shift)`, s the row's sign.

    Attributes:
        tie: None floors; else rounds to the nearest, ties to counts of this parity.
    """

    factor: int
    bias: int
    shift: int
    tie: int | None

    def counts(self, a: int) -> int:
        """Return the count for s * a, not saturated."""
        value = self.factor * a + self.bias
        whole = value >> self.shift
        if self.tie is None or self.shift == 0:
            return whole
        rest, half = value - (whole << self.shift), 1 << (self.shift - 1)
        return whole + int(rest > half or (rest == half and whole & 1 != self.tie))


@dataclass(frozen=True, eq=False)
class Rows:
    """Thresholds per channel: `count = #{k : sign * a >= thresholds[k]}`, v = start + step * count.

    Attributes:
        thresholds: [R, K].
        sign: [R].
        low, high: [R], of a.
    """

    thresholds: Ints
    sign: Ints
    low: Ints
    high: Ints
    start: int
    step: int

    @property
    def levels(self) -> int:
        """Thresholds per channel."""
        return int(self.thresholds.shape[1])

    def ends(self, r: int) -> tuple[int, int]:
        """Return the range of sign * a."""
        low, high = int(self.low[r]), int(self.high[r])
        return (low, high) if self.sign[r] > 0 else (-high, -low)


def find_chain(rows: Rows) -> list[Affine] | None:
    """Return steps that equal the thresholds for every a in range, or None where no line does."""
    lines = []
    for r in range(len(rows.sign)):
        line = _line(rows.thresholds[r], *rows.ends(r))
        if line is None:
            return None
        lines.append(line)
    chain = _chain(rows, lines)
    return chain if chain is not None and _is_right(rows, chain) else None


def rising(rows: Rows) -> Ints:
    """Return thresholds [R, K] of a itself, ascending: -a reaches t where a does not reach 1 - t.

    `#{k : a >= thresholds[k]}` is the count, or all levels less the count where the sign is -1.
    """
    turned = np.where(rows.sign[:, None] > 0, rows.thresholds, 1 - rows.thresholds[:, ::-1])
    return np.ascontiguousarray(turned)


def code_chain(rows: Rows) -> list[Affine]:
    """Return the step from counts of `rising` thresholds to codes; none where they are the same."""
    top = rows.start + rows.step * rows.levels
    bias = np.where(rows.sign > 0, rows.start, top)
    last = Affine(rows.step * rows.sign, bias, 0, holding(rows.start, top))
    return [] if last.is_identity else [last]


def _line(row: Ints, low: int, high: int) -> Line | None:
    """Return the line of one row; its count, saturated at 0 and at all levels, is right in low..high."""
    always = int((row <= low).sum())
    inner = row[(row > low) & (row <= high)]
    if not inner.size:
        return Line(0, always, 0, None)
    for some, before in ((inner, always), (row, 0)):
        found = find_scaling(some, low, high)
        if found is None:
            continue
        if found.even is None:
            line = Line(found.factor, found.bias + (before << found.shift), found.shift, None)
        else:
            half = (1 << (found.shift - 1)) + found.bias + 1 - (1 << found.shift) + (before << found.shift)
            line = Line(1, half, found.shift, (1 - found.even + before) % 2)
        reached = always + inner.size
        if _clipped(line, low, row.size) == always and _clipped(line, high, row.size) == reached:
            return line
    return None


def _clipped(line: Line, a: int, levels: int) -> int:
    return min(max(line.counts(a), 0), levels)


def _chain(rows: Rows, lines: list[Line]) -> list[Affine] | None:
    ties = {line.tie for line in lines} - {None}
    if len(ties) > 1:
        return None
    even = ties.pop() if ties else None
    counts = [line.counts(end) for r, line in enumerate(lines) for end in rows.ends(r)]
    ends = min(counts), max(counts)
    parity = 0 if even is None else even
    scale, bias, shift = _common(lines, rows.sign, even is not None)
    rounding: Rounding = "TRN" if even is None else "RND_CONV"
    if not _is_narrow(rows, scale, bias):
        return None
    whole = _fitting(rows, ends) if rows.step == 1 or shift == 0 else None
    if whole is not None and (parity + rows.start) % 2 == 0:
        form = Format(whole.bits, whole.signed, 0, rounding, whole.overflow)
        return [Affine(rows.step * scale, rows.step * bias + (rows.start << shift), shift, form)]
    if even is not None:  # round first, ties moved to even numbers, saturate then
        wide = holding(ends[0] + parity, ends[1] + parity)
        form = Format(wide.bits, wide.signed, 0, rounding)
        first = Affine(scale, bias + (parity << shift), shift, form)
        return [first, *_saturated(rows, np.ones(1, np.int64), np.full(1, -parity), 0, ends)]
    return _saturated(rows, scale, bias, shift, ends)


def _is_narrow(rows: Rows, scale: Ints, bias: Ints) -> bool:
    reach = max(int(np.abs(rows.low).max()), int(np.abs(rows.high).max()))
    constants = int(np.abs(scale).max()), int(np.abs(bias).max())
    most = constants[0] * reach + constants[1]
    return max(constants).bit_length() <= _MOST_CONSTANT_BITS and most.bit_length() <= _MOST_SUM_BITS


def _common(lines: list[Line], sign: Ints, nearest: bool) -> tuple[Ints, Ints, int]:
    """Return numerators over one power of two; floors become roundings without ties where others round."""
    mixed = nearest and any(line.tie is None for line in lines)
    shift = max(line.shift for line in lines) + mixed
    scale, bias = [], []
    for line in lines:
        more = shift - line.shift
        move = (1 << shift >> 1) - (1 << more >> 1) if mixed and line.tie is None else 0
        scale.append(line.factor << more)
        bias.append((line.bias << more) - move)
    return np.asarray(scale, object).astype(np.int64) * sign, np.asarray(bias, object).astype(np.int64), shift


def _fitting(rows: Rows, ends: tuple[int, int]) -> Format | None:
    """Return a type whose own ends saturate the codes, or None."""
    low, high = rows.start, rows.start + rows.step * rows.levels
    below, above = ends[0] < 0, ends[1] > rows.levels
    base = holding(low, high)
    if not below and not above:
        return base
    forms = [Format(base.bits, base.signed, 0, "TRN", "SAT"), Format(base.bits + 1, True, 0, "TRN", "SAT")]
    if base.signed:
        forms = [forms[0], Format(base.bits, True, 0, "TRN", "SAT_SYM")]
    right = (f for f in forms if (not below or f.least == low) and (not above or f.most == high))
    return next(right, None)


def _saturated(rows: Rows, scale: Ints, bias: Ints, shift: int, ends: tuple[int, int]) -> list[Affine]:
    """Return a floor, saturation at all levels, then at 0, and the codes from the count.

    The first saturates at the top of a signed or unsigned type, moved there where the levels are not one
    less than a power of two.
    """
    below, above = ends[0] < 0, ends[1] > rows.levels
    bits = rows.levels.bit_length()
    spare = (1 << bits) - 1 - rows.levels if above else 0
    one, count = np.ones(1, np.int64), Format(max(bits, 2), False, 0, "TRN", "SAT")
    top = count if bits > 1 else Format(2, True, 0, "TRN", "SAT")
    chain = [Affine(scale, bias + (spare << shift), shift, top if above else count)]
    if spare or (below and above and top.signed):
        chain.append(Affine(one, np.full(1, -spare), 0, count))
    high = rows.start + rows.step * rows.levels
    last = Affine(one * rows.step, np.full(1, rows.start), 0, holding(rows.start, high))
    return chain if last.is_identity else [*chain, last]


def _is_right(rows: Rows, chain: list[Affine]) -> bool:
    """Compare with the thresholds on both sides of each and at both ends."""
    low, high = np.array([rows.ends(r) for r in range(len(rows.sign))], np.int64).T
    at = np.concatenate([rows.thresholds, rows.thresholds - 1, low[:, None], high[:, None]], axis=1)
    at = np.clip(at, low[:, None], high[:, None])
    want = np.stack([np.searchsorted(t, a, side="right") for t, a in zip(rows.thresholds, at, strict=True)])
    found = (at * rows.sign[:, None]).T
    for step in chain:
        found = apply(step, found)
    return np.array_equal(found.T, rows.start + rows.step * want)
