"""Pooling over any number of spatial axes; sums of few bits are accumulated in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, ints_attribute
from ....compiler.ir.windows import pads_of
from .reductions import SUMS
from .walk import Emitter, Last, Rule, dtype_of, refuse, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr


@dataclass(frozen=True)
class _Window:
    """A pooling window; everything per spatial axis.

    Attributes:
        kernel, strides, dilations: of the node.
        begin, end: pads.
        size, out: of input and result.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    size: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def padded(self) -> bool:
        """Whether some window reaches beyond the input."""
        reach = [
            (o - 1) * s + d * (k - 1) - b
            for o, s, d, k, b in zip(
                self.out, self.strides, self.dilations, self.kernel, self.begin, strict=True
            )
        ]
        return any(self.begin) or any(last >= n for last, n in zip(reach, self.size, strict=True))


def _window(node: ir.Node, x: Expr) -> _Window:
    kernel, size = ints_attribute(node, "kernel_shape"), shape_of(x)[1:-1]
    ones = (1,) * len(kernel)
    strides, dilations = ints_attribute(node, "strides", ones), ints_attribute(node, "dilations", ones)
    pads = pads_of(node, kernel, strides, dilations, size)
    begin, end = pads[: len(kernel)], pads[len(kernel) :]
    ceil, out = bool(int_attribute(node, "ceil_mode", 0)), []
    for n, k, s, d, b, e in zip(size, kernel, strides, dilations, begin, end, strict=True):
        room = n + b + e - d * (k - 1) - 1
        count = (-(-room // s) if ceil else room // s) + 1
        # A window must start inside the input or its left padding.
        out.append(count - (ceil and (count - 1) * s >= n + b))
    return _Window(kernel, strides, dilations, begin, end, size, tuple(out))


def _pooled(emitter: Emitter, x: Expr, window: _Window, name: str) -> Expr:
    """Emit the `sum` or `max` under a window of data with its channels last; padding counts nothing.

    Sums are float64: of what was quantized they are exact, so that a quantizer behind them rounds as the
    reference does.
    """
    from tvm import te, tirx

    def pool(t: te.Tensor) -> te.Tensor:
        taps = [te.reduce_axis((0, k), name=f"k{i}") for i, k in enumerate(window.kernel)]
        kind = SUMS if name == "sum" else t.dtype
        nothing = tirx.const(0, kind) if name == "sum" else tirx.min_value(kind)

        def element(*at: tirx.Expr) -> tirx.Expr:
            places = [
                i * s + tap * d - b
                for i, tap, s, d, b in zip(
                    at[1:-1], taps, window.strides, window.dilations, window.begin, strict=True
                )
            ]
            found = t(at[0], *places, at[-1]).astype(kind)
            if window.padded:
                inside = [tirx.all(p >= 0, p < n) for p, n in zip(places, window.size, strict=True)]
                found = tirx.if_then_else(tirx.all(*inside), found, nothing)
            return getattr(te, name)(found, axis=taps)

        return te.compute((t.shape[0], *window.out, t.shape[-1]), element, name=f"pool_{name}")

    return emitter.compute(f"pool_{name}", pool, x)


def _max_pool(emitter: Emitter, node: ir.Node) -> Last:
    if len(node.outputs) > 1:
        raise refuse(node, "places of the maxima")
    x = emitter.image(node, 0)
    return Last(_pooled(emitter, x, _window(node, x), "max"))


def _average_pool(emitter: Emitter, node: ir.Node) -> Last:
    from tvm import relax

    image = emitter.image(node, 0)
    window = _window(node, image)
    counts = _counts(window, bool(int_attribute(node, "count_include_pad", 0)))
    divisor = counts.reshape(-1)[:1] if np.all(counts == counts.flat[0]) else counts[..., None]

    whole = emitter.constant(divisor.astype(SUMS))
    mean = emitter.emit(relax.op.divide(_pooled(emitter, image, window, "sum"), whole))
    return Last(relax.op.astype(mean, dtype_of(image)))


def _counts(window: _Window, with_pads: bool) -> npt.NDArray[np.int64]:
    """Return how many cells count at every place; those past the padding at the end never do."""
    total = np.ones((1,) * len(window.out), np.int64)
    for axis, out in enumerate(window.out):
        taps = np.arange(window.kernel[axis]) * window.dilations[axis]
        places = np.arange(out)[:, None] * window.strides[axis] + taps - window.begin[axis]
        low, high = 0, window.size[axis]
        if with_pads:
            low, high = low - window.begin[axis], high + window.end[axis]
        shape = [1] * len(window.out)
        shape[axis] = out
        total = total * ((places >= low) & (places < high)).sum(axis=1).reshape(shape)
    return np.maximum(total, 1)


def _norm_pool(emitter: Emitter, node: ir.Node) -> Last:
    """LpPool with p = 1 or 2."""
    from tvm import relax

    p, image = int_attribute(node, "p", 2), emitter.image(node, 0)
    if p not in (1, 2):
        raise refuse(node, f"p = {p}; 1 and 2 are taken")
    window = _window(node, image)

    sizes = emitter.emit((relax.op.square if p == 2 else relax.op.abs)(image))
    total = _pooled(emitter, sizes, window, "sum")
    return Last(relax.op.astype(emitter.emit(relax.op.sqrt(total)) if p == 2 else total, dtype_of(image)))


RULES: dict[str, Rule] = {"MaxPool": _max_pool, "AveragePool": _average_pool, "LpPool": _norm_pool}
