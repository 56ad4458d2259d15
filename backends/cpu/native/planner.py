"""Static memory plan: one arena, one fixed offset per buffer, no allocation while running.

A buffer is live from the step that writes it to the last step that reads it. Buffers that must share memory
(reshapes) or may (in-place unary and add, where the input dies) are one block; `compiler/arena.py` places
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ....compiler.arena import TRIES, Block, aligned, arrange, lower_bound, top
from .program import ALIAS, Program, Step


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
        arena_bytes=top(blocks, offsets),
        bound_bytes=lower_bound(blocks),
        naive_bytes=sum(aligned(b.bytes) for b in own),
    )
