"""A compiled circuit run on this machine: da4ml's interpreter executes the very operations of the netlist."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from ...compiler import ops
from ...compiler.backend import Array, Arrays, Signature
from ...compiler.errors import ArtifactError, MissingTool
from ...compiler.ir.export import signature_of
from .circuit import Circuit
from .graph import Ints, Network, Wire
from .host import Host

if TYPE_CHECKING:
    from da4ml.types import CombLogic

LOGIC, META = "model.json", "model_wires.json"
HEAD, TAIL = "model_head.onnx", "model_tail.onnx"


def need_da4ml() -> None:
    """Raise `MissingTool` where da4ml is not installed."""
    try:
        import da4ml  # noqa: F401
    except ImportError as err:
        raise MissingTool(
            "fpga-missing", "package da4ml is not installed", 'pip install "pared[fpga]"'
        ) from err


def pack(network: Network, circuit: Circuit) -> dict[str, bytes]:
    """Return the files that `CircuitExecutable` reads."""
    wires = [*network.inputs, *(network.wires[name] for name in network.outputs)]
    meta = {
        "inputs": [wire.name for wire in network.inputs],
        "outputs": list(network.outputs),
        "wires": {wire.name: _wire_json(wire) for wire in wires},
        "gains": circuit.gains.tolist(),
        "biases": circuit.biases.tolist(),
        "input_gains": circuit.input_gains.tolist(),
        "input_biases": circuit.input_biases.tolist(),
    }
    logic = _json_of(circuit.logic)
    return {
        LOGIC: logic.encode(),
        META: json.dumps(meta, sort_keys=True).encode(),
        HEAD: ir.to_proto(network.head).SerializeToString(deterministic=True),
        TAIL: ir.to_proto(network.tail).SerializeToString(deterministic=True),
    }


def _json_of(logic: CombLogic) -> str:
    from da4ml.types import JSONEncoder

    return json.dumps(logic, cls=JSONEncoder, separators=(",", ":"))


def _wire_json(wire: Wire) -> dict[str, object]:
    return {
        "shape": list(wire.shape), "low": wire.low.tolist(), "high": wire.high.tolist(),
        "unit": wire.unit.tolist(), "offset": wire.offset.tolist(), "zero": wire.zero, "step": wire.step,
    }  # fmt: skip


def _wire(name: str, data: Mapping[str, object]) -> Wire:
    ints = [np.asarray(data[key], np.int64) for key in ("low", "high")]
    floats = [np.asarray(data[key], np.float64) for key in ("unit", "offset")]
    shape = tuple(int(n) for n in np.asarray(data["shape"], np.int64))
    return Wire(
        name, shape, ints[0], ints[1], floats[0], floats[1], int(str(data["zero"])), int(str(data["step"]))
    )


class CircuitExecutable:
    """Host head, circuit, host tail."""

    def __init__(self, network: Network, circuit: Circuit, signature: Signature, threads: int | None) -> None:
        self._network, self._circuit = network, circuit
        self._host: Host | None = Host(network)
        self._signature, self._threads = signature, threads or 1

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order."""
        return self._signature

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises `DataError` naming the input on a wrong name, shape or dtype."""
        if self._host is None:
            raise ArtifactError("closed", "this executable was closed", "load the artifact again")
        return self._host.decode(self.codes(self._host.encode(inputs)))

    def codes(self, entering: Mapping[str, Ints]) -> dict[str, Ints]:
        """Return the integers that leave the circuit."""
        raw = self._circuit.enter(self._network, entering)
        left = self._circuit.logic.predict(raw.astype(np.float64), self._threads)
        return self._circuit.leave(self._network, np.rint(left).astype(np.int64))

    def close(self) -> None:
        """Free what it holds; later calls of `run` raise."""
        self._host = None


def load(folder: Path, threads: int | None) -> CircuitExecutable:
    """Load what `pack` wrote.

    Raises:
        MissingTool: da4ml is not installed.
        ArtifactError: a file is missing or damaged.
    """
    need_da4ml()
    from da4ml.types import CombLogic

    ops.register()
    try:
        meta = json.loads((folder / META).read_text())
        logic = CombLogic.deserialize(json.loads((folder / LOGIC).read_text()))
        head, tail = (ir.from_proto(onnx.load(folder / name)) for name in (HEAD, TAIL))
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ArtifactError("artifact-payload", f"{folder}: {err}", "compile it again") from err
    wires = {name: _wire(name, data) for name, data in meta["wires"].items()}
    inputs, outputs = tuple(wires[name] for name in meta["inputs"]), tuple(meta["outputs"])
    network = Network(inputs, outputs, (), wires, head, tail)
    arrays = [np.asarray(meta[key], np.int64) for key in ("gains", "biases", "input_gains", "input_biases")]
    signature = Signature(signature_of(head).inputs, signature_of(tail).outputs)
    return CircuitExecutable(network, Circuit(logic, *arrays), signature, threads)
