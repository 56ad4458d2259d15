"""Second moments of what flows into a linear layer, accumulated in a stream.

The squared output error of a linear layer with weights `w + e` is `e G e'`, where `G = E[x x']` is the
second moment of its input patches `x`. `G` has a fixed size however many samples there are, so methods
that minimise this error (AdaRound, GPTQ) need neither the samples nor their activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.ir import walk
from ...compiler.ir.windows import pads_of
from ...compiler.ort import make_session, run_session
from ...compiler.pass_api import Context

Floats = npt.NDArray[np.floating]
Array = npt.NDArray[np.generic]
_T = TypeVar("_T", bound=np.generic)
_Item = TypeVar("_Item")

GRAM_BUDGET_BYTES = 256 << 20
"""Accumulators held at once; more layers mean more passes over the data."""


_ROWS = 64  # so few vectors and the product is bound by writing the matrix, not by arithmetic


@dataclass
class Gathered:
    """Holds vectors back until there are enough for a product; what is returned is to be added."""

    _held: list[tuple[Floats, ...]] = field(default_factory=list)
    _rows: int = 0

    def add(self, *arrays: Floats) -> tuple[Floats, ...] | None:
        """Take arrays `[groups, n, ...]` of the same vectors; return those gathered, when they are many."""
        self._held.append(arrays)
        self._rows += arrays[0].shape[1]
        return self.rest() if self._rows >= _ROWS else None

    def rest(self) -> tuple[Floats, ...] | None:
        """Return what is held back, joined; None when there is nothing."""
        if not self._held:
            return None
        held, self._held, self._rows = self._held, [], 0
        return tuple(np.concatenate(parts, axis=1) for parts in zip(*held, strict=True))


@dataclass
class Moments:
    """Running sums over the inputs of a weight: patches of a convolution, rows of a product.

    Attributes:
        groups: independent channel groups of a convolution, directions of a cell, 1 for dense layers.
        size: length `k` of an input.
        second: accumulate the matrix of second moments too, not only its diagonal.
        count: inputs seen, per group.
    """

    groups: int
    size: int
    second: bool = True
    count: int = 0
    _sum: Floats = field(init=False, repr=False)
    _squares: Floats = field(init=False, repr=False)
    _gram: Floats = field(init=False, repr=False)
    _waiting: Gathered = field(init=False, repr=False, default_factory=Gathered)

    def __post_init__(self) -> None:
        self._sum = np.zeros((self.groups, self.size))
        self._squares = np.zeros((self.groups, self.size))
        self._gram = np.zeros((self.groups, self.size, self.size) if self.second else 0)

    def add(self, x: Floats) -> None:
        """Add inputs `[groups, n, k]`; products in float32, sums in float64."""
        assert x.shape[::2] == (self.groups, self.size), (x.shape, self.groups, self.size)
        self._sum += x.sum(axis=1, dtype=np.float64)
        if self.second:
            self._multiply(self._waiting.add(x))
        else:
            self._squares += np.square(x).sum(axis=1, dtype=np.float64)
        self.count += x.shape[1]

    def _multiply(self, gathered: tuple[Floats, ...] | None) -> None:
        if gathered is not None:
            (x,) = gathered
            self._gram += np.matmul(x.transpose(0, 2, 1), x)

    @property
    def mean(self) -> Floats:
        """`E[x]`, shape `[groups, k]`."""
        return self._sum / max(self.count, 1)

    @property
    def power(self) -> Floats:
        """`E[x^2]`, shape `[groups, k]`."""
        if not self.second:
            return self._squares / max(self.count, 1)
        self._multiply(self._waiting.rest())
        squares: Floats = np.einsum("gkk->gk", self._gram)
        return squares / max(self.count, 1)

    @property
    def variance(self) -> Floats:
        """`Var[x]`, shape `[groups, k]`; never negative."""
        return np.maximum(self.power - self.mean**2, 0.0)

    @property
    def gram(self) -> Floats:
        """`E[x x']`, shape `[groups, k, k]`."""
        assert self.second, "only the diagonal was collected"
        self._multiply(self._waiting.rest())
        return self._gram / max(self.count, 1)

    @property
    def covariance(self) -> Floats:
        """`E[x x'] - E[x] E[x]'`: the error that is left when the bias absorbs the mean error."""
        mean = self.mean
        return self.gram - mean[:, :, None] * mean[:, None, :]

    def slim(self) -> Moments:
        """The same without the matrix, which is the part that takes memory."""
        small = Moments(self.groups, self.size, second=False, count=self.count)
        small._sum, small._squares = self._sum, self.power * max(self.count, 1)
        return small


@dataclass(frozen=True)
class ConvGeometry:
    """Kernel, strides, dilations and pads (begin..., end...) of a convolution, one entry per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int


def conv_geometry(node: ir.Node, kernel: Sequence[int], spatial: Sequence[int]) -> ConvGeometry:
    """Read a Conv node's attributes with ONNX defaults; `auto_pad` is resolved for input size `spatial`."""
    rank = len(kernel)
    strides = walk.ints_attribute(node, "strides", [1] * rank)
    dilations = walk.ints_attribute(node, "dilations", [1] * rank)
    pads = pads_of(node, kernel, strides, dilations, spatial)
    groups = walk.int_attribute(node, "group", 1)
    return ConvGeometry(tuple(kernel), strides, dilations, pads, groups)


