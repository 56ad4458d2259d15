"""A compiled project run from an artifact: host head, emulation, host tail."""

from __future__ import annotations

import json
import platform
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from ....compiler import ops
from ....compiler.backend import Array, Arrays, Signature
from ....compiler.errors import ArtifactError, TargetError
from ....compiler.ir.export import signature_of
from ....compiler.temporary import folder_prefix
from ..graph import Network, Wire
from ..host import Host
from .emulate import LIBRARY, Library
from .plan import Plan, Port
from .project import WEIGHTS, Ends

PROJECT, META = "model_project.zip", "model_ports.json"
HEAD, TAIL = "model_head.onnx", "model_tail.onnx"


def pack(network: Network, plan: Plan, ends: Ends, project: bytes) -> dict[str, bytes]:
    """Return the files that `load` reads beside the library; `project` is the zipped folder."""
    meta = {
        "inputs": [_port_json(port) for port in plan.inputs],
        "outputs": [_port_json(port) for port in plan.outputs],
        "sizes": [list(ends.inputs), list(ends.outputs)],
    }
    return {
        PROJECT: project,
        META: json.dumps(meta, sort_keys=True).encode(),
        HEAD: ir.to_proto(network.head).SerializeToString(deterministic=True),
        TAIL: ir.to_proto(network.tail).SerializeToString(deterministic=True),
    }


def _port_json(port: Port) -> dict[str, object]:
    wire = port.wire
    return {
        "name": wire.name, "shape": list(wire.shape), "unit": wire.unit.tolist(),
        "offset": wire.offset.tolist(), "zero": wire.zero, "step": port.step, "order": port.order.tolist(),
    }  # fmt: skip


def _port(data: Mapping[str, object]) -> Port:
    """Return a stored port; a host needs no bounds."""
    shape = tuple(int(n) for n in np.asarray(data["shape"], np.int64))
    unit, offset = (np.asarray(data[key], np.float64) for key in ("unit", "offset"))
    none = np.zeros((), np.int64)
    wire = Wire(str(data["name"]), shape, none, none, unit, offset, int(str(data["zero"])))
    return Port(wire, str(data["step"]), np.asarray(data["order"], np.int64))


class HlsExecutable:
    """Runs a project's emulation."""

    def __init__(self, network: Network, ports: tuple[tuple[Port, ...], ...], library: Library) -> None:
        self._inputs, self._outputs = ports
        self._library = library
        self._host: Host | None = Host(network)
        self._signature = Signature(signature_of(network.head).inputs, signature_of(network.tail).outputs)

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order."""
        return self._signature

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises `DataError` naming the input on a wrong name, shape or dtype."""
        if self._host is None:
            raise ArtifactError("closed", "this executable was closed", "load the artifact again")
        codes = self._host.encode(inputs)
        left = self._library.run([port.enter(codes[port.wire.name]) for port in self._inputs])
        pairs = zip(self._outputs, left, strict=True)
        return self._host.decode({port.wire.name: port.leave(numbers) for port, numbers in pairs})

    def close(self) -> None:
        """Free what it holds; later calls of `run` raise."""
        self._host = None


def load(folder: Path, options: Mapping[str, object]) -> HlsExecutable:
    """Load what `pack` wrote, and the library beside it.

    Raises:
        TargetError: `fpga-hls-arch`: the library was compiled on another architecture.
        ArtifactError: a file is missing or damaged.
    """
    built = options.get("arch")
    if built != platform.machine():
        raise TargetError(
            "fpga-hls-arch",
            f"the emulation in {folder} was compiled for {built}, this machine is {platform.machine()}",
            f"compile the model here, or compile {PROJECT} (unpack it; g++ as in emulation.log)",
        )
    ops.register()
    try:
        meta = json.loads((folder / META).read_text())
        head, tail = (ir.from_proto(onnx.load(folder / name)) for name in (HEAD, TAIL))
        ports = tuple(tuple(_port(data) for data in meta[key]) for key in ("inputs", "outputs"))
        ends = Ends(*(tuple(int(n) for n in sizes) for sizes in meta["sizes"]))
        library = _library(folder, ends)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as err:
        raise ArtifactError("artifact-payload", f"{folder}: {err}", "compile it again") from err
    wires = {port.wire.name: port.wire for side in ports for port in side}
    inputs, outputs = (tuple(port.wire for port in side) for side in ports)
    network = Network(inputs, tuple(wire.name for wire in outputs), (), wires, head, tail)
    return HlsExecutable(network, ports, library)


def _library(folder: Path, ends: Ends) -> Library:
    """Load the library, with the project's weights unpacked while it reads them."""
    with tempfile.TemporaryDirectory(prefix=folder_prefix("hls")) as name:
        with zipfile.ZipFile(folder / PROJECT) as file:
            file.extractall(name, [member for member in file.namelist() if member.startswith(WEIGHTS)])
        return Library(folder / LIBRARY, Path(name) / WEIGHTS, ends)
