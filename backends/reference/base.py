"""The base of our kernels, and the rule for floats: compute in float64, round once per operator."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

if TYPE_CHECKING:
    from onnx import NodeProto

Array = npt.NDArray[np.number]
Integers = npt.NDArray[np.integer]

REFERENCE_DOMAIN = "pared.reference"

# Copies in another place, shape or type, and graphs: every engine gets the same.
MOVING = frozenset({
    "Cast", "CastLike", "Compress", "Concat", "Constant", "ConstantOfShape", "DepthToSpace",
    "DequantizeLinear", "Dropout", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "If", "Loop", "NonZero", "OneHot", "Pad", "Range", "Reshape", "Scan", "ScatterElements",
    "ScatterND", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu",
    "Unsqueeze", "Where",
})  # fmt: skip


def is_float(array: npt.NDArray[np.generic]) -> bool:
    """Say whether the dtype is a float, the small ones of ml_dtypes included."""
    return (
        array.dtype.kind == "f" or array.dtype.name in ("bfloat16",) or array.dtype.name.startswith("float")
    )


def wide(array: Array) -> Array:
    """Return floats as float64 and anything else as it is."""
    return array.astype(np.float64) if is_float(array) and array.dtype != np.float64 else array


def accumulator(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """Return the type sums are made in: float64 for floats, int64 for integers."""
    return np.dtype(np.int64 if dtype.kind in "iu" else np.float64)


# While set, quantizers hand the values they are about to round through it, with their number of levels.
Jitter = Callable[[OpRun, Array, int], Array]
active_jitter: contextvars.ContextVar[Jitter | None] = contextvars.ContextVar("jitter", default=None)


def jittered(node: OpRun, values: Array, levels: int) -> Array:
    """Return values that `node` is about to round to `levels` integers, disturbed if anyone asked for it."""
    jitter = active_jitter.get()
    return values if jitter is None else jitter(node, values, levels)


class Kernel(OpRun):
    """A kernel whose `_run(*inputs, **attributes)` returns a tuple of arrays."""

    onnx_node: NodeProto


def padding_fill(dtype: np.dtype[np.generic]) -> float:
    """Return the lowest value of a dtype, which a maximum ignores."""
    return int(np.iinfo(dtype.name).min) if dtype.kind in "iu" else -np.inf
