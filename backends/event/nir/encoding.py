"""How a model's inputs and outputs meet the counts of its NIR network: `model.json` beside `model.nir`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from ....compiler.backend import Array, Port, Signature
from ....compiler.errors import ArtifactError
from .. import graph as G
from ..engine import signature_of
from ..simulate import encode, reals

FILE: Final = "model.json"


@dataclass(frozen=True)
class Encoding:
    """Quantizer of the input, and what counts or accumulators of the output are worth; see `graph.py`."""

    source: G.Input
    sink: G.Output
    layer_shape: G.Shape
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def signature(self) -> Signature:
        """Return inputs and outputs of the model."""
        return signature_of(self._graph())

    def enter(self, array: Array) -> Array:
        """Return the counts of an input [samples, ...]."""
        return encode(self.source, array)

    def leave(self, counts: G.Integers) -> dict[str, Array]:
        """Return the model's output from counts or accumulators [samples, ...]."""
        found = counts.reshape(len(counts), *self.layer_shape)
        return reals(self._graph(), {self.sink.layer: found})

    def _graph(self) -> G.EventGraph:
        layer = G.Layer(
            self.sink.layer, self.layer_shape, (), np.zeros(1, np.int64), None, np.array(self.scale),
            np.array(self.offset), (0, 0),
        )  # fmt: skip
        return G.EventGraph((self.source,), (layer,), (self.sink,))


def encoding_of(graph: G.EventGraph) -> Encoding:
    """Return the encoding of a graph with one input and one output."""
    sink = graph.outputs[0]
    layer = graph.layer(sink.layer)
    values = np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64)
    return Encoding(graph.inputs[0], sink, layer.shape, tuple(values[0].tolist()), tuple(values[1].tolist()))


def write_encoding(encoding: Encoding) -> bytes:
    """Return the file."""
    return (json.dumps(asdict(encoding), indent=1, sort_keys=True) + "\n").encode()


def read_encoding(path: Path) -> Encoding:
    """Read the file.

    Raises:
        ArtifactError: `artifact-events`: damaged.
    """
    try:
        data = json.loads(path.read_bytes())
        entry, sink = G.Input(**data["source"]), G.Output(**data["sink"])
        entry = replace(entry, shape=tuple(entry.shape), fed=tuple(entry.fed))
        sink = replace(sink, shape=tuple(sink.shape))
        scale, offset = tuple(map(float, data["scale"])), tuple(map(float, data["offset"]))
        return Encoding(entry, sink, tuple(data["layer_shape"]), scale, offset)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ArtifactError("artifact-events", f"cannot read {path}: {err}", "compile it again") from err


def sequence_signature(source: str, shape: G.Shape, sink: str, out: G.Shape) -> Signature:
    """Return the signature of a network that runs over time: [batch, time, ...]."""
    return Signature(
        (Port(source, "FLOAT", ("batch", "time", *shape)),),
        (Port(sink, "FLOAT", ("batch", "time", *out)),),
    )
