"""Ways to write one layer's weights as a chain of smaller layers, and what is lost at every rank.

Weights are [M, C, kh, kw]; dense layers have kh = kw = 1. Methods:

* `svd`: [M, K] into [r, K] and [M, r]; dense layers and 1x1 convolutions.
* `channel`: KxK convolution to r channels, then 1x1 (Zhang et al., arXiv 1505.06798).
* `spatial`: kh x 1 to r channels, then 1 x kw (Jaderberg et al., arXiv 1405.3866, scheme 2).
* `tucker2`: 1x1 to r1, KxK to r2, 1x1 (Kim et al., arXiv 1511.06530); r1 follows from r2 by the ratio C : M.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .whiten import Floats, root_of, svd


@dataclass(frozen=True)
class Window:
    """Strides, pads and dilations of a convolution, per axis; pads are (top, left, bottom, right)."""

    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    def rows_only(self) -> Window:
        """Return the part along the first axis."""
        top, _, bottom, _ = self.pads
        return Window((self.strides[0], 1), (top, 0, bottom, 0), (self.dilations[0], 1))

    def columns_only(self) -> Window:
        """Return the part along the second axis."""
        _, left, _, right = self.pads
        return Window((1, self.strides[1]), (0, left, 0, right), (1, self.dilations[1]))


@dataclass(frozen=True, eq=False)
class Stage:
    """One layer of the chain: weight [out, in, kh, kw] and its window."""

    weight: Floats
    window: Window = Window()


Shaped = tuple[tuple[int, ...], Window]


@dataclass(frozen=True, eq=False)
class Factored:
    """One method on one layer.

    Attributes:
        method: its name.
        tail: share of the squared output lost at ranks 0..n (expected on the data, or of the weights).
        shapes: rank -> weight shapes and windows of the chain.
        stages: rank -> the chain, in the order in which it runs.
    """

    method: str
    tail: Floats
    shapes: Callable[[int], tuple[Shaped, ...]]
    stages: Callable[[int], tuple[Stage, ...]]


@dataclass(frozen=True, eq=False)
class Weights:
    """A layer's weights with the second moment of its input patches.

    Attributes:
        weight: [M, C, kh, kw].
        gram: [C kh kw, C kh kw], columns as in `weight.reshape(M, -1)`; None without data.
        window: of the convolution.
    """

    weight: Floats
    gram: Floats | None = None
    window: Window = Window()

    @cached_property
    def by_taps(self) -> Floats | None:
        """The second moment as [C, kh, kw, C, kh, kw]."""
        shape = self.weight.shape[1:]
        return None if self.gram is None else self.gram.reshape(*shape, *shape)

    def columns_gram(self) -> Floats | None:
        """Second moment of vertical strips (C, kh), the mean over kw."""
        if self.by_taps is None:
            return None
        strips = np.einsum("ahwbgw->ahbg", self.by_taps) / self.weight.shape[3]
        size = self.weight.shape[1] * self.weight.shape[2]
        return np.asarray(strips.reshape(size, size))

    def channel_gram(self) -> Floats | None:
        """Second moment of channels, the mean over the window."""
        if self.by_taps is None:
            return None
        return np.asarray(np.einsum("ahwbhw->ab", self.by_taps) / np.prod(self.weight.shape[2:]))


def _svd(layer: Weights) -> Factored:
    out = layer.weight.shape[0]
    found = svd(layer.weight.reshape(out, -1), root_of(layer.gram))

    def shapes(rank: int) -> tuple[Shaped, ...]:
        return ((rank, *layer.weight.shape[1:]), layer.window), ((out, rank, 1, 1), Window())

    def stages(rank: int) -> tuple[Stage, ...]:
        left, right = found.factors(rank)
        window = layer.weight.shape[1:]
        return Stage(right.reshape(rank, *window), layer.window), Stage(left[:, :, None, None])

    name = "svd" if layer.weight.shape[2:] == (1, 1) else "channel"
    return Factored(name, found.tail, shapes, stages)


def _spatial(layer: Weights) -> Factored:
    m, c, kh, kw = layer.weight.shape
    matrix = layer.weight.transpose(0, 3, 1, 2).reshape(m * kw, c * kh)
    found = svd(matrix, root_of(layer.columns_gram()))
    rows, columns = layer.window.rows_only(), layer.window.columns_only()

    def shapes(rank: int) -> tuple[Shaped, ...]:
        return ((rank, c, kh, 1), rows), ((m, rank, 1, kw), columns)

    def stages(rank: int) -> tuple[Stage, ...]:
        left, right = found.factors(rank)
        second = left.reshape(m, kw, rank).transpose(0, 2, 1)[:, :, None, :]
        first = right.reshape(rank, c, kh, 1)
        return Stage(first, rows), Stage(second, columns)

    return Factored("spatial", found.tail, shapes, stages)


def _tucker2(layer: Weights) -> Factored:
    m, c = layer.weight.shape[:2]
    inner = root_of(layer.channel_gram())
    seen = layer.weight if inner.root is None else np.einsum("mchw,cd->mdhw", layer.weight, inner.root)
    outputs = svd(seen.reshape(m, -1))
    inputs = svd(seen.transpose(1, 0, 2, 3).reshape(c, -1))
    most = len(inputs.tail) - 1  # with many inputs and few outputs below their number
    ranks = [_partner(rank, m, c, most) for rank in range(len(outputs.tail))]
    # The error of a truncated HOSVD is at most the sum of what its modes lose (De Lathauwer et al. 2000).
    tail = np.minimum(outputs.tail + inputs.tail[ranks], 1.0)

    def shapes(rank: int) -> tuple[Shaped, ...]:
        other = ranks[rank]
        core = (rank, other, *layer.weight.shape[2:])
        return ((other, c, 1, 1), Window()), (core, layer.window), ((m, rank, 1, 1), Window())

    def stages(rank: int) -> tuple[Stage, ...]:
        u_out, u_in = outputs.u[:, :rank], inputs.u[:, : ranks[rank]]
        core = np.einsum("mchw,mr,cs->rshw", seen, u_out, u_in, optimize=True)
        entry = u_in.T if inner.inverse is None else u_in.T @ inner.inverse
        ends = Stage(entry[:, :, None, None]), Stage(u_out[:, :, None, None])
        return ends[0], Stage(core, layer.window), ends[1]

    return Factored("tucker2", tail, shapes, stages)


def _partner(rank: int, m: int, c: int, most: int) -> int:
    """Return the input rank that goes with an output rank: the same share of the channels."""
    return min(-(-rank * c // m), most)


_METHODS: Mapping[str, Callable[[Weights], Factored]] = {
    "svd": _svd, "channel": _svd, "spatial": _spatial, "tucker2": _tucker2,
}  # fmt: skip


def methods_for(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the methods that a weight [M, C, kh, kw] may take."""
    kh, kw = shape[2:]
    if (kh, kw) == (1, 1):
        return ("svd",)
    return ("channel", "spatial", "tucker2") if kh > 1 and kw > 1 else ("channel", "tucker2")


def factor(layer: Weights, method: str) -> Factored:
    """Decompose a layer by one of `methods_for` its shape."""
    return _METHODS[method](layer)


def dense(stages: tuple[Stage, ...]) -> Floats:
    """Return the single convolution [M, C, kh, kw] that a chain computes (its windows apart).

    >>> one = Stage(np.ones((2, 3, 3, 1))), Stage(np.ones((4, 2, 1, 3)))
    >>> dense(one).shape, float(dense(one)[0, 0, 0, 0])
    ((4, 3, 3, 3), 2.0)
    """
    total = stages[0].weight
    for stage in stages[1:]:
        # Of the windows of neighbours at most one is longer than 1 along each axis.
        total = np.einsum("mrij,rckl->mcikjl", stage.weight, total).reshape(
            stage.weight.shape[0],
            total.shape[1],
            stage.weight.shape[2] * total.shape[2],
            stage.weight.shape[3] * total.shape[3],
        )
    return np.asarray(total)
