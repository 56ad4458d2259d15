"""The engine on this machine: the golden integers of its network, which its Verilog is compared with.

Files of an artifact: the network's numbers (`model_network.npz`), its structure (`model_network.json`), and
the host's ends as ONNX. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias, TypedDict, Union

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from ....compiler import ops
from ....compiler.backend import Array, Arrays, Signature
from ....compiler.errors import ArtifactError
from ....compiler.ir.export import signature_of
from ..graph import Conv, Dense, Layer, Mix, Move, Network, Pool, Requant, Wire
from ..host import Host
from ..simulate import simulate

Numbers: TypeAlias = npt.NDArray[np.generic]
Plain: TypeAlias = Union[str, int, float, list["Plain"], dict[str, "Plain"], None]  # noqa: UP007

NUMBERS, STRUCTURE = "model_network.npz", "model_network.json"
HEAD, TAIL = "model_head.onnx", "model_tail.onnx"
_LAYERS: Mapping[str, Callable[..., Layer]] = {
    kind.__name__: kind for kind in (Dense, Conv, Pool, Mix, Move, Requant)
}


class Structure(TypedDict):
    """A network without its numbers; a layer's class is under the empty key."""

    inputs: list[str]
    outputs: list[str]
    wires: dict[str, dict[str, Plain]]
    layers: list[dict[str, Plain]]


def pack(network: Network) -> dict[str, bytes]:
    """Return the files that `load` reads."""
    arrays: dict[str, Numbers] = {}
    wires = {name: _plain(wire, f"w{i}", arrays) for i, (name, wire) in enumerate(network.wires.items())}
    layers = [_plain(layer, f"l{i}", arrays) for i, layer in enumerate(network.layers)]
    structure: Structure = {
        "inputs": [wire.name for wire in network.inputs], "outputs": list(network.outputs), "wires": wires,
        "layers": layers,
    }  # fmt: skip
    numbers = io.BytesIO()
    np.savez_compressed(numbers, allow_pickle=False, **arrays)
    return {
        NUMBERS: numbers.getvalue(),
        STRUCTURE: json.dumps(structure, separators=(",", ":")).encode(),
        HEAD: ir.to_proto(network.head).SerializeToString(deterministic=True),
        TAIL: ir.to_proto(network.tail).SerializeToString(deterministic=True),
    }


def _plain(record: Layer | Wire, key: str, arrays: dict[str, Numbers]) -> dict[str, Plain]:
    """Return a record as JSON values; arrays go to `arrays`, the wire of a layer to its name."""
    found: dict[str, Plain] = {"": type(record).__name__}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            arrays[f"{key}.{field.name}"] = value
            found[field.name] = {"array": f"{key}.{field.name}"}
        elif isinstance(value, Wire):
            found[field.name] = {"wire": value.name}
        else:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


class GoldenExecutable:
    """Host head, golden integers, host tail."""

    def __init__(self, network: Network, signature: Signature) -> None:
        self._network, self._signature = network, signature
        self._host: Host | None = Host(network)

    @property
    def network(self) -> Network:
        """What it runs."""
        return self._network

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order."""
        return self._signature

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises `DataError` naming the input on a wrong name, shape or dtype."""
        if self._host is None:
            raise ArtifactError("closed", "this executable was closed", "load the artifact again")
        found = simulate(self._network, self._host.encode(inputs))
        return self._host.decode({name: found[name] for name in self._network.outputs})

    def close(self) -> None:
        """Free what it holds; later calls of `run` raise."""
        self._host = None


def load(folder: Path) -> GoldenExecutable:
    """Load what `pack` wrote; raises `ArtifactError` where a file is missing or damaged."""
    ops.register()
    try:
        structure = json.loads((folder / STRUCTURE).read_text())
        with np.load(folder / NUMBERS, allow_pickle=False) as numbers:
            arrays = {key: numbers[key] for key in numbers.files}
        head, tail = (ir.from_proto(onnx.load(folder / name)) for name in (HEAD, TAIL))
        network = _network(structure, arrays, head, tail)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as err:
        raise ArtifactError("artifact-payload", f"{folder}: {err}", "compile it again") from err
    return GoldenExecutable(network, Signature(signature_of(head).inputs, signature_of(tail).outputs))


def _network(structure: Structure, arrays: Mapping[str, Numbers], head: ir.Model, tail: ir.Model) -> Network:
    wires = {name: _wire(data, arrays) for name, data in structure["wires"].items()}
    layers = tuple(_LAYERS[str(data[""])](**_fields(data, arrays, wires)) for data in structure["layers"])
    inputs = tuple(wires[name] for name in structure["inputs"])
    return Network(inputs, tuple(structure["outputs"]), layers, wires, head, tail)


def _wire(data: Mapping[str, Plain], arrays: Mapping[str, Numbers]) -> Wire:
    make: Callable[..., Wire] = Wire
    return make(**_fields(data, arrays, {}))


def _fields(
    data: Mapping[str, Plain], arrays: Mapping[str, Numbers], wires: Mapping[str, Wire]
) -> dict[str, object]:
    return {key: _value(value, arrays, wires) for key, value in data.items() if key}


def _value(value: Plain, arrays: Mapping[str, Numbers], wires: Mapping[str, Wire]) -> object:
    if isinstance(value, dict):
        return arrays[str(value["array"])] if "array" in value else wires[str(value["wire"])]
    return tuple(value) if isinstance(value, list) else value
