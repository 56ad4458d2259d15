"""Where buffers of known life lie in one arena: the fewest bytes, decided before anything runs.

Blocks whose lives overlap must not overlap in memory. Greedy by size and greedy by breadth
(https://arxiv.org/abs/2001.03288) place the blocks one after the other in the best-fitting gap; where that
misses the lower bound (the most bytes live at any step), a short search over placement orders follows,
deterministic by its fixed seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


def aligned(count: int) -> int:
    """Return `count` bytes rounded up to `ALIGNMENT`."""
    return -(-count // ALIGNMENT) * ALIGNMENT


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


def top(blocks: Sequence[Block], offsets: Sequence[int]) -> int:
    """Return the size of the arena that holds the placed blocks."""
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
    offsets, order = min(placed, key=lambda pair: top(blocks, pair[0]))
    best, chance = top(blocks, offsets), random.Random(0)
    for _ in range(tries):
        peaks = [i for i, block in enumerate(blocks) if offsets[i] + block.bytes == best]
        tried = _moves(order, peaks, chance)
        trial = place(blocks, tried, near)
        yield trial
        if top(blocks, trial) <= best:
            offsets, order, best = trial, tried, top(blocks, trial)


def arrange(blocks: Sequence[Block], tries: int = TRIES) -> list[int]:
    """Return an offset for every block; stops at the lower bound or after `tries` orders."""
    bound, best = lower_bound(blocks), None
    least = 0
    for offsets in _candidates(blocks, tries, rivals(blocks)) if blocks else ():
        reach = top(blocks, offsets)
        if best is None or reach < least:
            best, least = offsets, reach
        if least == bound:
            break
    return best or []
