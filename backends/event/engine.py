"""Runs packed event graphs: dict of arrays in, dict of arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...compiler.backend import Array, Arrays, Port, Signature
from ...compiler.errors import ArtifactError, TargetError
from ...compiler.inputs import InputChecker
from ...compiler.machine import find_machine
from .build import LIBRARY
from .delta import DeltaGraph, NumpyDeltas
from .graph import EventGraph, Integers
from .modes import run
from .native import NativeGraph, Unfit
from .pack import FILE, unpack
from .simulate import encode, graded, reals
from .streams.stream import Stream


class EventExecutable:
    """A loaded event graph: by the kernels where they take it, else in NumPy."""

    def __init__(
        self,
        graph: EventGraph,
        native: NativeGraph | None,
        mode: str = "graded",
        library: Path | None = None,
    ) -> None:
        self.graph = graph
        self.mode = mode
        self.native = native
        self._open = True
        self._library = library
        self._signature = signature_of(graph)
        self._check = InputChecker(self._signature)

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order; any number of samples."""
        return self._signature

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises `DataError` naming the input on a wrong name, shape or dtype."""
        if not self._open:
            raise ArtifactError("artifact-closed", "the model was closed", "load it again")
        return reals(self.graph, self._integers(self._check(inputs)))

    def stream(self, *, window_us: int, strict: bool = False, clock_bits: int | None = None) -> Stream:
        """Open a stream of events or frames with a state of its own.

        Raises:
            TargetError: `event-stream-mode`, the engine is a mode that is simulated.
            UnsupportedOp: `event-stream`, the model has several inputs.
        """
        if not self._open:
            raise ArtifactError("artifact-closed", "the model was closed", "load it again")
        if self.mode != "graded":
            raise TargetError(
                "event-stream-mode",
                f"mode {self.mode} takes whole samples",
                "compile it for target event-cpu",
            )
        return Stream(self._deltas(), window_us=window_us, strict=strict, clock_bits=clock_bits)

    def _deltas(self) -> DeltaGraph | NumpyDeltas:
        if self.native is None or self._library is None:
            return NumpyDeltas(self.graph)
        return DeltaGraph(self.graph, self._library)

    def close(self) -> None:
        """Free the weights; later calls of `run` raise."""
        self._open, self.native = False, None

    def _integers(self, inputs: Arrays) -> Mapping[str, Integers]:
        native = self.native
        if any(len(array) == 0 for array in inputs.values()):
            names = {output.layer for output in self.graph.outputs}
            return {name: np.zeros((0, *self.graph.layer(name).shape), np.int64) for name in names}
        if self.mode != "graded":
            return run(self.graph, inputs, self.mode).counts
        if native is None:
            return graded(self.graph, inputs)
        counts = {e.population: encode(e, inputs[e.name]) for e in self.graph.inputs}
        return native.run(counts)


def load(folder: Path, engine: str, options: Mapping[str, object]) -> EventExecutable:
    """Load the payload from an artifact's folder.

    Raises:
        ArtifactError: it is missing or damaged.
        TargetError: `cpu-feature-missing`, naming what this CPU lacks.
    """
    graph, library = unpack(folder / FILE), folder / LIBRARY
    if engine != "graded" or not library.is_file():
        return EventExecutable(graph, None, engine)
    have = find_machine().cpu_features
    missing = [name for name in str(options.get("features", "")).split() if name not in have]
    if missing:
        raise TargetError(
            "cpu-feature-missing",
            f"{folder} needs {', '.join(missing)}, which this CPU lacks",
            "compile it for target event-cpu on this machine",
        )
    try:
        return EventExecutable(graph, NativeGraph(graph, library), library=library)
    except Unfit:
        return EventExecutable(graph, None)


def signature_of(graph: EventGraph) -> Signature:
    """Return inputs and outputs with an open batch."""
    return Signature(
        tuple(Port(entry.name, entry.dtype, ("batch", *entry.fed)) for entry in graph.inputs),
        tuple(Port(output.name, output.dtype, ("batch", *output.shape)) for output in graph.outputs),
    )
