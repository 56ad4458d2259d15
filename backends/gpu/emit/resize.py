"""Resize in one kernel: nearest, linear and cubic along any axes, with the coordinates of ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, ints_attribute
from ....compiler.ops.common import float_attribute, string_attribute
from .moves import moved
from .walk import Emitter, Last, Rule, dtype_of, refuse, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr

_Reals = npt.NDArray[np.float64]
# Input indices and their weights.
_Table = tuple[_Reals, _Reals]


def _resize(emitter: Emitter, node: ir.Node) -> Last:
    x = emitter.image(node, 0)
    sizes, rank = shape_of(x), len(shape_of(x))
    policy = string_attribute(node, "keep_aspect_ratio_policy", "stretch")
    rare = [name for name in ("antialias", "exclude_outside") if int_attribute(node, name, 0)]
    if rare or policy != "stretch":
        raise refuse(node, f"{', '.join(rare) or policy}")
    order = (0, *range(2, rank), 1)
    scales, targets = _targets(emitter, node, [sizes[order.index(axis)] for axis in range(rank)])
    tables = [
        stencil(node, scales[axis], sizes[place], targets[axis])
        if targets[axis] != sizes[place] or scales[axis] != 1 else None
        for place, axis in enumerate(order)
    ]  # fmt: skip
    shape = tuple(targets[axis] for axis in order)
    factors = [_whole_factor(table, size) for table, size in zip(tables, sizes, strict=True)]
    if None not in factors:
        return Last(
            moved(
                emitter,
                "resize",
                x,
                shape,
                lambda *at: [i // (f or 1) for i, f in zip(at, factors, strict=True)],
            )
        )
    return Last(_rounded(emitter, _blended(emitter, x, shape, tables), node))


def _targets(emitter: Emitter, node: ir.Node, shape: Sequence[int]) -> tuple[list[float], list[int]]:
    """Return factor and size of every axis, as ONNX counts them."""
    axes = ints_attribute(node, "axes", range(len(shape)))
    factors, targets = [1.0] * len(shape), list(shape)
    scales = emitter.maybe_array(node, 2)
    if scales is not None and scales.size:
        for axis, scale in zip(axes, scales.tolist(), strict=True):
            factors[axis], targets[axis] = float(scale), int(np.floor(shape[axis] * scale))
        return factors, targets
    for axis, size in zip(axes, emitter.array(node, 3).tolist(), strict=True):
        factors[axis], targets[axis] = size / shape[axis], int(size)
    return factors, targets


def _whole_factor(table: _Table | None, size: int) -> int | None:
    """Return how often every cell of an axis is repeated, where that is all: the kernel reads no table."""
    if table is None:
        return 1
    index, _ = table
    factor = max(len(index) // size, 1)
    repeats = index.shape[1] == 1 and np.array_equal(index[:, 0], np.arange(len(index)) // factor)
    return factor if repeats else None


def _blended(emitter: Emitter, x: Expr, shape: tuple[int, ...], tables: Sequence[_Table | None]) -> Expr:
    """Emit the weighted sum of all cells that the tables of the axes name, in one kernel."""
    from tvm import te

    used = [(axis, table) for axis, table in enumerate(tables) if table is not None]
    weighs = any(index.shape[1] > 1 for _, (index, _) in used)

    def blend(t: te.Tensor, *given: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            total = None
            for taps in product(*(range(index.shape[1]) for _, (index, _) in used)):
                place, share = list(at), None
                for number, ((axis, _), tap) in enumerate(zip(used, taps, strict=True)):
                    place[axis] = given[number](at[axis], tap)
                    if weighs:
                        own = given[len(used) + number](at[axis], tap)
                        share = own if share is None else share * own
                cell = t(*place)
                part = cell if share is None else cell.astype("float32") * share
                total = part if total is None else total + part
            return total

        return te.compute(shape, element, name="resize")

    places = [emitter.constant(index.astype(np.int32)) for _, (index, _) in used]
    shares = [emitter.constant(weight.astype(np.float32)) for _, (_, weight) in used] if weighs else []
    return emitter.compute("resize", blend, x, *places, *shares)


def _rounded(emitter: Emitter, x: Expr, node: ir.Node) -> Expr:
    """Return the result in the type of the input; integers are rounded half to even."""
    from tvm import te, tirx

    value = node.inputs[0]
    assert value is not None, "no image"
    kind = "float32" if value.dtype is None else value.dtype.numpy().name
    if dtype_of(x) == kind:
        return x

    def rounded(t: te.Tensor) -> te.Tensor:
        if "float" in kind:
            return te.compute(t.shape, lambda *at: t(*at).astype(kind), name="rounded")
        limits = np.iinfo(kind)
        low, high = (tirx.const(float(v), "float32") for v in (limits.min, limits.max))
        return te.compute(
            t.shape,
            lambda *at: tirx.nearbyint(tirx.max(tirx.min(t(*at), high), low)).astype(kind),
            name="rounded",
        )

    return emitter.compute("rounded", rounded, x)


def _coordinates(node: ir.Node, s: float, n: int, m: int) -> _Reals:
    """Return where each of m outputs lies among n inputs."""
    where, o = string_attribute(node, "coordinate_transformation_mode", "half_pixel"), np.arange(float(m))
    if where == "asymmetric":
        return o / s
    if where == "align_corners":
        return o * (n - 1) / max(m - 1, 1)
    if where == "half_pixel" or (where == "pytorch_half_pixel" and m > 1):
        return (o + 0.5) / s - 0.5
    if where == "half_pixel_symmetric":
        return n / 2 * (1 - m / (s * n)) + (o + 0.5) / s - 0.5
    if where == "pytorch_half_pixel":
        return o * 0.0
    raise refuse(node, f"coordinates {where}")


def stencil(node: ir.Node, scale: float, size: int, target: int) -> _Table:
    """Return input indices and weights of one axis, both [outputs, taps]; beyond it its edge is repeated."""
    x, mode = _coordinates(node, scale, size, target), string_attribute(node, "mode", "nearest")
    if mode == "nearest":
        rounding = {
            "round_prefer_floor": np.ceil(x - 0.5), "round_prefer_ceil": np.floor(x + 0.5),
            "floor": np.floor(x), "ceil": np.ceil(x),
        }  # fmt: skip
        found = rounding[string_attribute(node, "nearest_mode", "round_prefer_floor")]
        return np.clip(found, 0, size - 1)[:, None], np.ones((len(x), 1))
    base = np.floor(x)
    t = (x - base)[:, None]
    if mode == "linear":
        return np.clip(base[:, None] + [0, 1], 0, size - 1), np.hstack([1 - t, t])
    a = float_attribute(node, "cubic_coeff_a", -0.75)
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1 + t, 2 - t)]  # Keys' kernel
    return np.clip(base[:, None] + [-1, 0, 1, 2], 0, size - 1), np.hstack([far[0], *near, far[1]])


RULES: dict[str, Rule] = {"Resize": _resize}
