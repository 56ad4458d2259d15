"""Host batches: buffers in pairs, so that the next samples travel while these are computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import prod

import numpy as np

from ...compiler.backend import Array
from ...compiler.errors import ParedError
from ...compiler.inputs import DTYPES
from .batches import Piece
from .device import Bytes, Device
from .program import PortRecord, Program

Queue = Callable[[Program, Sequence[int], Sequence[int]], None]


def port_bytes(port: PortRecord) -> int:
    """Return the size of an input or output."""
    return prod(port.shape) * np.dtype(DTYPES[port.dtype]).itemsize


class Lane:
    """Buffers for one program at a time: on the device, and pinned ones here.

    Args:
        device: where.
        inputs, outputs: bytes of each.
    """

    def __init__(self, device: Device, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self.inputs = [device.allocate(count) for count in inputs]
        self.outputs = [device.allocate(count) for count in outputs]
        self.staged_inputs = [device.pinned(count) for count in inputs]
        self.staged_outputs = [device.pinned(count) for count in outputs]
        self.events: tuple[int, int, int] = (0, 0, 0)
        self.busy: tuple[Program, Piece] | None = None


class Lanes:
    """Runs pieces of a request, of which one is computed while others travel.

    Args:
        device: where.
        programs: all that are to run.
        queue: puts a program on the main stream, on addresses of inputs and outputs.
        count: lanes; one where requests are never cut.
    """

    def __init__(self, device: Device, programs: Sequence[Program], queue: Queue, count: int) -> None:
        self._device, self._queue = device, queue
        sizes = [
            [max(sizes) for sizes in zip(*([port_bytes(p) for p in ports] for ports in kind), strict=True)]
            for kind in ([p.inputs for p in programs], [p.outputs for p in programs])
        ]
        self.all = [Lane(device, *sizes) for _ in range(count)]
        self._streams: tuple[int, int] | None = None

    def run(
        self,
        work: Sequence[tuple[Program, Piece]],
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> None:
        """Run pieces of `inputs` and write their rows of `outputs`."""
        if len(work) == 1:
            self._alone(*work[0], inputs, outputs)
            return
        up, down = self._ready()
        try:
            for number, (program, piece) in enumerate(work):
                lane = self.all[number % len(self.all)]
                self._finish(lane, outputs)
                self._start(lane, program, piece, inputs, up, down)
            for lane in (*self.all[len(work) % len(self.all) :], *self.all[: len(work) % len(self.all)]):
                self._finish(lane, outputs)
        except BaseException:
            self._abandon()
            raise

    def _ready(self) -> tuple[int, int]:
        """Make the streams of copies when they are needed first."""
        if self._streams is None:
            make = self._device.make_event
            for lane in self.all:
                lane.events = (make(), make(), make())
            self._streams = (self._device.make_stream(), self._device.make_stream())
        return self._streams

    def _alone(
        self, program: Program, piece: Piece, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        """Run one piece on one stream: marks between streams cost more than they gain."""
        lane = self.all[0]
        self._upload(lane, program, piece, inputs, 0)
        self._queue(program, lane.inputs, lane.outputs)
        self._download(lane, program, 0)
        self._device.synchronize()
        self._collect(lane, program, piece, outputs)

    def _start(
        self, lane: Lane, program: Program, piece: Piece, inputs: Mapping[str, Array], up: int, down: int
    ) -> None:
        uploaded, computed, done = lane.events
        self._upload(lane, program, piece, inputs, up)
        self._device.mark(uploaded, up)
        self._device.follow(uploaded)
        self._queue(program, lane.inputs, lane.outputs)
        self._device.mark(computed)
        self._device.follow(computed, down)
        self._download(lane, program, down)
        self._device.mark(done, down)
        lane.busy = (program, piece)

    def _finish(self, lane: Lane, outputs: Mapping[str, Array]) -> None:
        if lane.busy is not None:
            self._device.wait_for(lane.events[2])
            self._collect(lane, *lane.busy, outputs)
            lane.busy = None

    def _abandon(self) -> None:
        """Let nothing of a request that failed run into the next one."""
        for lane in self.all:
            lane.busy = None
            for event in lane.events:
                with suppress(ParedError):
                    self._device.wait_for(event)

    def _upload(
        self, lane: Lane, program: Program, piece: Piece, inputs: Mapping[str, Array], stream: int
    ) -> None:
        ports = zip(program.inputs, lane.staged_inputs, lane.inputs, strict=True)
        for port, staged, address in ports:
            room = _shaped(staged, port)
            given = inputs[port.name]
            if not program.batched:
                room[...] = given
            else:
                room[: piece.rows] = given[piece.start : piece.start + piece.rows]
                room[piece.rows :] = given[piece.start]  # rows that every operator can take
            self._device.upload(address, staged[: room.nbytes], stream)

    def _download(self, lane: Lane, program: Program, stream: int) -> None:
        for port, staged, address in zip(program.outputs, lane.staged_outputs, lane.outputs, strict=True):
            self._device.download(staged[: port_bytes(port)], address, stream)

    def _collect(self, lane: Lane, program: Program, piece: Piece, outputs: Mapping[str, Array]) -> None:
        for port, staged in zip(program.outputs, lane.staged_outputs, strict=True):
            room = _shaped(staged, port)
            if program.batched:
                outputs[port.name][piece.start : piece.start + piece.rows] = room[: piece.rows]
            else:
                outputs[port.name][...] = room


def _shaped(staged: Bytes, port: PortRecord) -> Array:
    return staged[: port_bytes(port)].view(DTYPES[port.dtype]).reshape(port.shape)
