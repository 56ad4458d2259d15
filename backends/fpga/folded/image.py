"""A program as bits: the widths of the engine and the words of its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .lines import Line
from .program import Instruction, Program, signed_bits

# Shapes of a DP16KD: bits of a word, words (Lattice FPGA-TN-02204, table 1).
_SHAPES = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
_LEAST_BANK, _MOST_BANK, _MOST_BANKS = 9, 11, 16
_CHOICES = 8  # of shifts; the rest of a shift is in the factor


@dataclass(frozen=True)
class Widths:
    """Bits of everything; the parameters of `rtl/engine.v` of the same names.

    Attributes:
        bank: address bits of one bank of weights.
        shift, stride: a row shifts by `shift + stride * pick`.
    """

    select: int
    chunk: int
    value: int
    weight: int
    sum: int
    result: int
    address: int
    count: int
    pixel: int
    weights: int
    bank: int
    rows: int
    index: int
    factor: int
    bias: int
    total: int
    shift: int
    stride: int
    pick: int
    level: int
    ties: bool
    place: int

    @property
    def row(self) -> int:
        """Bits of one row of requantization."""
        return self.factor + self.bias + self.pick + self.place + 3

    @property
    def word(self) -> int:
        """Bits of an instruction."""
        flags, counts, moves = 9, 7 * self.count, 6 * self.address
        places = (1 + 4 + 1 + 5 + 2) * self.pixel
        rest = self.weights + self.address + self.rows + self.chunk + self.level + self.value
        return flags + counts + moves + places + rest


@dataclass(frozen=True, eq=False)
class Image:
    """Tables as words of `width` bits; thresholds one table per unit, empty where no row needs them."""

    widths: Widths
    program: tuple[int, ...]
    weights: tuple[int, ...]
    rows: tuple[int, ...]
    thresholds: tuple[tuple[int, ...], ...]


def image_of(program: Program, weight_bits: int) -> Image:
    """Return the bits of a program."""
    lines = [line for one in program.instructions for line in one.lines]
    shift, stride, pick = _shifts(lines)
    lines_in = {line: _settled(line, shift, stride) for line in set(lines)}
    thresholds, places = _thresholds(program)
    widths = _widths(program, weight_bits, list(lines_in.values()), (shift, stride, pick), thresholds)
    rows: list[int] = []
    words: list[int] = []
    code: list[int] = []
    for one in program.instructions:
        code.append(_code(one, program, widths, len(words), len(rows)))
        words += [pack((int(w), widths.weight) for w in word[::-1]) for word in one.weights]
        rows += _rows(one, program, widths, lines_in, places)
    return Image(widths, tuple(code), tuple(words), tuple(rows or [0]), thresholds)


def pack(fields: Iterable[tuple[int, int]]) -> int:
    """Return fields of (value, bits) beside each other, the first one highest; two's complement.

    >>> bin(pack([(-1, 2), (1, 3)]))
    '0b11001'
    """
    word = 0
    for value, bits in fields:
        word = word << bits | value & (1 << bits) - 1
    return word


def _shifts(lines: Sequence[Line]) -> tuple[int, int, int]:
    """Return the least shift, the stride, and the bits that pick a multiple of it."""
    least = min((line.shift for line in lines), default=0)
    most = max((line.shift for line in lines), default=0)
    stride = max(-(-(most - least) // (_CHOICES - 1)), 1)
    picks = -(-(most - least) // stride) + 1
    return least, stride, max((picks - 1).bit_length(), 1)


def _settled(line: Line, shift: int, stride: int) -> Line:
    return line.shifted(shift + stride * -(-(line.shift - shift) // stride))


def _widths(
    program: Program, weight_bits: int, lines: Sequence[Line], shifts: tuple[int, int, int],
    thresholds: tuple[tuple[int, ...], ...],
) -> Widths:  # fmt: skip
    tasks, folding = program.tasks.tasks, program.folding
    stored = [entry.tensor for entry in program.tasks.entries]
    stored += [task.tensor for task in tasks if task.requant is not None or task.kept]
    value = max(signed_bits(t.low, t.high) for t in stored)
    low, high = min(int(t.low.min()) for t in tasks), max(int(t.high.max()) for t in tasks)
    total = signed_bits(low, high + 1)  # a threshold may lie one above
    total = max(total, value + 1)
    raw = [signed_bits(int(t.low.min()), int(t.high.max())) for t in tasks if t.leaves and t.requant is None]
    levels = max((t.requant.thresholds.shape[1] for t in tasks if t.requant is not None), default=1)
    factor = max((signed_bits(min(x.factor, 0), x.factor) for x in lines), default=1)
    bias = max((signed_bits(min(x.bias, 0), x.bias) for x in lines), default=1)
    reach = max((abs(x.factor) * max(-low, high) + abs(x.bias) for x in lines), default=1)
    counts = [loop.count - 1 for one in program.instructions for loop in one.loops]
    spare = [one.chunks - one.window for one in program.instructions]
    sizes = [size for one in program.instructions for size in _reach(one)]
    rows = sum(_row_words(one, program) for one in program.instructions)
    words = sum(len(one.weights) for one in program.instructions)
    place = max((len(table) - 1).bit_length() for table in thresholds) if thresholds else 1
    return Widths(
        select=_bits(folding.lanes), chunk=_bits(folding.lanes // folding.units), value=value,
        weight=weight_bits, sum=total, result=max([value, *raw]), address=_bits(program.depth),
        count=max([1, *(n.bit_length() for n in [*counts, *spare])]),
        pixel=signed_bits(-max(sizes), max(sizes)), weights=_bits(words),
        bank=bank_bits(weight_bits * folding.lanes, words), rows=_bits(rows),
        index=_bits(len(program.instructions)), factor=factor, bias=bias,
        total=max(signed_bits(-reach, reach) + 1, shifts[0] + levels.bit_length() + 1),
        shift=shifts[0], stride=shifts[1], pick=shifts[2], level=max(levels.bit_length(), 1),
        ties=any(line.even is not None for line in lines), place=max(place, 1),
    )  # fmt: skip


def blocks(bits: int, words: int) -> int:
    """Return the block memories of a memory, in the cheapest shape of a block.

    >>> blocks(256, 729), blocks(512, 4240)
    (15, 135)
    """
    return min(-(-bits // width) * -(-words // depth) for width, depth in _SHAPES)


def bank_blocks(bits: int, words: int, bank: int) -> int:
    """Return the block memories of a memory in banks of 2^bank words."""
    whole, rest = divmod(words, 1 << bank)
    return whole * blocks(bits, 1 << bank) + (blocks(bits, rest) if rest else 0)


def bank_bits(bits: int, words: int) -> int:
    """Return the address bits of at most 16 banks that take the fewest blocks; of equal ones the most."""
    least = max((-(-words // _MOST_BANKS) - 1).bit_length(), _LEAST_BANK)
    return min(range(least, max(least, _MOST_BANK) + 1), key=lambda b: (bank_blocks(bits, words, b), -b))


def _bits(count: int) -> int:
    """Return the bits of an index below `count`, at least one."""
    return max((count - 1).bit_length(), 1)


def _reach(one: Instruction) -> tuple[int, ...]:
    """Return what rows and columns may come to, which must not wrap into the picture."""
    if one.task is None:
        return (one.target.height, one.target.width)
    source = one.task.sources[0]
    ends = [
        sum(abs(getattr(loop, axis)) * loop.count for loop in one.loops) + abs(start)
        for axis, start in (("rows", one.start[1]), ("columns", one.start[2]))
    ]
    return (*ends, source.height, source.width)


def _moves(one: Instruction, lanes: int) -> list[tuple[int, int, int]]:
    """Return what loops 1 to 5 move by when the ones inside them start again: address, row, column."""
    first = one.loops[0].count - 1
    address, row, column = first // lanes, 0, 0
    moves = []
    for loop in one.loops[1:]:
        moves.append((loop.stride - address, loop.rows - row, loop.columns - column))
        address += (loop.count - 1) * loop.stride
        row += (loop.count - 1) * loop.rows
        column += (loop.count - 1) * loop.columns
    return moves


def _code(one: Instruction, program: Program, w: Widths, weight_base: int, row_base: int) -> int:
    """Return an instruction; the order is that of `rtl/sequencer.v`."""
    task, moves = one.task, _moves(one, program.folding.lanes)
    quantizer = None if task is None else task.requant
    raw, leaves = task is not None and quantizer is None, task is not None and task.leaves
    kept, own = task is None or task.kept, task is not None and task.own
    twice = quantizer is not None and quantizer.output.step == 2
    flags = [
        task is None,
        raw,
        leaves,
        kept,
        own,
        task is not None and task.largest,
        one.shared,
        one.advance,
        twice,
    ]
    spare = 0 if task is None else max(one.chunks - one.window, 0)
    size = (one.target.height, one.target.width) if task is None else _picture(one)
    levels = 0 if quantizer is None else quantizer.thresholds.shape[1]
    offset = 0 if quantizer is None else quantizer.start - quantizer.output.zero
    return pack(
        [
            *((int(flag), 1) for flag in flags),
            *((loop.count - 1, w.count) for loop in one.loops), (spare, w.count),
            (one.start[0], w.address), *((move[0], w.address) for move in moves),
            (one.start[1], w.pixel), *((move[1], w.pixel) for move in moves[1:]),
            (one.start[2], w.pixel), *((move[2], w.pixel) for move in moves),
            (size[0], w.pixel), (size[1], w.pixel),
            (weight_base, w.weights), (one.write_base, w.address), (row_base, w.rows),
            (one.chunks - 1, w.chunk), (levels, w.level), (offset, w.value),
        ]
    )  # fmt: skip


def _picture(one: Instruction) -> tuple[int, int]:
    assert one.task is not None, f"{one.name} is an input"
    source = one.task.sources[0]
    return source.height, source.width


def _row_words(one: Instruction, program: Program) -> int:
    return program.folding.groups(one.target.channels) * one.chunks if one.lines else 0


def _channel_grid(one: Instruction, program: Program) -> list[list[int]]:
    """Return, per word of rows, the channel of each unit; those beyond the last stand for none."""
    lanes, units = program.folding.lanes, program.folding.units
    groups = program.folding.groups(one.target.channels)
    return [
        [g * lanes + c * units + u for u in range(units)] for g in range(groups) for c in range(one.chunks)
    ]


def _rows(
    one: Instruction, program: Program, w: Widths, settled: dict[Line, Line],
    places: dict[tuple[str, int], int],
) -> list[int]:  # fmt: skip
    if not one.lines:
        return []
    words = []
    for channels in _channel_grid(one, program):
        rows = [
            _row(settled[one.lines[c]], w, places.get((one.name, c), 0)) if c < len(one.lines) else 0
            for c in channels
        ]
        words.append(pack((row, w.row) for row in rows[::-1]))
    return words


def _row(line: Line, w: Widths, place: int) -> int:
    pick = (line.shift - w.shift) // w.stride
    fields = [(int(line.refine), 1), (place, w.place), (int(line.even is not None), 1), (line.even or 0, 1)]
    return pack([*fields, (pick, w.pick), (line.factor, w.factor), (line.bias, w.bias)])


def _thresholds(program: Program) -> tuple[tuple[tuple[int, ...], ...], dict[tuple[str, int], int]]:
    """Return each unit's table of thresholds, and where the row of (layer, channel) begins."""
    if not program.refine:
        return (), {}
    units = program.folding.units
    tables: list[list[int]] = [[] for _ in range(units)]
    places: dict[tuple[str, int], int] = {}
    shared: dict[tuple[int, str, int], int] = {}
    for one in program.instructions:
        for channel, line in enumerate(one.lines):
            if not line.refine:
                continue
            row = _compared(one, channel)
            unit = channel % program.folding.lanes % units
            key = (unit, one.name, hash(row.tobytes()))
            if key not in shared:
                shared[key] = len(tables[unit])
                tables[unit] += row.tolist()
            places[one.name, channel] = shared[key]
    depth = max(map(len, tables))
    return tuple(tuple(table + [0] * (depth - len(table))) for table in tables), places


def _compared(one: Instruction, channel: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the thresholds as `rtl/requant.v` compares them, and one that is never reached."""
    task = one.task
    quantizer = None if task is None else task.requant
    assert task is not None, f"{one.name} is an input"
    assert quantizer is not None, f"{one.name} has no quantizer"
    row = 0 if quantizer.thresholds.shape[0] == 1 else channel
    sign = int(quantizer.sign[row])
    low, high = int(task.low.min()), int(task.high.max())
    ends = (low, high) if sign > 0 else (-high, -low)
    kept = np.clip(quantizer.thresholds[row] - sign * task.shift, ends[0], ends[1] + 1)
    return np.append(kept, ends[1] + 1) - (sign < 0)
