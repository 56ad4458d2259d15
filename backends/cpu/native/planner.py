"""Static memory plan: one arena, one fixed offset per buffer, no allocation while running.

A buffer is live from the step that writes it to the last step that reads it. Buffers that must share memory
(reshapes) or may (in-place unary and add, where the input dies) are one block. Blocks whose lives overlap
must not overlap in memory. Greedy by size and greedy by breadth (arXiv 2001.03288) place the blocks one after
the other in the best-fitting gap; where that misses the lower bound (the most bytes live at any step), a
short search over placement orders follows, deterministic by its fixed seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from .program import ALIAS, Program, Step

ALIGNMENT = 64
TRIES = 3000


@dataclass(frozen=True)
class Block:
    """Memory needed from step `first` to step `last`, both included; `bytes` is a multiple of `ALIGNMENT`."""

    first: int
    last: int
    bytes: int

    def meets(self, other: Block) -> bool:
        """Say whether both are live at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Place:
    """Where a buffer lies: `offset` bytes into the arena, or the whole of the model's `index`-th port."""

    where: Literal["arena", "input", "output"]
    offset: int = 0
    index: int = 0


@dataclass(frozen=True)
class Plan:
    """The addresses of a program's buffers.

    Attributes:
        places: (buffer, place) for every buffer of the program, in its order.
        arena_bytes: size of the arena, a multiple of `ALIGNMENT`.
        bound_bytes: the most bytes live at one step; no plan for this order of steps can be smaller.
        naive_bytes: what the buffers need with memory of their own each.
    """

    places: tuple[tuple[str, Place], ...]
    arena_bytes: int
    bound_bytes: int
    naive_bytes: int


