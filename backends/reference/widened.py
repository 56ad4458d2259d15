"""Float operators of onnx' own reference, run in float64 and rounded once to their type.

Sum, product, quotient and square root are not listed: NumPy rounds them correctly already. Half floats are
widened for everything that is no mere copy: NumPy would round attributes such as a slope to half first.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

from .base import MOVING, Array, Kernel, is_float, wide

_Any = npt.NDArray[np.generic]

WIDENED = frozenset({
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BatchNormalization", "Celu", "Cos", "Cosh",
    "CumSum", "Einsum", "Elu", "Erf", "Exp", "GlobalLpPool", "HardSigmoid", "HardSwish",
    "InstanceNormalization", "LayerNormalization", "Log", "LogSoftmax", "LpPool", "Mean", "Mish", "Pow",
    "RMSNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean",
    "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reciprocal", "Selu", "Sigmoid", "Sin", "Sinh",
    "Softmax", "Softplus", "Softsign", "Sum", "Swish", "Tan", "Tanh",
})  # fmt: skip
# Any type goes through these as it is.
COPYING = MOVING | {"DynamicQuantizeLinear", "QuantizeLinear"}


@functools.cache
def widened(kernel: type[OpRun], op_type: str) -> type[OpRun]:
    """Return `kernel` with float inputs widened and float outputs rounded to the type of the first one."""
    always, own = op_type in WIDENED, op_type == "LayerNormalization"

    class Widened(kernel):  # type: ignore[misc,valid-type]
        def run(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            first = next((a for a in args if isinstance(a, np.ndarray) and is_float(a)), None)
            if first is None or first.dtype == np.float64 or (first.dtype == np.float32 and not always):
                return super().run(*args, **kwargs)
            inputs = [wide(a) if isinstance(a, np.ndarray) else a for a in args]
            outputs = super().run(*inputs, **kwargs)
            # Mean and deviation of a LayerNormalization have the type it computes in.
            types = [first.dtype, *[np.dtype(np.float32) if own else first.dtype] * (len(outputs) - 1)]
            return tuple(
                out.astype(kind) if isinstance(out, np.ndarray) and out.dtype.kind == "f" else out
                for out, kind in zip(outputs, types, strict=True)
            )

    Widened.__name__ = kernel.__name__
    return Widened


def singles(inputs: Sequence[_Any | None]) -> tuple[list[_Any | None], np.dtype[np.generic] | None]:
    """Return the inputs of an operator that ONNX writes as others, half floats as float32, and their type."""
    floats = [x.dtype for x in inputs if isinstance(x, np.ndarray) and is_float(x) and x.dtype.itemsize == 2]
    if not floats:
        return list(inputs), None
    half = floats[0]
    fed = [x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype == half else x for x in inputs]
    return fed, half


def shortened(outputs: Sequence[Array], half: np.dtype[np.generic]) -> list[Array]:
    """Return float32 results rounded to a half type."""
    return [out.astype(half) if out.dtype == np.float32 else out for out in outputs]


class LRN(Kernel):
    """ONNX LRN over any rank: x / (bias + alpha / size * sum of squares over nearby channels) ** beta."""

    def _run(
        self,
        x: Array,
        alpha: float | None = None,
        beta: float | None = None,
        bias: float | None = None,
        size: int | None = None,
    ) -> tuple[Array]:
        assert size is not None, "LRN requires size"
        wide_x = wide(x)
        before, after = (size - 1) // 2, size // 2
        edge = [(0, 0), (1 + before, after)] + [(0, 0)] * (x.ndim - 2)
        running = np.cumsum(np.pad(wide_x * wide_x, edge), axis=1)
        near = running[:, size:] - running[:, : x.shape[1]]
        scale = float(bias or 0) + float(alpha or 0) / size * near
        return (np.asarray(wide_x / scale ** float(beta or 0), x.dtype),)


class LpNormalization(Kernel):
    """ONNX LpNormalization: x / |x|_p along an axis, 0 where the norm is 0."""

    def _run(self, x: Array, axis: int | None = None, p: int | None = None) -> tuple[Array]:
        data = wide(x)
        axis = -1 if axis is None else axis
        total = (
            np.abs(data).sum(axis, keepdims=True)
            if p == 1
            else np.sqrt((data * data).sum(axis, keepdims=True))
        )
        return (np.asarray(np.divide(data, total, out=np.zeros_like(data), where=total != 0), x.dtype),)
