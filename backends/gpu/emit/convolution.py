"""The sums of a convolution as one function: pads and its input's layout are resolved where it is read.

Weights are laid out for the kernels to come: [M, ..., C / group], so that a product's depth is one stretch of
memory; of depthwise convolutions [..., C], so that channels are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..schedules.base import MARK
from .walk import Array, Emitter, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr

DEPTHWISE = "depthwise"
# Channels of a picture; more are turned once to lie last.
_FEW = 4


@dataclass(frozen=True)
class Window:
    """How a kernel moves over its input.

    Attributes:
        pads: of all spatial axes at the beginning, then at the end.
        strides, dilations: of the spatial axes.
        groups: channels are convolved in so many groups.
    """

    pads: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True)
class Data:
    """What is convolved.

    Attributes:
        x: [N, ..., C], or [N, C, ...] where `first`.
        first: the channels are axis 1.
        fill: what stands in the pads.
    """

    x: Expr
    first: bool = False
    fill: int = 0

    @property
    def spatial(self) -> tuple[int, ...]:
        """Sizes of the spatial axes."""
        return shape_of(self.x)[2:] if self.first else shape_of(self.x)[1:-1]

    @property
    def channels(self) -> int:
        """Channels of all groups."""
        return shape_of(self.x)[1 if self.first else -1]


def data_of(emitter: Emitter, node: ir.Node) -> Data:
    """Return input 0 of a convolution; a picture of few channels that nobody else reads stays as it lies."""
    value = node.inputs[0]
    assert value is not None, "a convolution without data"
    lies_first = value in emitter.first and value not in emitter.last
    if lies_first and shape_of(emitter.first[value])[1] <= _FEW and len(value.uses()) == 1:
        return Data(emitter.first[value], first=True)
    return Data(emitter.image(node, 0))


def emit_sums(emitter: Emitter, data: Data, w: Array | Expr, window: Window, kind: str) -> Expr:
    """Emit the sums in the type `kind`, channels last.

    Args:
        emitter: takes the function.
        data: what is convolved.
        w: weights as ONNX has them, [M, C / group, ...], known now or computed.
        window: pads, strides, dilations, groups.
        kind: of the sums, wide enough for them.
    """
    shape = w.shape if isinstance(w, np.ndarray) else shape_of(w)
    depthwise = window.groups == data.channels > 1 and shape[1] == 1
    laid = _laid_out(emitter, w, len(shape) - 2, depthwise)

    def formula(t: te.Tensor, v: te.Tensor) -> te.Tensor:
        padded = _padded(t, data, window)
        return _depthwise(padded, v, window, kind) if depthwise else _dense(padded, v, window, kind)

    assert shape[0] % window.groups == 0, "groups do not divide the channels"
    return emitter.compute(DEPTHWISE if depthwise else "conv", formula, data.x, laid)


def _laid_out(emitter: Emitter, w: Array | Expr, rank: int, depthwise: bool) -> Expr:
    from tvm import relax

    order = (*range(2, rank + 2), 0) if depthwise else (0, *range(2, rank + 2), 1)
    if isinstance(w, np.ndarray):
        return emitter.constant((w[:, :1].transpose(*order, 1)[..., 0]) if depthwise else w.transpose(order))
    turned = emitter.emit(relax.op.permute_dims(w, (*order, 1) if depthwise else order))
    return emitter.emit(relax.op.squeeze(turned, [-1])) if depthwise else turned


def _padded(t: te.Tensor, data: Data, window: Window) -> te.Tensor:
    """Return the data with its pads, [N, ..., C]; what needs none is itself."""
    from tvm import te, tirx

    spatial = data.spatial
    begin, end = window.pads[: len(spatial)], window.pads[len(spatial) :]
    if not any(window.pads) and not data.first:
        return t

    def element(*at: tirx.Expr) -> tirx.Expr:
        place = [i - b if b else i for i, b in zip(at[1:-1], begin, strict=True)]
        datum = t(at[0], at[-1], *place) if data.first else t(at[0], *place, at[-1])
        inside = [i >= b for i, b in zip(at[1:-1], begin, strict=True) if b]
        inside += [i < b + n for i, b, n, e in zip(at[1:-1], begin, spatial, end, strict=True) if e]
        fill = tirx.const(data.fill, t.dtype)
        return tirx.if_then_else(tirx.all(*inside), datum, fill) if inside else datum

    padded = [b + n + e for b, n, e in zip(begin, spatial, end, strict=True)]
    return te.compute((t.shape[0], *padded, data.channels), element, name="pad")


def _window_sizes(size: list[int], kernel: list[int], window: Window) -> list[int]:
    return [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(size, kernel, window.strides, window.dilations, strict=True)
    ]


def _places(at: tuple[tirx.Expr, ...], axes: list[tirx.IterVar], window: Window) -> list[tirx.Expr]:
    """Return where a kernel's tap reads for the result at `at`."""
    return [
        (i * s if s > 1 else i) + (axis * d if d > 1 else axis)
        for i, axis, s, d in zip(at, axes, window.strides, window.dilations, strict=True)
    ]


def _dense(x: te.Tensor, w: te.Tensor, window: Window, kind: str) -> te.Tensor:
    from tvm import te

    outputs, *kernel, depth = (int(size) for size in w.shape)
    batch, *size, _ = (int(n) for n in x.shape)
    taps = [te.reduce_axis((0, k), name=f"k{n}") for n, k in enumerate(kernel)]
    channel = te.reduce_axis((0, depth), name="kc")

    def element(*at: tirx.Expr) -> tirx.Expr:
        first = at[-1] // (outputs // window.groups) * depth if window.groups > 1 else 0
        datum = x(at[0], *_places(at[1:-1], taps, window), first + channel)
        return te.sum(datum.astype(kind) * w(at[-1], *taps, channel).astype(kind), axis=[*taps, channel])

    shape = (batch, *_window_sizes(size, kernel, window), outputs)
    return te.compute(shape, element, name="conv")


def _depthwise(x: te.Tensor, w: te.Tensor, window: Window, kind: str) -> te.Tensor:
    from tvm import te

    *kernel, outputs = (int(size) for size in w.shape)
    batch, *size, channels = (int(n) for n in x.shape)
    taps = [te.reduce_axis((0, k), name=f"k{n}") for n, k in enumerate(kernel)]
    each = outputs // channels

    def element(*at: tirx.Expr) -> tirx.Expr:
        datum = x(at[0], *_places(at[1:-1], taps, window), at[-1] // each if each > 1 else at[-1])
        return te.sum(datum.astype(kind) * w(*taps, at[-1]).astype(kind), axis=taps)

    shape = (batch, *_window_sizes(size, kernel, window), outputs)
    return te.compute(shape, element, name=DEPTHWISE, attrs={MARK: DEPTHWISE})
