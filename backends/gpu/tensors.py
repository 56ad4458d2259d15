"""Runs on tensors of other libraries: theirs where they fit, copies on the device where they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TypeAlias

import numpy as np

from ...compiler.backend import Array, Port, Signature
from ...compiler.errors import DataError
from ...compiler.inputs import check_inputs, check_shapes
from .batches import Piece
from .device import Device
from .dlpack import HOST_PLACES, Borrowed, DeviceTensor, host_array, place_of
from .graphs import Graphs
from .lanes import Lane, port_bytes
from .program import PortRecord, Program

Cut = Callable[[int], list[tuple[Program, Piece]]]


class Tensors:
    """Runs on memory that others own.

    Args:
        device: where.
        signature: of the model.
        lane: buffers for what cannot be used in place.
        graphs: queues programs.
    """

    Made: TypeAlias = dict[str, DeviceTensor]

    def __init__(self, device: Device, signature: Signature, lane: Lane, graphs: Graphs) -> None:
        self._device, self._signature, self._lane, self._graphs = device, signature, lane, graphs

    def run(self, inputs: Mapping[str, object], outputs: Mapping[str, object], cut: Cut) -> Made:
        """Run on `inputs`, write to `outputs` and to new tensors for the others, which are returned."""
        with ExitStack() as stack:
            sources = self._sources(inputs, stack)
            rows = next((s.shape[0] for s in sources.values() if s.shape), 0)
            made = self._made(rows, outputs)
            targets = {
                port.name: made[port.name].address
                if port.name in made
                else self._target(port, outputs[port.name], rows, stack)
                for port in self._signature.outputs
            }
            try:
                for program, piece in cut(rows):
                    self._queue(program, piece, {n: s.address for n, s in sources.items()}, targets)
            finally:
                # Nobody may free anything while it is in use.
                self._device.synchronize()
            return made

    def _sources(self, inputs: Mapping[str, object], stack: ExitStack) -> dict[str, DeviceTensor | Borrowed]:
        check_shapes(self._signature, {name: _shape(value) for name, value in inputs.items()})
        found: dict[str, DeviceTensor | Borrowed] = {}
        for port in self._signature.inputs:
            value = inputs[port.name]
            place = place_of(value)
            # On an emulated device the host's memory is the device's.
            if place is None or (place != self._device.place and place[0] in HOST_PLACES):
                found[port.name] = self._uploaded(port, value, place)
            else:
                found[port.name] = self._borrowed("input", port, value, place, stack)
        return found

    def _uploaded(self, port: Port, value: object, place: tuple[int, int] | None) -> DeviceTensor:
        array = _checked(port, value if place is None else host_array(value))
        tensor = DeviceTensor(self._device, array.shape, port.dtype)
        self._device.upload(tensor.address, array.reshape(-1).view(np.uint8))
        self._device.synchronize()
        return tensor

    def _borrowed(
        self, what: str, port: Port, value: object, place: tuple[int, int], stack: ExitStack
    ) -> Borrowed:
        own = self._device.place
        if place != own and not (place[0] == 13 and own[0] == 2):  # kDLCUDAManaged: any device's
            raise DataError(
                "tensor-device",
                f"{what} {port.name!r} is on DLPack device {place}, the model is on {own}",
                "move it, or load the model on that device",
            )
        tensor = Borrowed(value, place, self._device.stream)
        stack.callback(tensor.release)
        if tensor.dtype != port.dtype:
            raise DataError(
                "input-dtype" if what == "input" else "output-dtype",
                f"{what} {port.name!r} needs {port.dtype}, the tensor is {tensor.dtype}",
                "convert it on the device",
            )
        if not tensor.contiguous:
            raise DataError(
                "tensor-strides",
                f"{what} {port.name!r} is not in C order",
                "pass .contiguous()",
            )
        return tensor

    def _target(self, port: Port, value: object, rows: int, stack: ExitStack) -> int:
        place = place_of(value)
        if place is None:
            raise DataError(
                "tensor-refused",
                f"output {port.name!r} is no tensor of a device",
                "pass one, or leave it out",
            )
        tensor = self._borrowed("output", port, value, place, stack)
        want = self._output_shape(port, rows)
        if tensor.shape != want or tensor.read_only:
            found = "is read-only" if tensor.read_only else f"has shape {list(tensor.shape)}"
            raise DataError(
                "output-shape", f"output {port.name!r} needs shape {list(want)}, the tensor {found}"
            )
        return tensor.address

    def _made(self, rows: int, outputs: Mapping[str, object]) -> Made:
        unknown = [name for name in outputs if name not in {p.name for p in self._signature.outputs}]
        if unknown:
            known = [port.name for port in self._signature.outputs]
            raise DataError("output-names", f"outputs: unknown {unknown}", f"the model has {known}")
        return {
            port.name: DeviceTensor(self._device, self._output_shape(port, rows), port.dtype)
            for port in self._signature.outputs if port.name not in outputs
        }  # fmt: skip

    def _output_shape(self, port: Port, rows: int) -> tuple[int, ...]:
        return tuple(rows if isinstance(size, str) else size for size in port.shape)

    def _queue(
        self, program: Program, piece: Piece, sources: Mapping[str, int], targets: Mapping[str, int]
    ) -> None:
        """Queue a piece: on the tensors' own memory, or where that does not fit on the lane's."""
        inputs, outputs = [], []
        for port, own in zip(program.inputs, self._lane.inputs, strict=True):
            inputs.append(self._place(sources[port.name], port, piece, own))
            if inputs[-1] == own:
                self._fill(own, sources[port.name], port, piece)
        for port, own in zip(program.outputs, self._lane.outputs, strict=True):
            outputs.append(self._place(targets[port.name], port, piece, own))
        self._graphs.queue(program, inputs, outputs, own=False)
        for port, own, used in zip(program.outputs, self._lane.outputs, outputs, strict=True):
            if used == own:
                row = port_bytes(port) // piece.size
                self._device.copy(targets[port.name] + piece.start * row, own, piece.rows * row)

    def _place(self, address: int, port: PortRecord, piece: Piece, own: int) -> int:
        """Return where a piece begins in a tensor; the lane's buffer where it is not whole or not aligned."""
        start = address + piece.start * (port_bytes(port) // piece.size)
        return start if piece.rows == piece.size and start % self._device.alignment == 0 else own

    def _fill(self, own: int, source: int, port: PortRecord, piece: Piece) -> None:
        row = port_bytes(port) // piece.size
        start = source + piece.start * row
        self._device.copy(own, start, piece.rows * row)
        for index in range(piece.rows, piece.size):
            self._device.copy(own + index * row, start, row)


def _shape(value: object) -> tuple[int, ...]:
    if place_of(value) is None:
        return np.asarray(value).shape
    return tuple(int(size) for size in value.shape)  # type: ignore[attr-defined]


def _checked(port: Port, value: object) -> Array:
    return check_inputs(Signature((port,), ()), {port.name: value})[port.name]
