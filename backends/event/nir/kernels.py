"""Synapses as the weights of one Affine or Conv2d node of NIR."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .. import graph as G
from .records import Node, Value


@dataclass(frozen=True, eq=False)
class Kernel:
    """Weights of a node.

    Attributes:
        weights: int64 [outputs, inputs / groups, height, width], or [outputs, inputs] for vectors.
        window: how it moves; None for vectors.
        groups: as in ONNX.
    """

    weights: G.Integers
    window: G.Window | None = None
    groups: int = 1

    @property
    def outputs(self) -> int:
        """Return how many channels come out."""
        return int(self.weights.shape[0])

    @property
    def pads_anything(self) -> bool:
        """Whether the kernel looks beyond the image."""
        return self.window is not None and any(self.window.pads)

    @property
    def dense_size(self) -> int:
        """Return how many weights it has without groups."""
        return int(self.weights.size) * self.groups

    def reach(self) -> G.Reals:
        """Return the sum of absolute weights of every output."""
        return np.asarray(np.abs(self.weights).reshape(self.outputs, -1).sum(axis=1), np.float64)

    def sum_of_weights(self) -> G.Reals:
        """Return the sum of weights of every output."""
        return np.asarray(self.weights.reshape(self.outputs, -1).sum(axis=1), np.float64)

    def with_copies(self, steps: G.Integers) -> Kernel:
        """Take each input as so many copies, that add `steps` each."""
        grown = self.weights[:, :, None] * steps.reshape(1, 1, -1, *[1] * (self.weights.ndim - 2))
        return replace(self, weights=grown.reshape(self.outputs, -1, *self.weights.shape[2:]))

    def for_copies(self, copies: int) -> Kernel:
        """Give each output to so many copies."""
        return replace(self, weights=np.repeat(self.weights, copies, axis=0))

    def node(self, shape: tuple[int, ...], bias: G.Reals, layer: str) -> Node:
        """Return the NIR node.

        Args:
            shape: of what comes in, copies as channels.
            bias: of every output.
            layer: name of the event layer.
        """
        metadata = {"layer": layer}
        whole = bias.astype(np.float32)
        if self.window is None:
            return Node("Affine", {"weight": self.weights.astype(np.float32), "bias": whole}, metadata)
        even = _evenly_padded(_ungrouped(self))
        window = even.window
        assert window is not None, "an image stays one"
        values: dict[str, Value] = {
            "input_shape": np.array(shape[1:]),
            "weight": even.weights.astype(np.float32),
            "stride": np.array(window.strides),
            "padding": np.array(window.pads[:2]),
            "dilation": np.array(window.dilations),
            "groups": even.groups,
            "bias": whole,
        }
        return Node("Conv2d", values, metadata)


def kernel_of(synapses: G.Synapses, source: G.Shape, to: G.Shape) -> Kernel | None:
    """Return the kernel of synapses between two shapes; None where they do not fit it."""
    if isinstance(synapses, G.Dense):
        return _dense(synapses.weights.astype(np.int64), source)
    if isinstance(synapses, G.Conv):
        return Kernel(synapses.weights.astype(np.int64), synapses.window, synapses.groups)
    if isinstance(synapses, G.SumPool | G.MaxPool):
        return max_kernel(synapses.window, source[0])
    return one_to_one(source, to, synapses.first)


def max_kernel(window: G.Window, channels: int) -> Kernel:
    """Return ones over a window, channel by channel."""
    return Kernel(np.ones((channels, 1, *window.kernel), np.int64), window, channels)


def one_to_one(source: G.Shape, to: G.Shape, first: int) -> Kernel | None:
    """Return the kernel that takes channel i to channel `first + i`."""
    if source[1:] != to[1:] or first + source[0] > to[0]:
        return None
    weights = np.zeros((to[0], source[0]), np.int64)
    weights[first + np.arange(source[0]), np.arange(source[0])] = 1
    if len(source) == 1:
        return Kernel(weights)
    return Kernel(weights[:, :, None, None], G.Window((1, 1)))


def _dense(weights: G.Integers, source: G.Shape) -> Kernel:
    if len(source) == 1:
        return Kernel(weights)
    return Kernel(weights.reshape(len(weights), *source), G.Window((source[1], source[2])))


def _ungrouped(kernel: Kernel) -> Kernel:
    """Write groups as one kernel: SpikingJelly takes none, nir 1.0.8 infers wrong shapes of them."""
    groups, w = kernel.groups, kernel.weights
    if groups == 1:
        return kernel
    per_out, per_in = w.shape[0] // groups, w.shape[1]
    full = np.zeros((w.shape[0], per_in * groups, *w.shape[2:]), w.dtype)
    for group in range(groups):
        rows, columns = (
            slice(group * per_out, (group + 1) * per_out),
            slice(group * per_in, (group + 1) * per_in),
        )
        full[rows, columns] = w[rows]
    return replace(kernel, weights=full, groups=1)


def _evenly_padded(kernel: Kernel) -> Kernel:
    """Let a kernel grow by zeros until both sides are padded alike, which is all that NIR says."""
    window = kernel.window
    assert window is not None, "only images are padded"
    top, left, bottom, right = window.pads
    if (top, left) == (bottom, right):
        return kernel
    spread = _undilated(kernel)
    grown = spread.weights
    grow = [(0, 0), (0, 0), _growth(top, bottom), _growth(left, right)]
    weights = np.pad(grown, grow)
    pads = max(top, bottom), max(left, right)
    moved = G.Window((weights.shape[2], weights.shape[3]), window.strides, (*pads, *pads))
    return replace(kernel, weights=weights, window=moved)


def _growth(before: int, after: int) -> tuple[int, int]:
    return max(0, after - before), max(0, before - after)


def _undilated(kernel: Kernel) -> Kernel:
    """Write a dilated kernel with zeros between its weights."""
    window, w = kernel.window, kernel.weights
    assert window is not None, "only images are dilated"
    reach = [d * (k - 1) + 1 for d, k in zip(window.dilations, window.kernel, strict=True)]
    full = np.zeros((*w.shape[:2], *reach), w.dtype)
    full[:, :, :: window.dilations[0], :: window.dilations[1]] = w
    return replace(kernel, weights=full)
