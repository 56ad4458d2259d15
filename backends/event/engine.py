"""Runs packed event graphs: dict of arrays in, dict of arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...compiler.backend import Array, Arrays, Port, Signature
from ...compiler.errors import ArtifactError
from ...compiler.inputs import InputChecker
from .graph import EventGraph
from .pack import FILE, unpack
from .simulate import graded, reals


class EventExecutable:
    """A loaded event graph."""

    def __init__(self, graph: EventGraph) -> None:
        self._graph: EventGraph | None = graph
        self._signature = signature_of(graph)
        self._check = InputChecker(self._signature)

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order; any number of samples."""
        return self._signature

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises `DataError` naming the input on a wrong name, shape or dtype."""
        if self._graph is None:
            raise ArtifactError("artifact-closed", "the model was closed", "load it again")
        return reals(self._graph, graded(self._graph, self._check(inputs)))

    def close(self) -> None:
        """Free the weights; later calls of `run` raise."""
        self._graph = None


def load(folder: Path, options: Mapping[str, object]) -> EventExecutable:
    """Load the payload from an artifact's folder; raises `ArtifactError` when it is missing or damaged."""
    return EventExecutable(unpack(folder / FILE))


def signature_of(graph: EventGraph) -> Signature:
    """Return inputs and outputs with an open batch."""
    return Signature(
        tuple(Port(entry.name, entry.dtype, ("batch", *entry.shape)) for entry in graph.inputs),
        tuple(Port(output.name, output.dtype, ("batch", *output.shape)) for output in graph.outputs),
    )