def unfold(x: Floats, geometry: ConvGeometry) -> Floats:
    """Patches of a convolution input (im2col).

    Args:
        x: `[n, channels, *spatial]`.
        geometry: of the convolution.

    Returns:
        `[groups, n * output positions, channels / groups * kernel size]`, columns ordered as in
        `weight.reshape(out, -1)`.
    """
    g = geometry
    rank = len(g.kernel)
    pads = [(0, 0), (0, 0), *zip(g.pads[:rank], g.pads[rank:], strict=True)]
    padded = np.pad(x, pads)
    extent = tuple((k - 1) * d + 1 for k, d in zip(g.kernel, g.dilations, strict=True))
    axes = tuple(range(2, 2 + rank))
    view = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=axes)
    steps = [slice(None)] * 2 + [slice(None, None, s) for s in g.strides]
    view = view[(*steps, *(slice(None, None, d) for d in g.dilations))]
    n, channels, positions = x.shape[0], x.shape[1], view.shape[2 : 2 + rank]
    split = view.reshape(n, g.groups, channels // g.groups, *positions, *g.kernel)
    order = (1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
    return np.ascontiguousarray(split.transpose(order)).reshape(g.groups, n * int(np.prod(positions)), -1)


@dataclass(frozen=True)
class Layer:
    """A linear layer seen as `y = x W'` with `W` of shape `[out, k]`.

    Attributes:
        node: Conv, Gemm or MatMul with a constant weight as input 1.
        weight_shape: of the weight as stored.
        transposed: the stored weight is `[k, out]`.
        groups: channel groups; output channels are divided evenly among them.
    """

    node: ir.Node
    weight_shape: tuple[int, ...]
    transposed: bool
    groups: int

    @property
    def rows(self) -> int:
        """Output channels."""
        return self.weight_shape[-1] if self.transposed else self.weight_shape[0]

    @property
    def columns(self) -> int:
        """Patch length `k`."""
        return int(np.prod(self.weight_shape)) // max(self.rows, 1)

    def to_matrix(self, tensor: npt.NDArray[_T]) -> npt.NDArray[_T]:
        """Arrange an array of the weight's shape as `[out, k]`."""
        return tensor.T if self.transposed else tensor.reshape(self.rows, -1)

    def from_matrix(self, matrix: npt.NDArray[_T]) -> npt.NDArray[_T]:
        """Undo `to_matrix`."""
        return np.ascontiguousarray(matrix.T if self.transposed else matrix.reshape(self.weight_shape))

    def patches(self, x: Array) -> Floats:
        """Arrange an input batch of the node as `[groups, n, k]` float32."""
        values: Floats = x.astype(np.float32, copy=False)
        if self.node.op_type == "Conv":
            return unfold(values, conv_geometry(self.node, self.weight_shape[2:], x.shape[2:]))
        if self.node.op_type == "Gemm" and walk.int_attribute(self.node, "transA", 0):
            values = values.T
        return values.reshape(1, -1, self.columns)


def layer_of(node: ir.Node, weight_shape: Sequence[int]) -> Layer | str:
    """Describe `node` as a linear layer, or say why it cannot be."""
    shape = tuple(weight_shape)
    if node.op_type == "Conv":
        groups = walk.int_attribute(node, "group", 1)
        return Layer(node, shape, transposed=False, groups=groups)
    if node.op_type == "Gemm":
        return Layer(node, shape, transposed=not walk.int_attribute(node, "transB", 0), groups=1)
    if node.op_type == "MatMul":
        if len(shape) != 2:
            return f"MatMul weight has {len(shape)} dimensions, layer reconstruction needs 2"
        return Layer(node, shape, transposed=True, groups=1)
    return f"no layer reconstruction for {node.op_type}"


def collect_moments(
    model: ir.Model, layers: Sequence[Layer], samples: Samples, ctx: Context, *, gram: bool = True
) -> Iterator[tuple[Layer, Moments]]:
    """Run `model` over the samples and yield each layer with the moments of its input.

    Memory is bounded by `GRAM_BUDGET_BYTES` plus the activations of one batch: layers that do not fit
    together are collected in further passes over the data, and freed when the caller lets go of them.

    Args:
        model: float model; not edited, but the caller may edit it between two yields.
        layers: of the main graph (what loop bodies read cannot be observed from outside).
        samples: calibration inputs.
        ctx: progress and cancellation.
        gram: False collects means only.
    """
    for chunk in within_budget(layers, lambda layer: matrix_bytes(layer.groups, layer.columns, gram)):
        yield from _collect(model, chunk, samples, ctx, gram)


def _collect(
    model: ir.Model, chunk: Sequence[Layer], samples: Samples, ctx: Context, gram: bool
) -> list[tuple[Layer, Moments]]:
    names = sorted({_input_name(layer) for layer in chunk})
    session = make_session(model, extra_outputs=names)
    sums = [Moments(layer.groups, layer.columns, gram) for layer in chunk]
    for done, batch in enumerate(samples.batches(1), start=1):
        ctx.check_cancelled()
        values = run_session(session, batch, names)
        for layer, moments in zip(chunk, sums, strict=True):
            moments.add(layer.patches(values[_input_name(layer)]))
        ctx.progress("layer inputs", done, len(samples))
    return list(zip(chunk, sums, strict=True))


def _input_name(layer: Layer) -> str:
    value = layer.node.inputs[0]
    assert value is not None, f"{layer.node.name}: input 0 is missing"
    return str(value.name)


def within_budget(items: Sequence[_Item], size: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """Yield the items in groups whose accumulators, `size` bytes each, fit `GRAM_BUDGET_BYTES` together."""
    chunk: list[_Item] = []
    held = 0
    for item in items:
        if chunk and held + size(item) > GRAM_BUDGET_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append(item)
        held += size(item)
    if chunk:
        yield chunk


def matrix_bytes(groups: int, columns: int, gram: bool) -> int:
    """Bytes of the sums over inputs `[groups, n, columns]`."""
    return 8 * groups * columns ** (2 if gram else 1)
