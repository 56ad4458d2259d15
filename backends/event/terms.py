"""What values of a model mean to the reader: input reals, integers, scaled counts, sums on their way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .graph import Connection, Integers, Reals, Shape

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Raw:
    """An input of the graph, not quantized yet.

    `fed` is its own shape, `shape` the view of it, `axes` the order in which it takes the axes of `fed`.
    """

    name: str
    shape: Shape
    dtype: str
    fed: Shape
    axes: Shape = ()


@dataclass(frozen=True)
class Whole:
    """Integers: counts plus a zero point."""

    population: str
    zero: int
    shape: Shape


@dataclass(frozen=True)
class Real:
    """Counts times a float32 scale; `shape` may be another view of the population's."""

    population: str
    scale: float
    shape: Shape


@dataclass(frozen=True, eq=False)
class Sum:
    """An accumulator on its way to a quantizer or out of the network.

    Attributes:
        connections: what adds up.
        shape: without the batch.
        unit, offset: float64 [channels or 1].
        bias: int64 [channels or 1], part of the accumulator where the layer is integer.
        integer: float32 [channels or 1], data scale times weight scale, where docs/semantics.md makes the
            layer an integer one if a quantizer follows; None: the model computes it in float.
        values: the terms are exact integers of a common unit, so that floats add no error.
        steps: a real bias in whole steps, which takes the place of `offset` where `integer` applies.
        divisor: real = accumulator * unit / divisor + offset, divided as the reference divides averages.
        floor, ceiling: clipping since.
        exact: dequantized data, weights and their sums are exact in the types that the model computes in.
        nodes: names of what it stands for.
    """

    connections: tuple[Connection, ...]
    shape: Shape
    unit: Reals
    offset: Reals
    bias: Integers
    integer: Floats | None
    values: bool
    nodes: tuple[str, ...]
    steps: Integers | None = None
    divisor: int = 1
    floor: float = -np.inf
    ceiling: float = np.inf
    exact: bool = False

    @property
    def is_clipped(self) -> bool:
        """Tell whether a Relu or Clip came since."""
        return self.floor != -np.inf or self.ceiling != np.inf

    def clip(self, floor: float, ceiling: float, node: str) -> Sum:
        """Return the sum behind a Relu or Clip."""
        low = float(np.clip(self.floor, floor, ceiling))
        high = float(np.clip(self.ceiling, floor, ceiling))
        return replace(self, floor=low, ceiling=high, nodes=(*self.nodes, node))

    def affine(self, factor: Reals, offset: Reals, node: str) -> Sum:
        """Return the sum behind `x * factor + offset`, factors positive; it is float from here."""
        return replace(
            self, unit=self.unit * factor, offset=self.offset * factor + offset, integer=None,
            steps=None, values=False, exact=False, nodes=(*self.nodes, node),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Soft:
    """The Softmax, over the last axis, of what leaves the network; `name` is the value it reads."""

    of: Sum | Real
    name: str
    shape: Shape


Term: TypeAlias = Raw | Whole | Real | Sum | Soft
