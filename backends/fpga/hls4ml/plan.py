"""A network as layers that hls4ml has, with exact types: channels last, every number an integer.

    plan = make_plan(network)     # raises UnsupportedOp naming the node

What a layer's numbers stand for stays with the host. A wire's number here is `q - zero`, so that padding
is 0. Accumulators are as wide as the front proved; a requantization is a constant multiplication, an addition
and one rounding assignment (`affine.py`), or the assignment alone where its scale is a power of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..graph import Ints, Wire
from .formats import Format

Attribute = int | str | list[int] | npt.NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Step:
    """One hls4ml layer.

    Attributes:
        name: unique, lower case.
        kind: hls4ml's class name.
        inputs: names of steps.
        output: type of its numbers.
        attributes: of the hls4ml layer.
        types: name of a type (weight, bias, accum, scale) -> the type.
        product: inputs and outputs of one matrix product, None where there is none.
        source: name of the layer in the model.
        wire: name of the network's wire that it makes, "" for a helper.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    output: Format
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    types: Mapping[str, Format] = field(default_factory=dict)
    product: tuple[int, int] | None = None
    source: str = ""
    wire: str = ""


@dataclass(frozen=True, eq=False)
class Port:
    """A tensor at the edge: `flat of the project = (codes.flat - zero)[order]`."""

    wire: Wire
    step: str
    order: Ints

    def enter(self, codes: Ints) -> Ints:
        """Return what the project takes, [N, size], from codes [N, *shape]."""
        return np.asarray((codes.reshape(len(codes), -1) - self.wire.zero)[:, self.order])

    def leave(self, numbers: Ints) -> Ints:
        """Return codes [N, *shape] from what the project gives, [N, size]."""
        flat = np.empty_like(numbers)
        flat[:, self.order] = numbers
        return flat.reshape(-1, *self.wire.shape) + self.wire.zero


@dataclass(frozen=True, eq=False)
class Plan:
    """Steps in running order, inputs first."""

    steps: tuple[Step, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def last_order(shape: tuple[int, ...]) -> Ints:
    """Return where the elements of a channels-last tensor lie in the channels-first one.

    >>> last_order((2, 3)).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    places = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64).reshape(shape)
    return np.moveaxis(places, 0, -1).reshape(-1) if len(shape) > 1 else places


def last_shape(shape: tuple[int, ...]) -> list[int]:
    """Return a shape with its channels last."""
    return [*shape[1:], shape[0]] if len(shape) > 1 else list(shape)
