"""Resize as a product of one sparse interpolation per axis; rare modes take onnx' own slow kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx.reference.ops._op_list import Resize as _SlowResize

from .base import Array, Integers, is_float, wide

# (output index, scale, input size, output size) -> input coordinate
_COORDINATES: Mapping[str, Callable[[Array, float, int, int], Array]] = {
    "half_pixel": lambda o, s, n, m: np.asarray((o + 0.5) / s - 0.5),
    "pytorch_half_pixel": lambda o, s, n, m: np.asarray((o + 0.5) / s - 0.5 if m > 1 else o * 0.0),
    "align_corners": lambda o, s, n, m: np.asarray(o * (n - 1) / (m - 1) if m > 1 else o * 0.0),
    "asymmetric": lambda o, s, n, m: np.asarray(o / s),
    "half_pixel_symmetric": lambda o, s, n, m: np.asarray(n / 2 * (1 - m / (s * n)) + (o + 0.5) / s - 0.5),
}

_NEAREST: Mapping[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


class Resize(_SlowResize):
    """ONNX Resize."""

    def _run(self, X, roi=None, scales=None, sizes=None, **attributes):  # type: ignore[no-untyped-def,override]
        mode, where = attributes["mode"], attributes["coordinate_transformation_mode"]
        plain = (
            where in _COORDINATES
            and not attributes.get("antialias")
            and not attributes.get("exclude_outside")
        )
        policy = attributes.get("keep_aspect_ratio_policy") or "stretch"
        if not plain or (policy != "stretch" and sizes is not None):
            return super()._run(X, roi, scales, sizes, **attributes)
        factors, target = _target(X.shape, scales, sizes, attributes.get("axes"))
        result = wide(X)
        for axis, (size, out) in enumerate(zip(X.shape, target, strict=True)):
            if size == out and factors[axis] == 1:
                continue
            x = _COORDINATES[where](np.arange(out, dtype=np.float64), factors[axis], size, out)
            index, weight = _stencil(x, size, mode, attributes)
            result = _interpolate(result, axis, index, weight)
        return (np.asarray(result, X.dtype) if is_float(X) else np.asarray(np.rint(result), X.dtype),)


def _target(
    shape: tuple[int, ...], scales: Array | None, sizes: Array | None, axes: list[int] | None
) -> tuple[list[float], list[int]]:
    where = range(len(shape)) if axes is None else axes
    factors, target = [1.0] * len(shape), list(shape)
    if scales is not None and scales.size:
        for axis, scale in zip(where, scales.tolist(), strict=True):
            factors[axis], target[axis] = float(scale), int(np.floor(shape[axis] * scale))
    else:
        assert sizes is not None, "Resize needs scales or sizes"
        for axis, size in zip(where, sizes.tolist(), strict=True):
            factors[axis], target[axis] = size / shape[axis], int(size)
    return factors, target


def _stencil(x: Array, size: int, mode: str, attributes: Mapping[str, object]) -> tuple[Integers, Array]:
    """Return input indices and weights, both [outputs, taps]; indices are clamped to the edge."""
    if mode == "nearest":
        nearest = _NEAREST[str(attributes.get("nearest_mode") or "round_prefer_floor")](x)
        return np.clip(nearest, 0, size - 1).astype(np.int64)[:, None], np.ones((len(x), 1))
    base = np.floor(x)
    t = x - base
    if mode == "linear":
        offsets, weight = np.array([0, 1]), np.stack([1 - t, t], axis=1)
    else:
        a = float(
            str(attributes.get("cubic_coeff_a") if attributes.get("cubic_coeff_a") is not None else -0.75)
        )
        offsets, weight = np.array([-1, 0, 1, 2]), _cubic(t, a)
    index = np.clip(base[:, None] + offsets, 0, size - 1).astype(np.int64)
    return index, weight


def _cubic(t: Array, a: float) -> Array:
    """Keys' kernel: weights of the four neighbours at distances 1 + t, t, 1 - t, 2 - t."""

    def near(d: Array) -> Array:
        return np.asarray(((a + 2) * d - (a + 3)) * d * d + 1)

    def far(d: Array) -> Array:
        return np.asarray(((a * d - 5 * a) * d + 8 * a) * d - 4 * a)

    return np.stack([far(1 + t), near(t), near(1 - t), far(2 - t)], axis=1)


def _interpolate(x: Array, axis: int, index: Integers, weight: Array) -> Array:
    if index.shape[1] == 1:
        return np.take(x, index[:, 0], axis=axis)
    shape = [1] * x.ndim
    shape[axis] = len(index)
    parts = (
        np.take(x, index[:, tap], axis=axis) * weight[:, tap].reshape(shape) for tap in range(index.shape[1])
    )
    return np.asarray(sum(parts))
