"""Runs programs on a device: memory taken once, launches recorded once, replayed for every call."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from ...compiler.backend import Array, Signature
from ...compiler.cuda import runs_on
from ...compiler.errors import ArtifactError, TargetError
from ...compiler.inputs import DTYPES, InputChecker
from .batches import Piece, cut
from .device import Device
from .dlpack import HOST_PLACES, host_array, place_of
from .driver import CudaDevice
from .graphs import Graphs
from .lanes import Lanes, port_bytes
from .library import use_library
from .meter import GpuMeter
from .program import Launch, PortRecord, Program, fixed_signature
from .tensors import Tensors


class GpuExecutable:
    """A loaded model. Calls from several threads take turns: working memory is one.

    Args:
        programs: what to launch; of a model with an open first size one or more, for different sizes.
        weights: bytes of their constants.
        images: machine code, by `Launch.image`.
        device: where; closed with the executable, and where this raises.

    Raises:
        TargetError: `gpu-arch-mismatch`: the code is for another chip.
        ParedError: `cuda-out-of-memory` and what else the driver says.
    """

    def __init__(
        self, programs: Program | Sequence[Program], weights: bytes, images: Sequence[bytes], device: Device
    ) -> None:
        every = [programs] if isinstance(programs, Program) else list(programs)
        self._device, self._lock, self._closed = device, threading.Lock(), False
        try:
            self._prepare(every, weights, images)
        except BaseException:
            device.close()
            raise

    def _prepare(self, programs: Sequence[Program], weights: bytes, images: Sequence[bytes]) -> None:
        device, first = self._device, programs[0]
        check_chip(first.arch, device.arch)
        self._batched, self._ports = first.batched, first.outputs
        self._programs = {program_size(program): program for program in programs}
        self._signature = fixed_signature(first)
        self._check = InputChecker(self._signature)
        bases = {
            "arena": device.allocate(max(program.arena_bytes for program in programs)),
            "weights": device.allocate(len(weights)),
        }
        functions = _functions(device, images, [launch for p in programs for launch in p.launches])
        self._products, self._note = use_library(device, programs)
        self._graphs = Graphs(device, functions, bases, self._products)
        self._lanes = Lanes(device, programs, self._queue_own, 2 if self._batched else 1)
        self._tensors = Tensors(device, self._signature, self._lanes.all[0], self._graphs)
        device.upload(bases["weights"], np.frombuffer(weights, np.uint8))
        device.synchronize()

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order."""
        return self._signature

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that programs were compiled for, ascending; one without meaning for fixed shapes."""
        return tuple(sorted(self._programs))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not as it should be."""
        return tuple(note for note in (self._graphs.trouble, self._note) if note)

    @property
    def library_products(self) -> int:
        """How many launches of the smallest program a library does here."""
        return sum(launch.product in self._products for launch in self._programs[self.sizes[0]].launches)

    def _queue_own(self, program: Program, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self._graphs.queue(program, inputs, outputs, own=True)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise ArtifactError("artifact-closed", "the model was closed", "load it again")
            yield

    def _cut(self, rows: int) -> list[tuple[Program, Piece]]:
        if not self._batched:
            (size,) = self._programs
            return [(self._programs[size], Piece(0, size, size))]
        return [(self._programs[piece.size], piece) for piece in cut(rows, self.sizes)]

    def run(self, inputs: Mapping[str, object]) -> dict[str, Array]:
        """Run once. Tensors of other libraries are taken too, those on this device without a copy.

        Raises:
            DataError: names the input: a wrong name, shape or dtype; `tensor-refused`, `tensor-device`.
        """
        places = {name: place_of(value) for name, value in inputs.items()}
        if any(place is not None and place[0] not in HOST_PLACES for place in places.values()):
            return {name: tensor.numpy() for name, tensor in self._run_tensors(inputs, {}).items()}
        host = {name: value if places[name] is None else host_array(value) for name, value in inputs.items()}
        arrays = self._check(host)
        rows = len(next(iter(arrays.values()))) if self._batched else 0
        outputs = {port.name: self._room(port, rows) for port in self._ports}
        with self._turn():
            self._lanes.run(self._cut(rows), arrays, outputs)
        return outputs

    def _room(self, port: PortRecord, rows: int) -> Array:
        shape = (rows, *port.shape[1:]) if self._batched else port.shape
        return np.empty(shape, DTYPES[port.dtype])

    def run_dlpack(
        self, inputs: Mapping[str, object], outputs: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        """Run once and leave the outputs on the device.

        Args:
            inputs: tensors that speak DLPack, or arrays; those on this device in C order are not copied.
            outputs: tensors on this device to write to; what is not named here is returned in new ones.

        Returns:
            Tensors for `from_dlpack`, those of `outputs` among them; everything in them is computed.

        Raises:
            DataError: as `run`; `tensor-strides`.
        """
        given = dict(outputs or {})
        return {**self._run_tensors(inputs, given), **given}

    def _run_tensors(self, inputs: Mapping[str, object], outputs: Mapping[str, object]) -> Tensors.Made:
        with self._turn():
            return self._tensors.run(inputs, outputs, self._cut)

    def run_on_device(self, inputs: Sequence[int], outputs: Sequence[int], size: int | None = None) -> None:
        """Queue a run on memory of the caller's: addresses on the device, C order, in the model's order.

        Nothing is copied. Results are there after the device's stream has been synchronized.

        Args:
            inputs: whole multiples of 16.
            outputs: likewise.
            size: of the batch, one of `sizes`; None takes the least.
        """
        with self._turn():
            self._graphs.queue(self._programs[size or self.sizes[0]], inputs, outputs, own=False)

    def replay_ms(self, runs: int, rows: int = 1) -> list[float]:
        """Return the device's own time of each run of `rows` samples, in ms, on what its buffers hold.

        Raises:
            TargetError: `device-emulated`: nothing here can be timed.
        """
        return self.meter(rows).times_ms(runs)

    def meter(self, rows: int) -> GpuMeter:
        """Return what measures runs of `rows` samples; nobody else may run meanwhile.

        Raises:
            TargetError: `device-emulated`.
        """
        device, lane = self._device, self._lanes.all[0]
        if not isinstance(device, CudaDevice):
            raise TargetError("device-emulated", "an emulated device has no time", "measure on a GPU")
        work = self._cut(rows)

        def queue() -> None:
            for program, _ in work:
                self._queue_own(program, lane.inputs, lane.outputs)

        with self._turn():
            queue()
            queue()  # records it
            device.synchronize()
        moved = sum(port_bytes(port) for p, _ in work for port in (*p.inputs, *p.outputs))
        once = self._programs[self.sizes[0]].weight_bytes + moved
        return GpuMeter(device, queue, device.memory_bytes, once, self.notes)

    def close(self) -> None:
        """Free what it holds, after a run that is under way; later calls of `run` raise."""
        with self._lock:
            self._closed = True
            self._device.close()


def program_size(program: Program) -> int:
    """Return the batch size a program is for, 1 for fixed shapes."""
    return program.inputs[0].shape[0] if program.batched else 1


def check_chip(need: str, have: str) -> None:
    """Raise `TargetError` where a chip does not run the code of another; names both."""
    if not runs_on(need, have):
        raise TargetError(
            "gpu-arch-mismatch",
            f"the artifact is compiled for {need}, this device is {have}",
            f"compile it with --target gpu-cuda-{have.replace('_', '')}",
        )


def _functions(device: Device, images: Sequence[bytes], launches: Sequence[Launch]) -> dict[str, int]:
    found: dict[str, int] = {}
    for index, image in enumerate(images):
        names = sorted({launch.kernel for launch in launches if launch.image == index})
        found |= device.functions(image, names) if names else {}
    return found
