"""Runs a program on a device: memory taken once, launches recorded once, replayed for every call."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydantic

from ...compiler.backend import Array, Arrays, Signature
from ...compiler.errors import ArtifactError, TargetError
from ...compiler.inputs import DTYPES, InputChecker
from ...compiler.machine import cuda_devices
from .driver import Bytes, Device, open_driver
from .lower import CODE, EMULATION, PROGRAM, WEIGHTS, fixed_signature
from .program import FORMAT, Launch, PortRecord, Program


class GpuExecutable:
    """A loaded model. Calls from several threads take turns: working memory is one.

    Args:
        program: what to launch.
        weights: bytes of its constants.
        images: machine code, by `Launch.image`.
        device: where; closed with the executable.

    Raises:
        TargetError: `gpu-arch-mismatch`: the code is for another chip.
    """

    def __init__(self, program: Program, weights: bytes, images: Sequence[bytes], device: Device) -> None:
        _check_arch(program.arch, device.arch)
        self._program, self._device, self._lock = program, device, threading.Lock()
        self._signature = fixed_signature(program)
        self._check = InputChecker(self._signature)
        self._inputs = [device.allocate(_bytes(port)) for port in program.inputs]
        self._outputs = [device.allocate(_bytes(port)) for port in program.outputs]
        self._staged = [device.pinned(_bytes(port)) for port in (*program.inputs, *program.outputs)]
        bases = {"arena": device.allocate(program.arena_bytes), "weights": device.allocate(len(weights))}
        device.upload(bases["weights"], np.frombuffer(weights, np.uint8))
        self._addresses = [
            {"input": self._inputs, "output": self._outputs}[place.where][place.offset]
            if place.where in ("input", "output")
            else bases[place.where] + place.offset
            for place in program.places
        ]
        self._functions = _functions(device, images, program.launches)
        device.synchronize()
        self._graph = self._record()

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order."""
        return self._signature

    def _record(self) -> int:
        self._device.begin_capture()
        self._launch(self._addresses)
        return self._device.end_capture()

    def _launch(self, addresses: Sequence[int]) -> None:
        for step in self._program.launches:
            buffers = [addresses[index] for index in step.buffers]
            self._device.launch(
                self._functions[step.kernel], step.grid, step.block, step.shared_bytes, buffers
            )

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises `DataError` naming the input on a wrong name, shape or dtype."""
        arrays = self._check(inputs)
        with self._lock:
            if not self._program.batched:
                return self._one(arrays)
            count = len(next(iter(arrays.values())))
            parts = [self._one({name: a[i : i + 1] for name, a in arrays.items()}) for i in range(count)]
        return {
            port.name: _joined([part[port.name] for part in parts], port) for port in self._program.outputs
        }

    def _one(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        staged = iter(self._staged)
        for port, address in zip(self._program.inputs, self._inputs, strict=True):
            host = next(staged)
            host[:] = np.ascontiguousarray(arrays[port.name]).reshape(-1).view(np.uint8)
            self._device.upload(address, host)
        self._device.replay(self._graph)
        left: list[tuple[PortRecord, Bytes]] = []
        for port, address in zip(self._program.outputs, self._outputs, strict=True):
            left.append((port, next(staged)))
            self._device.download(left[-1][1], address)
        self._device.synchronize()
        return {p.name: host.view(DTYPES[p.dtype]).reshape(p.shape).copy() for p, host in left}

    def run_on_device(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Queue a run on memory of the caller's: addresses on the device, C order, in the model's order.

        Nothing is copied. Results are there after the device's stream has been synchronized.
        """
        places = zip(self._program.places, self._addresses, strict=True)
        own = {"input": inputs, "output": outputs}
        with self._lock:
            self._launch([own[p.where][p.offset] if p.where in own else address for p, address in places])

    def close(self) -> None:
        """Free what it holds; later calls of `run` raise."""
        self._device.close()


def _check_arch(need: str, have: str) -> None:
    """Machine code of one major version runs on its minor versions from its own on."""
    (major, minor), (here, minor_here) = (divmod(int(arch.removeprefix("sm_")), 10) for arch in (need, have))
    if major != here or minor > minor_here:
        raise TargetError(
            "gpu-arch-mismatch",
            f"the artifact is compiled for {need}, this device is {have}",
            f"compile it with --target gpu-cuda-{have.replace('_', '')}",
        )


def _bytes(port: PortRecord) -> int:
    return int(np.prod(port.shape, dtype=np.int64)) * np.dtype(DTYPES[port.dtype]).itemsize


def _joined(parts: Sequence[Array], port: PortRecord) -> Array:
    empty = np.empty((0, *port.shape[1:]), DTYPES[port.dtype])
    return np.concatenate(parts) if parts else empty


def _functions(device: Device, images: Sequence[bytes], launches: Sequence[Launch]) -> dict[str, int]:
    found: dict[str, int] = {}
    for index, image in enumerate(images):
        names = sorted({launch.kernel for launch in launches if launch.image == index})
        found |= device.functions(image, names) if names else {}
    return found


def load(folder: Path) -> GpuExecutable:
    """Load a payload from an artifact's folder onto device 0; without any GPU here, an emulation runs it.

    Raises:
        ArtifactError: it is damaged, or of a newer format.
        MissingTool: neither a driver nor TVM is here.
        TargetError: the device is another chip.
    """
    try:
        program = Program.model_validate_json((folder / PROGRAM).read_bytes())
        weights = (folder / WEIGHTS).read_bytes()
        images = [(folder / n).read_bytes() if (folder / n).exists() else b"" for n in CODE]
    except (OSError, pydantic.ValidationError) as err:
        raise ArtifactError("gpu-payload", f"{folder}: {err}", "compile the model again") from err
    if program.version != FORMAT:
        raise ArtifactError(
            "gpu-payload", f"format {program.version}, this is {FORMAT}", "use the version that wrote it"
        )
    return GpuExecutable(program, weights, images, _device(folder, program.arch))


def _device(folder: Path, arch: str) -> Device:
    if cuda_devices() or importlib.util.find_spec("tvm") is None:
        return open_driver()
    from .emulate import EmulatedDevice

    return EmulatedDevice((folder / EMULATION).read_text(encoding="utf-8"), arch)
