"""The host's side of a circuit: floats to integers before it, integers to floats behind it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..reference import Evaluator
from .graph import Ints, Network, Wire
from .weights import is_whole

Array = npt.NDArray[np.generic]


class Host:
    """Evaluates head and tail of a network with the reference."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._head, self._tail = Evaluator(network.head), Evaluator(network.tail)

    def encode(self, inputs: Mapping[str, Array]) -> dict[str, Ints]:
        """Return the integers that enter the circuit, `[N, *shape]`, from the model's inputs."""
        reals = self._head.run(inputs)
        names = [value.name for value in self._network.head.graph.outputs]
        pairs = zip(self._network.inputs, names, strict=True)
        return {wire.name: _codes(wire, reals[name or ""]) for wire, name in pairs}

    def decode(self, codes: Mapping[str, Ints]) -> dict[str, Array]:
        """Return the model's outputs from the integers that leave the circuit."""
        values = self._network.tail.graph.inputs
        reals = {
            value.name or "": real_of(self._network.wires[name], codes[name], value.dtype.numpy())
            for name, value in zip(self._network.outputs, values, strict=True)
            if value.dtype is not None
        }
        return self._tail.run(reals)


def _codes(wire: Wire, real: Array) -> Ints:
    q = real if is_whole(real.dtype) else np.rint(real.astype(np.float64) / wire.unit) + wire.zero
    return q.astype(np.int64).reshape(-1, *wire.shape)


def real_of(wire: Wire, q: Ints, dtype: np.dtype[np.generic]) -> Array:
    """Return the reals that integers stand for, rounded once; integer types get the integers."""
    if is_whole(dtype):
        return q.astype(dtype)
    return np.asarray(wire.unit * (q - wire.zero) + wire.offset, np.float64).astype(dtype)
