"""Tasks as a program of the engine (`rtl/engine.v`): instructions, memory map, and the tables it reads.

What `rtl/sequencer.v` says about loops is made here. Addresses count words of `lanes` values; a tensor of C
channels takes ceil(C / lanes) words per pixel, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ....compiler.errors import UnsupportedOp
from ..graph import Ints
from .lines import Line, find_lines
from .tasks import Entry, Task, Tasks, Tensor

# Clocks from the last step to its value in memory, less the chunks of a word: sequencer 2, lanes 5, queue 1,
# requantizer 10 (13 with a table of thresholds), memory 1; two less for fetching the next instruction.
_DRAIN = 17
_REFINE = 3
_FETCH = 2


@dataclass(frozen=True)
class Folding:
    """How much hardware all layers share: multipliers, and requantizers (a divisor of the lanes)."""

    lanes: int
    units: int

    def groups(self, channels: int) -> int:
        """Words per pixel."""
        return -(-channels // self.lanes)

    def chunks(self, channels: int) -> int:
        """Clocks to store a word."""
        return -(-min(channels, self.lanes) // self.units)


@dataclass(frozen=True)
class Loop:
    """`count` times; each time the address moves by `stride` words, the place by `rows` and `columns`."""

    count: int
    stride: int = 0
    rows: int = 0
    columns: int = 0


@dataclass(frozen=True, eq=False)
class Instruction:
    """One input or layer.

    Attributes:
        loops: six, as in `rtl/sequencer.v`; of an input, the last two count its words.
        start: read address and place of the first step; negative in the padding.
        weights: [words, lanes].
        advance, shared: the next step reads the next word of weights; all groups read the same ones.
        lines: of each output channel; empty where the accumulator leaves, or the value is the accumulator.
        clocks: from fetching it to fetching the next one.
    """

    name: str
    task: Task | None
    target: Tensor
    write_base: int
    loops: tuple[Loop, ...]
    start: tuple[int, int, int]
    weights: Ints
    advance: bool
    shared: bool
    lines: tuple[Line, ...]
    chunks: int
    clocks: int

    @property
    def window(self) -> int:
        """Steps per accumulator."""
        return int(np.prod([loop.count for loop in self.loops[:3]]))


@dataclass(frozen=True, eq=False)
class Program:
    """What the engine runs.

    Attributes:
        depth: words of activations.
        clocks: of one inference, from the first value in until the next may come, fed without a pause.
        flush: clocks that each instruction waits for its last value.
    """

    folding: Folding
    tasks: Tasks
    instructions: tuple[Instruction, ...]
    depth: int
    clocks: int
    flush: int
    refine: bool


Lines = Sequence[tuple[Line, ...]]


def lines_of(tasks: Tasks) -> list[tuple[Line, ...]]:
    """Return the requantization of every task, one line per channel; none where it has no quantizer.

    Raises:
        UnsupportedOp: `fpga-folded-thresholds`: a curve, which no line is near.
    """
    return [_lines(task) for task in tasks.tasks]


def _lines(task: Task) -> tuple[Line, ...]:
    quantizer = task.requant
    if quantizer is None:
        return ()
    rows = quantizer.thresholds.shape[0]
    sign = quantizer.sign
    low, high = task.low + task.shift, task.high + task.shift
    if rows == 1:
        low, high = low.min(keepdims=True), high.max(keepdims=True)
    ends = np.where(sign > 0, low, -high), np.where(sign > 0, high, -low)
    lines = find_lines(quantizer.thresholds, *ends)
    if any(line is None for line in lines):
        raise UnsupportedOp(
            "fpga-folded-thresholds",
            f"layer {quantizer.name!r}: {quantizer.thresholds.shape[1]} thresholds of a curve, which no "
            "multiplication is near",
            "use Relu instead, or fewer bits behind this layer",
        )
    turned = [_turned(line, int(s), task.shift) for line, s in zip(lines, sign, strict=True) if line]
    return tuple(turned * task.tensor.channels if rows == 1 else turned)


def _turned(line: Line, sign: int, shift: int) -> Line:
    """Return a line for the accumulator `a` instead of `sign * (a + shift)`."""
    factor = sign * line.factor
    return replace(line, factor=factor, bias=line.bias + factor * shift)


def program_of(tasks: Tasks, lines: Lines, folding: Folding, weight_bits: int) -> Program:
    """Return the program for a folding.

    Args:
        tasks: what to run.
        lines: of `lines_of`.
        folding: the hardware.
        weight_bits: of a signed weight.
    """
    refine = any(line.refine for one in lines for line in one)
    flush = _DRAIN + _REFINE * refine + folding.lanes // folding.units
    bases, depth = _place(tasks, folding)
    found = [_load(entry, bases, folding, flush) for entry in tasks.entries]
    for task, one in zip(tasks.tasks, lines, strict=True):
        found.append(_instruction(task, one, bases, folding, flush, weight_bits))
    return Program(
        folding, tasks, tuple(found), depth, sum(one.clocks for one in found), flush, refine
    )  # fmt: skip


def _place(tasks: Tasks, folding: Folding) -> tuple[dict[str, int], int]:
    """Return where each tensor begins, first fit while it lives, and the words taken."""
    last = {source.name: i for i, task in enumerate(tasks.tasks) for source in task.sources}
    births = [(entry.tensor, -1) for entry in tasks.entries]
    births += [(task.tensor, i) for i, task in enumerate(tasks.tasks) if task.kept]
    bases: dict[str, int] = {}
    live: list[tuple[int, int, int]] = []  # begin, end, last reader
    for tensor, birth in births:
        live = sorted(one for one in live if one[2] >= birth)
        words, begin = tensor.pixels * folding.groups(tensor.channels), 0
        for low, high, _ in live:
            if begin + words <= low:
                break
            begin = max(begin, high)
        bases[tensor.name] = begin
        live.append((begin, begin + words, last.get(tensor.name, birth)))
    ends = [bases[t.name] + t.pixels * folding.groups(t.channels) for t, _ in births]
    return bases, max(ends)


def _load(entry: Entry, bases: dict[str, int], folding: Folding, flush: int) -> Instruction:
    tensor = entry.tensor
    groups, chunks = folding.groups(tensor.channels), folding.chunks(tensor.channels)
    one = Loop(1)
    loops = (one, one, one, one, Loop(tensor.width * groups), Loop(tensor.height))
    clocks = tensor.pixels * groups * chunks + flush + _FETCH
    none = np.zeros((0, folding.lanes), np.int64)
    return Instruction(
        tensor.name, None, tensor, bases[tensor.name], loops, (0, 0, 0), none, False, True, (), chunks, clocks
    )  # fmt: skip


def _instruction(
    task: Task, lines: tuple[Line, ...], bases: dict[str, int], folding: Folding, flush: int, weight_bits: int
) -> Instruction:
    tensor = task.tensor
    weights, repeats = _weights(task, folding, weight_bits)
    loops = _loops(task, bases, folding, repeats)
    source = task.sources[0]
    words = folding.groups(source.channels)
    top, left = -task.pads[0], -task.pads[1]
    start = bases[source.name] + (top * source.width + left) * words, top, left
    chunks = folding.chunks(tensor.channels)
    window = int(np.prod([loop.count for loop in loops[:3]]))
    made = tensor.pixels * folding.groups(tensor.channels)
    clocks = made * max(window, chunks) - max(chunks - window, 0) + flush + _FETCH
    hold = weights.shape[0] == 1 and task.own
    return Instruction(
        task.name, task, tensor, bases.get(tensor.name, 0), loops, start, weights, not hold,
        task.own and task.weights.shape[0] == 1, lines, chunks, clocks,
    )  # fmt: skip


def _loops(task: Task, bases: dict[str, int], folding: Folding, repeats: int) -> tuple[Loop, ...]:
    source, target = task.sources[0], task.tensor
    words, groups = folding.groups(source.channels), folding.groups(target.channels)
    line = source.width * words
    outer = (
        Loop(groups, 1 if task.own else 0),
        Loop(target.width, task.strides[1] * words, columns=task.strides[1]),
        Loop(target.height, task.strides[0] * line, rows=task.strides[0]),
    )
    if len(task.sources) == 2:
        apart = bases[task.sources[1].name] - bases[source.name]
        return (Loop(1), Loop(repeats), Loop(2, apart), *outer)
    down, along = task.dilations
    return (
        Loop(1 if task.own else source.channels),
        Loop(task.kernel[1], along * words, columns=along),
        Loop(task.kernel[0], down * line, rows=down),
        *outer,
    )


def _weights(task: Task, folding: Folding, bits: int) -> tuple[Ints, int]:
    """Return words of weights in the order of the steps, and how often a step of a sum is repeated."""
    lanes, weights, repeats = folding.lanes, task.weights, 1
    if len(task.sources) == 2:
        weights = spread(weights[0], bits)
        repeats = weights.shape[1] // 2
    rows = weights.reshape(weights.shape[0], -1)
    if task.own and rows.shape[0] == 1:
        return np.repeat(rows.T, lanes, axis=1), repeats
    groups = folding.groups(rows.shape[0])
    padded = np.zeros((groups * lanes, rows.shape[1]), np.int64)
    padded[: rows.shape[0]] = rows
    words = padded.reshape(groups, lanes, -1).transpose(0, 2, 1)
    return words.reshape(-1, lanes), repeats


def spread(factors: Ints, bits: int) -> Ints:
    """Return two factors as equally many weights each that sum to them, [1, 2 * steps].

    >>> spread(np.array([5, -300]), 8).tolist()
    [[5, 0, 0, -127, -127, -46]]
    """
    most = (1 << (bits - 1)) - 1
    steps = max(-(-abs(int(f)) // most) for f in factors)
    parts = []
    for factor in factors:
        left = abs(int(factor))
        for _ in range(steps):
            parts.append(min(left, most) * (1 if factor > 0 else -1))
            left -= min(left, most)
    return np.asarray([parts], np.int64)


def weight_bits(tasks: Tasks) -> int:
    """Return the bits of a signed weight that hold every weight; sums of tensors are spread to fit."""
    arrays = [task.weights for task in tasks.tasks if len(task.sources) == 1]
    least = min((int(w.min(initial=0)) for w in arrays), default=0)
    most = max((int(w.max(initial=1)) for w in arrays), default=1)
    return max(signed_bits(least, most), 2)


def signed_bits(low: int, high: int) -> int:
    """Return two's complement bits of low to high.

    >>> [signed_bits(*ends) for ends in ((-1, 1), (-128, 127), (0, 128))]
    [2, 8, 9]
    """
    return max(high, -low - 1, 0).bit_length() + 1
