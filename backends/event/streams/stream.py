"""Runs a network over events and frames in order of time, with its state kept between calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from ....compiler.backend import Array
from ....compiler.errors import DataError, UnsupportedOp
from ....compiler.streams import Events, StreamStep
from ..graph import EventGraph, Input, Integers
from ..simulate import encode, reals
from .clock import Clock
from .queue import EventQueue

# Counts of one pixel and window beyond this are one value; 8 bits are full long before.
_MOST_PER_PIXEL = 1 << 16
_DROPPED = "give only events in order and in range, or leave strict out: they are dropped and counted then"


class Deltas(Protocol):
    """What runs frames: the kernels or NumPy."""

    graph: EventGraph

    def step(self, counts: Mapping[str, Integers]) -> dict[str, Integers]:
        """Take a frame."""

    def reset(self) -> None:
        """Forget all frames."""

    def totals(self) -> tuple[int, int]:
        """Return changes and operations of all frames and layers."""


@dataclass(frozen=True, eq=False)
class _Window:
    """The window of time that is open: its number, the events per element, and how many."""

    number: int
    elements: Integers
    events: int


class Stream:
    """A network that keeps its state: `EventStream` of compiler/streams.py.

    A window of time is a frame of counts: events per pixel and polarity (both polarities together where the
    model has one channel), quantized as the model's input. Windows without events give no step. The network
    adds what changed since the last frame; outputs are those of the whole frame, to the last bit.
    """

    def __init__(
        self, deltas: Deltas, *, window_us: int, strict: bool = False, clock_bits: int | None = None
    ) -> None:
        """Begin at no time, with an empty window.

        Raises:
            UnsupportedOp: `event-stream`, the model has several inputs.
        """
        graph = deltas.graph
        if len(graph.inputs) != 1:
            raise UnsupportedOp(
                "event-stream", f"the model has {len(graph.inputs)} inputs, a stream feeds one", "use run"
            )
        self._deltas, self._entry = deltas, graph.inputs[0]
        self._window_us, self._strict = window_us, strict
        self._clock = Clock(None if clock_bits is None else 1 << clock_bits)
        self._open: _Window | None = None
        self._resolution: tuple[int, int] | None = None
        self._levels = _levels(self._entry)
        self._frames = 0
        names = ("events", "used", "out_of_range", "saturated", "windows")
        self._counts = dict.fromkeys(names, 0)

    @property
    def counts(self) -> Mapping[str, int]:
        """Counters since the stream was opened."""
        changes, operations = self._deltas.totals()
        return {**self._counts, **self._clock.counts, "changes": changes, "operations": operations}

    def reset(self) -> None:
        """Forget all frames, the open window and the time, but no counter."""
        self._deltas.reset()
        self._open, self._resolution = None, None
        self._clock = Clock(self._clock.period, counts=self._clock.counts)

    def feed(self, events: Events, resolution: tuple[int, int] | None = None) -> list[StreamStep]:
        """Take events in order of time; returns the windows that they close.

        Raises:
            DataError: `event-resolution`; with `strict`, `event-range` or `event-order`. Nothing has changed.
        """
        channels, height, width = self._image()
        self._check_resolution(resolution, (width, height))
        x, y, p = (np.asarray(events[name], np.int64) for name in ("x", "y", "p"))
        stamps = np.asarray(events["t"], np.int64)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (p >= -1) & (p <= 1) & (stamps >= 0)
        if self._clock.period is not None:
            inside &= stamps < self._clock.period
        places = np.flatnonzero(inside)
        clock, kept, times = self._clock.accept(stamps[places])
        if self._strict:
            self._refuse(events, inside, clock, places[kept])
        self._clock, places = clock, places[kept]
        self._counts["events"] += len(events)
        self._counts["out_of_range"] += int(len(events) - np.count_nonzero(inside))
        self._counts["used"] += len(places)
        plane = (p[places] > 0) * (height * width) if channels == 2 else 0
        return self._collect(plane + y[places] * width + x[places], times // self._window_us)

    def over(self, chunks: Iterable[Events]) -> Iterator[StreamStep]:
        """Yield the steps of pieces of a recording, and at its end that of the window still open."""
        for events in chunks:
            yield from self.feed(events)
        yield from self.flush()

    def follow(self, queue: EventQueue, most: int = 1 << 16) -> Iterator[StreamStep]:
        """Yield steps while a queue gives events; nothing is read ahead of what the caller takes."""
        while (events := queue.get(most)) is not None:
            yield from self.feed(events)
        yield from self.flush()

    def flush(self) -> list[StreamStep]:
        """Close the window that is open."""
        window, self._open = self._open, None
        return [] if window is None else [self._close(window)]

    def frame(self, frame: Array) -> StreamStep:
        """Take the model's next input, without a sample axis.

        Raises:
            DataError: `event-frame`, on a wrong size.
        """
        entry = self._entry
        wanted = int(np.prod(entry.fed or entry.shape))
        if frame.size != wanted or frame.dtype.kind not in "biuf":
            raise DataError(
                "event-frame",
                f"a frame of {frame.dtype}{list(frame.shape)}; input {entry.name!r} takes {wanted} numbers",
                f"give frames of shape {entry.fed or entry.shape}; a table of events is a .npz of x, y, t, p",
            )
        before = self._deltas.totals()[0]
        found = self._run(self._encoded(frame))
        self._frames += 1
        return StreamStep(self._frames - 1, self._deltas.totals()[0] - before, found)

    def _encoded(self, frame: Array) -> Integers:
        """Return a frame's counts; integers beyond the input's range are cut, and counted."""
        entry, values = self._entry, frame[None]
        if entry.scale is None:
            whole = np.nan_to_num(np.asarray(values, np.float64))
            cut = np.clip(np.rint(whole), entry.low + entry.zero, entry.high + entry.zero)
            self._counts["saturated"] += int(np.count_nonzero(cut != whole))
            values = cut
        return np.asarray(encode(entry, values)[0])

    def _image(self) -> tuple[int, int, int]:
        fed = self._entry.shape if self._entry.axes else self._entry.fed or self._entry.shape
        if len(fed) != 3 or fed[0] not in (1, 2):
            raise UnsupportedOp(
                "event-stream",
                f"input {self._entry.name!r} has shape {fed}; address events need [1 or 2, height, width]",
                "feed frames or a raster",
            )
        return fed

    def _check_resolution(self, given: tuple[int, int] | None, model: tuple[int, int]) -> None:
        if given is None:
            return
        known = self._resolution or model
        if given != known or given != model:
            raise DataError(
                "event-resolution",
                f"events of {given[0]}x{given[1]} pixels; the model takes {model[0]}x{model[1]}",
                "crop or scale the recording, or compile the model with --shape",
            )
        self._resolution = given

    def _refuse(self, events: Events, inside: Array, clock: Clock, kept: Integers) -> None:
        if not inside.all():
            index = int(np.argmin(inside))
            raise DataError("event-range", f"event {self._place(index)} is {events[index]}", _DROPPED)
        if len(kept) < len(events):
            index = int(np.argmin(np.isin(np.arange(len(events)), kept)))
            before = int(events["t"][index - 1]) if index else self._clock.raw
            what = "earlier than" if clock.counts["late"] > self._clock.counts["late"] else "far ahead of"
            raise DataError(
                "event-order",
                f"event {self._place(index)} has time {events['t'][index]} us, {what} {before} us",
                _DROPPED,
            )

    def _place(self, index: int) -> int:
        return self._counts["events"] + index

    def _collect(self, elements: Integers, numbers: Integers) -> list[StreamStep]:
        """Add events to windows, by number never falling; returns the steps of those that close."""
        steps = []
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        for first, end in pairwise(edges):
            if first == end:
                continue
            number = int(numbers[first])
            if self._open is not None and self._open.number != number:
                steps += self.flush()
            size = int(np.prod(self._entry.shape))
            found = np.bincount(elements[first:end], minlength=size)
            if self._open is not None:
                found += self._open.elements
            before = 0 if self._open is None else self._open.events
            self._open = _Window(number, found, before + end - first)
        return steps

    def _close(self, window: _Window) -> StreamStep:
        most = len(self._levels) - 1
        self._counts["saturated"] += int(np.maximum(window.elements - most, 0).sum())
        counts = self._levels[np.minimum(window.elements, most)].reshape(self._entry.shape)
        outputs = self._run(counts)
        self._counts["windows"] += 1
        return StreamStep((window.number + 1) * self._window_us, window.events, outputs)

    def _run(self, counts: Integers) -> dict[str, Array]:
        found = self._deltas.step({self._entry.population: counts})
        real = reals(self._deltas.graph, {name: array[None] for name, array in found.items()})
        return {name: array[0] for name, array in real.items()}


def _levels(entry: Input) -> Integers:
    """Return the counts that 0, 1, 2 ... events on an element become, until they rise no more."""
    numbers = np.arange(_MOST_PER_PIXEL, dtype=np.float64)
    if entry.scale is None:
        numbers = np.minimum(numbers, entry.high + entry.zero)
    one = replace(entry, shape=(1,), axes=())
    levels = encode(one, numbers)[:, 0]
    return levels[: int(np.argmax(levels == levels[-1])) + 1]
