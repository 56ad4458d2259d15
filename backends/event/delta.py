"""Frame streams by what changed (sigma-delta): accumulators are kept, changes of counts are added to them.

A frame costs what its changes cost, layer by layer; after every frame all counts and accumulators are the
integers that the whole frame would have given. Nothing drifts: sums are integers, bounds are proven for
every input, and what is between two frames is an input, too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...compiler.backend import Array
from .graph import Connection, Conv, Dense, EventGraph, Integers, Layer, MaxPool, Reals
from .ladders import climb
from .layout import Place
from .native import NativeGraph
from .simulate import Counts, accumulate, add, values_of
from .structs import Change, DeltaStep

RAN = ("changes", "events", "dense", "nothing")


@dataclass(frozen=True)
class LayerWork:
    """What the last frame cost a layer.

    Attributes:
        changes: counts of what feeds it that changed.
        operations: products of a weight with a change or a count; 0 where nothing was to do.
        ran: `changes`, or `events` or `dense` where the whole frame was less work, or `nothing`.
    """

    changes: int
    operations: int
    ran: str


class DeltaGraph:
    """An event graph by the C kernels, with its state; not for several threads at once."""

    def __init__(self, graph: EventGraph, library: Path, mode: str = "auto") -> None:
        """Place everything; nothing has been seen yet.

        Args:
            graph: to run.
            library: of kernels, see `build`.
            mode: `auto` chooses per layer by what changed and what is active, `events` always adds changes,
                `dense` always computes the whole frame.

        Raises:
            Unfit: the kernels do not take a layer.
            ArtifactError: the library cannot be loaded.
        """
        self.graph = graph
        self._native = NativeGraph(graph, library, mode)
        self._kept: list[Array] = []
        names = {place.address: name for name, place in self._native.places.items()}
        self._changes = {name: self._change(place) for name, place in self._native.places.items()}
        steps = [self._delta(step, names) for step in self._native.steps]
        self._steps = (DeltaStep * len(steps))(*steps)
        self._staged = {e.population: Place.of(e.shape, (e.low, e.high)) for e in graph.inputs}

        self._auto = mode == "auto"
        self._many: int | None = None
        self._was_whole, self._whole_work = False, 0
        self._entries = [self._entry(name) for name in self._staged]

    def _entry(self, name: str) -> tuple[object, int, int, int, int]:
        place, staged = self._native.place(name), self._staged[name]
        pixels = place.array.shape[0] * place.array.shape[1]
        return ctypes.byref(self._changes[name]), place.address, staged.address, pixels, place.pitch

    def reset(self) -> None:
        """Forget all frames; the next one is computed whole."""
        for step in self._steps:
            step.fresh = 1

    def staged(self, population: str) -> Place:
        """Return where the counts of an input's next frame are to be written."""
        return self._staged[population]

    def step(self, counts: Mapping[str, Integers]) -> dict[str, Integers]:
        """Take the next frame, counts [*shape] by population; returns the integers of the outputs' layers."""
        for name, array in counts.items():
            self._staged[name].write(array)
        self.advance()
        return {output.layer: self._native.counts(output.layer) for output in self.graph.outputs}

    def advance(self) -> None:
        """Run on what lies in the staged places."""
        library = self._native.library
        changes = sum(library.pared_event_input(*entry) for entry in self._entries)
        self._was_whole = self._many is not None and changes > self._many
        if self._was_whole:
            self._advance_whole()
            return
        gained = library.pared_event_delta(self._steps, len(self._steps), self._native.scratch)
        # Where no layer gains from the changes, frames that differ as much are not compared at all.
        self._many = None if gained or not self._auto else changes // 2

    def _advance_whole(self) -> None:
        """Compute the frame without looking for changes; the next one that differs less begins anew."""
        self._native.step()
        self._whole_work += sum(step.work for step in self._native.steps)
        self.reset()

    def counts(self, population: str) -> Integers:
        """Return what a population holds now, in ONNX order."""
        return self._native.counts(population)

    def work(self) -> dict[str, LayerWork]:
        """Return what the last frame cost, by layer; the parts of a concat add up."""
        if self._was_whole:
            return {
                name: LayerWork(0, step.work, RAN[1 if step.ran_events else 2])
                for name, step in zip(self._native.names, self._native.steps, strict=True)
            }
        found: dict[str, LayerWork] = {}
        for name, step in zip(self._native.names, self._steps, strict=True):
            one = found.get(name, LayerWork(0, 0, "nothing"))
            ran = RAN[step.ran] if step.ran < 3 else one.ran
            found[name] = LayerWork(one.changes + step.changes, one.operations + step.work, ran)
        return found

    def totals(self) -> tuple[int, int]:
        """Return changes and operations of all frames and layers; whole frames are not searched."""
        work = sum(step.all_work for step in self._steps) + self._whole_work
        return sum(step.all_changes for step in self._steps), work

    def _change(self, place: Place) -> Change:
        rows, columns, pitch = place.array.shape
        size = rows * columns * pitch + 64
        change = Change(pixels=self._room(rows * columns, np.uint8))
        if place.wide:
            change.wide = self._room(size, np.int16)
        elif place.array.dtype == np.uint8:
            change.plus, change.minus = self._room(size, np.uint8), self._room(size, np.uint8)
        return change

    def _delta(self, step: ctypes.Structure, names: Mapping[int, str]) -> DeltaStep:
        made = DeltaStep(layer=step, fresh=1)
        layer = made.layer
        made.source = ctypes.pointer(self._changes[names[layer.source]])
        if layer.source2:
            made.source2 = ctypes.pointer(self._changes[names[layer.source2]])
        made.target = ctypes.pointer(self._changes[names[layer.target]])
        pixels = layer.out_h * layer.out_w
        made.touched = self._room(pixels, np.uint8)
        # Kernels read up to 64 accumulators at once.
        made.sums = layer.target if layer.readout else self._room(pixels * layer.out_c + 64, np.int32)
        return made

    def _room(self, size: int, dtype: type[np.generic]) -> int:
        array = np.zeros(size, dtype)
        self._kept.append(array)
        return int(array.ctypes.data)


