"""Runs event graphs by the C kernels: places populations and weights as they want them, through ctypes."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...compiler.backend import Array
from .bounds import layer_bounds
from .graph import Conv, Dense, EventGraph, Integers, Layer, MaxPool, OneToOne, SumPool, Window
from .layout import (
    BLOCK,
    PATCHES,
    POINTS,
    Place,
    depthwise_rows,
    image_of,
    quads,
    rows_of,
    weights_by_tap,
    winograd_pays,
    winograd_rows,
)
from .requant import formula
from .structs import Scratch, Step, open_library

# Shares of active inputs beyond which the dense form is faster, measured: docs/results/event_layers.md.
BREAK_EVEN_IMAGE = 0.25
BREAK_EVEN_WINOGRAD = 0.17
BREAK_EVEN_VECTOR = 0.50

_PRODUCT, _DEPTHWISE, _SUM_POOL, _MAX_POOL, _TABLE, _TABLE2 = range(6)
MODES = {"auto": 0, "dense": 1, "events": 2}


class Unfit(Exception):
    """The kernels do not take a layer; NumPy runs the graph then."""


class NativeGraph:
    """An event graph ready for the kernels; runs samples one by one.

    Attributes:
        library: the kernels.
        places: memory of every population.
        steps: what the kernels run, in order.
        names: of the layers that the steps belong to.
    """

    def __init__(self, graph: EventGraph, library: Path, mode: str = "auto") -> None:
        """Place everything.

        Args:
            graph: to run.
            library: of kernels, see `build`.
            mode: `auto` chooses per layer by activity, `dense` and `events` force one form.

        Raises:
            Unfit: the kernels do not take a layer.
            ArtifactError: the library cannot be loaded.
        """
        self._graph = graph
        self.library = open_library(library)
        self._permuted = bool(self.library.pared_event_permuted())
        self._mode = MODES[mode]
        self._kept: list[Array] = []
        self.places: dict[str, Place] = {}
        self._layers: list[Step] = []
        self.names: list[str] = []
        self._lock = threading.Lock()
        for entry in graph.inputs:
            self._place(entry.population, entry.shape, (entry.low, entry.high))
        for layer in graph.layers:
            self._add(layer)
        self.steps = (Step * len(self._layers))(*self._layers)
        self._room = self._make_scratch()

    def run(self, counts: Mapping[str, Integers]) -> dict[str, Integers]:
        """Return the integers of the outputs' layers, [samples, *shape], from those of the inputs."""
        samples = len(next(iter(counts.values())))
        wanted = {output.layer for output in self._graph.outputs}
        found: dict[str, list[Integers]] = {name: [] for name in wanted}
        with self._lock:
            for sample in range(samples):
                self._run_one({name: array[sample] for name, array in counts.items()})
                for name in wanted:
                    found[name].append(self.counts(name))
        return {name: np.stack(parts) for name, parts in found.items()}

    def _run_one(self, counts: Mapping[str, Integers]) -> None:
        for entry in self._graph.inputs:
            self.places[entry.population].write(counts[entry.population])
        self.step()

    def step(self) -> None:
        """Run all layers on what lies in the inputs' places."""
        self.library.pared_event_run(self.steps, len(self.steps), self.scratch)

    @property
    def scratch(self) -> object:
        """Return what kernels take as room of their own."""
        return ctypes.byref(self._room)

    def place(self, population: str) -> Place:
        """Return where a population lies."""
        return self.places[population]

    def counts(self, population: str) -> Integers:
        """Return what a population holds after the last run, in ONNX order."""
        return self.places[population].read()

    def choices(self) -> dict[str, tuple[int, bool]]:
        """Return per product layer how many inputs were active last, and whether it ran by events."""
        return {
            name: (int(step.active), bool(step.ran_events))
            for name, step in zip(self.names, self.steps, strict=True)
            if step.kind == _PRODUCT
        }

    def _place(self, name: str, shape: tuple[int, ...], counts: tuple[int, int]) -> Place:
        made = Place.of(shape, counts)
        self.places[name] = made
        return made

    def _keep(self, array: Array) -> int:
        ready = np.ascontiguousarray(array)
        self._kept.append(ready)
        return int(ready.ctypes.data)

    def _add(self, layer: Layer) -> None:
        ladder = layer.ladder
        if ladder is None:
            target = self.places[layer.name] = Place.readout(layer.shape)
        else:
            target = self._place(layer.name, layer.shape, (ladder.low, ladder.high))
        if all(isinstance(c.synapses, OneToOne) for c in layer.connections):
            self._tables(layer, target)
            return
        if len(layer.connections) != 1:
            raise Unfit(f"layer {layer.name!r}: several weighted connections")
        connection = layer.connections[0]
        source, synapses = self.places[connection.source], connection.synapses
        step = self._step(layer, source, target)
        if isinstance(synapses, Dense):
            self._dense(step, layer, synapses, source)
        elif isinstance(synapses, Conv):
            self._conv(step, layer, synapses, source)
        elif isinstance(synapses, SumPool | MaxPool):
            self._pool(step, synapses, connection.values)
        self._push(step, layer.name)

    def _push(self, step: Step, name: str) -> None:
        self._layers.append(step)
        self.names.append(name)

    def _step(self, layer: Layer, source: Place, target: Place) -> Step:
        step = Step(mode=self._mode, first=0)
        step.source, step.target = source.address, target.address
        step.wide_in, step.in_low, step.readout = source.wide, source.low, layer.ladder is None
        step.in_h, step.in_w, step.in_c, step.in_pitch = *source.image, source.pitch
        step.out_h, step.out_w, step.out_c, step.out_pitch = *target.image, target.pitch
        step.wide_out = target.wide
        step.kh = step.kw = step.sh = step.sw = step.dh = step.dw = 1
        self._thresholds(step, layer)
        return step

    def _thresholds(self, step: Step, layer: Layer) -> None:
        ladder = layer.ladder
        if ladder is None:
            return
        step.low, step.levels = ladder.low, ladder.high - ladder.low
        step.rows = len(ladder.thresholds)
        step.thresholds = self._keep(ladder.thresholds)
        summed = isinstance(layer.connections[0].synapses, Dense | Conv)
        found = formula(ladder, layer.channels, layer_bounds(self._graph, layer)) if summed else None
        if found is not None:
            step.formula = 1
            step.factor, step.shift = (self._keep(_blocks(part, np.float32)) for part in found)

    def _dense(self, step: Step, layer: Layer, synapses: Dense, source: Place) -> None:
        """Read the source as one pixel with all its elements as channels."""
        height, width, channels = source.image
        w = synapses.weights.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
        padded = np.zeros((*w.shape[:3], source.pitch), np.int8)
        padded[..., :channels] = w
        step.in_h = step.in_w = 1
        step.in_c = step.in_pitch = height * width * source.pitch
        step.break_even = BREAK_EVEN_VECTOR
        self._product(step, layer, padded.reshape(len(w), 1, -1))

    def _conv(self, step: Step, layer: Layer, synapses: Conv, source: Place) -> None:
        self._window(step, synapses.window)
        step.bias = self._keep(_blocks(np.broadcast_to(layer.bias, (layer.channels,)), np.int32))
        if synapses.groups == source.image[2] == layer.channels:
            step.kind = _DEPTHWISE
            step.weights = self._keep(depthwise_rows(synapses.weights))
            return
        step.break_even = BREAK_EVEN_IMAGE
        w = weights_by_tap(synapses, source.image[2])
        self._product(step, layer, w)
        if (
            self._permuted
            and not step.wide_in
            and winograd_pays(synapses, source.image, image_of(layer.shape))
        ):
            step.winograd = self._keep(winograd_rows(w))
            step.break_even = BREAK_EVEN_WINOGRAD

    def _product(self, step: Step, layer: Layer, w: Array) -> None:
        """Store weights [outputs, taps, inputs] as rows, and as quads where the dense form is there."""
        # By events 64 outputs cost what one costs, densely 16.
        step.break_even *= -(-len(w) // 16) / (4 * -(-len(w) // BLOCK))
        step.kind = _PRODUCT
        step.bias = self._keep(_blocks(np.broadcast_to(layer.bias, (layer.channels,)), np.int32))
        step.weights = self._keep(rows_of(w, self._permuted))
        if self._permuted and not step.wide_in:
            step.quads = self._keep(quads(w))

    def _pool(self, step: Step, synapses: SumPool | MaxPool, values: Integers | None) -> None:
        self._window(step, synapses.window)
        step.kind = _MAX_POOL if isinstance(synapses, MaxPool) else _SUM_POOL
        if step.kind == _SUM_POOL:
            if values is None:
                raise Unfit("a sum of plain counts")
            step.values = self._keep(values)

    def _window(self, step: Step, window: Window) -> None:
        (step.kh, step.kw), (step.sh, step.sw) = window.kernel, window.strides
        step.top, step.left = window.pads[:2]
        step.dh, step.dw = window.dilations

    def _tables(self, layer: Layer, target: Place) -> None:
        """Compute sums of one or two counts by looking them up."""
        ladder = layer.ladder
        if ladder is None or len(np.unique(ladder.thresholds, axis=0)) != 1:
            raise Unfit(f"layer {layer.name!r}: thresholds per channel behind a sum of counts")
        parts = [(self.places[c.source], c.values, c.synapses) for c in layer.connections]
        firsts = [synapses.first for _, _, synapses in parts if isinstance(synapses, OneToOne)]
        thresholds = ladder.thresholds[0]
        if len(parts) == 2 and firsts == [0, 0]:
            sums = _levels(*parts[0][:2])[:, None] + _levels(*parts[1][:2])[None, :]
            step = self._lookup(layer, target, parts[0][0], np.searchsorted(thresholds, sums, "right"))
            other = parts[1][0]
            step.kind, step.source2, step.levels2 = _TABLE2, other.address, sums.shape[1]
            step.in_low2, step.wide_in2 = other.low, other.wide
            self._push(step, layer.name)
            return
        if len(set(firsts)) != len(firsts) or layer.bias.any():
            raise Unfit(f"layer {layer.name!r}: sums of {len(parts)} populations")
        for (source, values, _), first in zip(parts, firsts, strict=True):
            reached = np.searchsorted(thresholds, _levels(source, values), "right")
            step = self._lookup(layer, target, source, reached)
            step.first = first
            self._push(step, layer.name)

    def _lookup(self, layer: Layer, target: Place, source: Place, reached: Array) -> Step:
        step = self._step(layer, source, target)
        step.kind = _TABLE
        assert layer.ladder is not None, "checked before"
        step.table = self._keep((reached + layer.ladder.low).astype(np.int16))
        return step

    def _make_scratch(self) -> Scratch:
        products = [step for step in self._layers if step.kind == _PRODUCT]
        inputs = max([step.in_h * step.in_w * step.in_c for step in products], default=0) + 64
        taken = max([step.kh * step.kw * step.in_c for step in products], default=0) + 64
        pixels = max([step.in_h * step.in_w for step in products], default=0) + 1
        pitch = max([step.in_pitch for step in products], default=0) + 64
        frame = max([step.out_h * step.out_w * step.out_pitch for step in self._layers], default=0) + 64
        spread = max([_spread(step.in_c) for step in products if step.winograd], default=0)
        sizes = [
            (pixels, np.int32), (inputs, np.int32), (taken, np.int32), (inputs, np.uint8), (taken, np.uint8),
            (inputs, np.int16), (taken, np.int16), (pitch, np.uint8), (spread, np.int16),
            (POINTS * (PATCHES + 1) * BLOCK if spread else 0, np.int32), (2 * frame, np.uint8),
        ]  # fmt: skip
        return Scratch(*[self._keep(np.zeros(size, dtype)) for size, dtype in sizes])


def _levels(source: Place, values: Integers | None) -> Integers:
    """Return what every count of a source stands for."""
    return np.arange(source.low, source.high + 1) if values is None else values


def _spread(channels: int) -> int:
    """Return the size of the transformed patches; see c/winograd.h."""
    return int(POINTS * ((PATCHES * -(-channels // 32)) | 1) * 32)


def _blocks(array: Array, dtype: type[np.generic]) -> Array:
    """Return an array with its length rounded up to whole blocks."""
    padded = np.zeros(-(-array.size // BLOCK) * BLOCK, dtype)
    padded[: array.size] = array
    return padded