def aligned(count: int) -> int:
    """Return `count` bytes rounded up to `ALIGNMENT`."""
    return -(-count // ALIGNMENT) * ALIGNMENT


# --- lives ------------------------------------------------------------------------------------------


class _Groups:
    """Union-find over buffers that share memory, with the first and last step of each group."""

    def __init__(self, program: Program) -> None:
        self._root = {buffer.name: buffer.name for buffer in program.buffers}
        self.ports = {name: Place("input", index=i) for i, name in enumerate(program.inputs)}
        self.ports |= {name: Place("output", index=i) for i, name in enumerate(program.outputs)}
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.bytes = {buffer.name: aligned(buffer.bytes) for buffer in program.buffers}
        for index, step in enumerate(program.steps):
            for name in step.touched:
                self.first.setdefault(name, index)
                self.last[name] = index

    def root(self, name: str) -> str:
        while self._root[name] != name:
            self._root[name] = self._root[self._root[name]]
            name = self._root[name]
        return name

    def join(self, old: str, new: str) -> None:
        """Let `new` share the memory of `old`."""
        a, b = self.root(old), self.root(new)
        if a == b:
            return
        assert not (a in self.ports and b in self.ports), f"{old!r} and {new!r} are both the caller's memory"
        keep, gone = (b, a) if b in self.ports else (a, b)
        self._root[gone] = keep
        self.first[keep] = min(self.first[a], self.first[b])
        self.last[keep] = max(self.last[a], self.last[b])
        self.bytes[keep] = max(self.bytes[a], self.bytes[b])

    def may_overwrite(self, step: Step, index: int) -> bool:
        """Say whether the step's output may take the memory of one of its inputs.

        The input must die here, be ours, hold as many bytes, and be read by no other operand of the step.
        """
        assert step.in_place is not None, "asked about a step that never works in place"
        source, target = self.root(step.inputs[step.in_place]), self.root(step.outputs[0])
        shared = [name for name in step.touched if self.root(name) == source]
        return (
            source not in self.ports
            and target not in self.ports
            and self.last[source] == index
            and self.bytes[source] == self.bytes[target]
            and len(shared) == 1
        )


def _group(program: Program) -> _Groups:
    groups = _Groups(program)
    for step in program.steps:
        if step.family == ALIAS:
            groups.join(step.inputs[0], step.outputs[0])
    for index, step in enumerate(program.steps):
        if step.in_place is not None and groups.may_overwrite(step, index):
            groups.join(step.inputs[step.in_place], step.outputs[0])
    return groups


# --- placement --------------------------------------------------------------------------------------


def lower_bound(blocks: Sequence[Block]) -> int:
    """Return the most bytes live at one step."""
    changes: dict[int, int] = {}
    for block in blocks:
        changes[block.first] = changes.get(block.first, 0) + block.bytes
        changes[block.last + 1] = changes.get(block.last + 1, 0) - block.bytes
    live = most = 0
    for step in sorted(changes):
        live += changes[step]
        most = max(most, live)
    return most


def rivals(blocks: Sequence[Block]) -> list[list[int]]:
    """Return, for each block, the blocks that are live at the same time as it."""
    found: list[list[int]] = [[] for _ in blocks]
    live: list[int] = []
    for i in sorted(range(len(blocks)), key=lambda k: blocks[k].first):
        live = [j for j in live if blocks[j].last >= blocks[i].first]
        for j in live:
            found[i].append(j)
            found[j].append(i)
        live.append(i)
    return found


def place(blocks: Sequence[Block], order: Sequence[int], near: Sequence[Sequence[int]]) -> list[int]:
    """Return offsets: each block in turn goes into the smallest gap that holds it, else on top."""
    offsets = [-1] * len(blocks)
    for i in order:
        need, end, best, room = blocks[i].bytes, 0, -1, 0
        for low, high in sorted(
            (offsets[j], offsets[j] + blocks[j].bytes) for j in near[i] if offsets[j] >= 0
        ):
            gap = low - end
            if gap >= need and (best < 0 or gap < room):
                best, room = end, gap
            end = max(end, high)
        offsets[i] = end if best < 0 else best
    return offsets


def _top(blocks: Sequence[Block], offsets: Sequence[int]) -> int:
    return max((o + b.bytes for o, b in zip(offsets, blocks, strict=True)), default=0)


def _by_size(blocks: Sequence[Block]) -> list[int]:
    return sorted(range(len(blocks)), key=lambda i: (-blocks[i].bytes, blocks[i].first, i))


def _by_length(blocks: Sequence[Block]) -> list[int]:
    return sorted(
        range(len(blocks)), key=lambda i: (-(blocks[i].last - blocks[i].first), -blocks[i].bytes, i)
    )


def _by_breadth(blocks: Sequence[Block]) -> list[int]:
    """Order by the fullest step first; within a step by size."""
    live: dict[int, list[int]] = {}
    for i, block in enumerate(blocks):
        for step in range(block.first, block.last + 1):
            live.setdefault(step, []).append(i)
    fullest = sorted(live, key=lambda step: (-sum(blocks[i].bytes for i in live[step]), step))
    return list(
        dict.fromkeys(i for step in fullest for i in sorted(live[step], key=lambda i: -blocks[i].bytes))
    )


def _moves(order: list[int], peaks: Sequence[int], chance: random.Random) -> list[int]:
    """Return `order` with one block moved forward: one that reaches the top, or any."""
    new = list(order)
    moved = chance.choice(peaks) if chance.random() < 0.5 else chance.choice(new)
    at = new.index(moved)
    new.pop(at)
    new.insert(chance.randrange(at + 1) if chance.random() < 0.8 else chance.randrange(len(order)), moved)
    return new


def _candidates(blocks: Sequence[Block], tries: int, near: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield placements: the greedy ones, then neighbours of the best order so far."""
    orders = [_by_size(blocks), _by_breadth(blocks), _by_length(blocks)]
    placed = [(place(blocks, order, near), order) for order in orders]
    yield from (offsets for offsets, _ in placed)
    offsets, order = min(placed, key=lambda pair: _top(blocks, pair[0]))
    best, chance = _top(blocks, offsets), random.Random(0)
    for _ in range(tries):
        peaks = [i for i, block in enumerate(blocks) if offsets[i] + block.bytes == best]
        tried = _moves(order, peaks, chance)
        trial = place(blocks, tried, near)
        yield trial
        if _top(blocks, trial) <= best:
            offsets, order, best = trial, tried, _top(blocks, trial)


def arrange(blocks: Sequence[Block], tries: int = TRIES) -> list[int]:
    """Return an offset for every block; stops at the lower bound or after `tries` orders."""
    bound, best = lower_bound(blocks), None
    least = 0
    for offsets in _candidates(blocks, tries, rivals(blocks)) if blocks else ():
        top = _top(blocks, offsets)
        if best is None or top < least:
            best, least = offsets, top
        if least == bound:
            break
    return best or []


def plan(program: Program, tries: int = TRIES) -> Plan:
    """Place every buffer of `program`; the model's inputs and outputs stay in the caller's memory."""
    groups = _group(program)
    roots = [b.name for b in program.buffers if groups.root(b.name) == b.name and b.name not in groups.ports]
    blocks = [Block(groups.first[name], groups.last[name], groups.bytes[name]) for name in roots]
    offsets = arrange(blocks, tries)
    where = {name: Place("arena", offset) for name, offset in zip(roots, offsets, strict=True)} | groups.ports
    own = [b for b in program.buffers if b.name not in groups.ports]
    return Plan(
        places=tuple((b.name, where[groups.root(b.name)]) for b in program.buffers),
        arena_bytes=_top(blocks, offsets),
        bound_bytes=lower_bound(blocks),
        naive_bytes=sum(aligned(b.bytes) for b in own),
    )