class NumpyDeltas:
    """The same in NumPy: what the kernels are checked with, and what runs without a C compiler."""

    def __init__(self, graph: EventGraph) -> None:
        self.graph = graph
        self._counts: Counts = {}
        self._totals: Counts = {}
        self._work: dict[str, LayerWork] = {}
        self._all = (0, 0)

    def reset(self) -> None:
        """Forget all frames."""
        self._counts, self._totals = {}, {}

    def step(self, counts: Mapping[str, Integers]) -> dict[str, Integers]:
        """Take the next frame, counts [*shape] by population; returns the integers of the outputs' layers."""
        before = self._counts
        self._counts = {name: np.asarray(array, np.int64)[None] for name, array in counts.items()}
        for layer in self.graph.layers:
            self._advance(layer, before)
            one = self._work[layer.name]
            self._all = (self._all[0] + one.changes, self._all[1] + one.operations)
        return {output.layer: self._counts[output.layer][0] for output in self.graph.outputs}

    def counts(self, population: str) -> Integers:
        """Return what a population holds now, in ONNX order."""
        return np.asarray(self._counts[population][0], np.int64)

    def work(self) -> dict[str, LayerWork]:
        """Return what the last frame cost, by layer."""
        return dict(self._work)

    def totals(self) -> tuple[int, int]:
        """Return changes and operations of all frames and layers."""
        return self._all

    def _advance(self, layer: Layer, before: Counts) -> None:
        whole = not before or any(isinstance(c.synapses, MaxPool) for c in layer.connections)
        total = accumulate(self.graph, layer, self._counts) if whole else self._totals[layer.name].copy()
        changes = operations = 0
        for connection in layer.connections:
            now = self._counts[connection.source]
            old = before.get(connection.source, np.zeros_like(now))
            low = self.graph.range(connection.source)[0]
            changed = now != old
            changes += int(changed.sum())
            operations += operations_of(layer, connection.synapses, changed)
            if not whole:
                add(total, connection, values_of(connection, now, low) - values_of(connection, old, low))
        self._totals[layer.name] = total
        self._counts[layer.name] = total if layer.ladder is None else climb(layer.ladder, total)
        self._work[layer.name] = LayerWork(changes, operations, "changes")


def operations_of(layer: Layer, synapses: object, active: Array) -> int:
    """Return how many products active elements [1, ...] of a source cause in a dense or full conv layer."""
    if isinstance(synapses, Dense):
        return int(active.sum()) * layer.channels
    if not isinstance(synapses, Conv) or synapses.groups != 1:
        return 0
    seen: Reals = np.asarray(active.reshape(active.shape[-3:]).sum(axis=0), np.float64)
    one = Conv(np.ones((1, 1, *synapses.window.kernel), np.int32), synapses.window)
    total = np.zeros((1, 1, *layer.shape[1:]), np.int64)
    add(total, Connection("", one), seen[None, None].astype(np.int64))
    return int(total.sum()) * layer.channels
