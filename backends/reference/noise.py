"""How large the rounding error of one operator may be, and random errors of that size.

The model is random rounding (Higham and Mary 2019): k rounding errors of unit u add up to about u * sqrt(k)
times the sum of magnitudes, which Cauchy-Schwarz bounds by the product of the operands' norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

from .base import REFERENCE_DOMAIN, Array, is_float
from .convolution import convolve
from .windows import make_window

# Results are copies or choices of inputs, or exact: no rounding.
EXACT = frozenset(
    [
        *("Abs", "Cast", "Ceil", "Clip", "Compress", "Concat", "Constant", "ConstantOfShape", "DepthToSpace"),
        *("Dropout", "Expand", "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND"),
        *(
            "GlobalMaxPool",
            "Identity",
            "If",
            "Loop",
            "Max",
            "MaxPool",
            "Min",
            "Neg",
            "NonZero",
            "OneHot",
            "Pad",
        ),
        *(
            "Range",
            "ReduceMax",
            "ReduceMin",
            "Relu",
            "Reshape",
            "Round",
            "Scan",
            "ScatterElements",
            "ScatterND",
        ),
        *(
            "Sign",
            "Slice",
            "SpaceToDepth",
            "Split",
            "Squeeze",
            "Tile",
            "TopK",
            "Transpose",
            "Trilu",
            "Unsqueeze",
        ),
        *("Where", "DequantizeLinear", "Quant", "BipolarQuant", "MultiThreshold", "Trunc"),
    ]
)

# Functions that engines approximate by polynomials: a few units of the value, and of 1 where that is the top.
_APPROXIMATED = frozenset(
    ["Sigmoid", "Tanh", "Erf", "Softmax", "HardSigmoid", "Sin", "Cos", "Softsign", "LSTM", "GRU", "RNN"]
)
_APPROXIMATED_ULPS = 8.0
_ULPS = {"Mul": 1.0, "Div": 1.0, "Sqrt": 1.0, "PRelu": 1.0, "LeakyRelu": 1.0, "Reciprocal": 1.0}

# The values of fine quantizers are moved by this many rounding errors of the largest one. Ties are rare: this
# makes a few runs meet as many of them as some dozens of samples would. One value moves by a whole step.
TIE_WIDENING = 16.0
_FINE_LEVELS = 64

# Every engine adds in at least so many lanes or blocks, so fewer rounding errors follow each other.
_LANES = 8

# Whole numbers below 2^24 go through these without rounding, in any order.
_EXACT_ON_INTEGERS = frozenset(
    ["Add", "Sub", "Mul", "Sum", "ReduceSum", "Conv", "ConvTranspose", "Gemm", "MatMul"]
)

Inputs = Sequence[Array | None]
Size = Callable[[OpRun, Inputs, Array, float], Array]


def unit_roundoff(array: npt.NDArray[np.generic]) -> float:
    """Return half the spacing of the dtype's floats at 1."""
    name = array.dtype.name
    return 2.0**-9 if name == "bfloat16" else float(np.finfo(name).eps) / 2


class Noise:
    """Random errors for one run; the hook of an `Evaluator` and the jitter of its quantizers."""

    def __init__(self, rng: np.random.Generator, constants: frozenset[str] = frozenset()) -> None:
        self._rng = rng
        self._constants = constants

    def disturb(self, node: OpRun, inputs: Inputs, outputs: Sequence[Array]) -> Sequence[Array]:
        """Return float outputs moved by up to their operator's rounding error."""
        if node.op_type in EXACT or node.domain == REFERENCE_DOMAIN or node.output[0] in self._constants:
            return outputs
        if node.op_type in _EXACT_ON_INTEGERS and all(_is_whole(x) for x in (*inputs, *outputs)):
            return outputs
        return [self._disturbed(node, inputs, out) if _has_floats(out) else out for out in outputs]

    def _disturbed(self, node: OpRun, inputs: Inputs, out: Array) -> Array:
        size = SIZES.get(node.op_type, _relative)(node, inputs, out, unit_roundoff(out))
        return np.asarray(out + self._uniform(out.shape) * size).astype(out.dtype)

    def jitter(self, node: OpRun, values: Array, levels: int) -> Array:
        """Return values about to be rounded, moved so that near ties may fall either way.

        Coarse quantizers see only the errors of the operators before them: their steps are no small events.
        """
        if levels < _FINE_LEVELS or node.output[0] in self._constants:
            return values
        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
        size = min(TIE_WIDENING * 2.0**-24 * max(largest, 1.0), 0.5)
        moved = np.asarray(values + self._uniform(values.shape) * size)
        if moved.size:
            flat = moved.reshape(-1)
            flat[self._rng.integers(flat.size)] += self._rng.choice([-1.0, 1.0])
        return moved.astype(values.dtype)

    def _uniform(self, shape: tuple[int, ...]) -> Array:
        return self._rng.random(shape, dtype=np.float32) * np.float32(2) - np.float32(1)


def _is_whole(array: Array | None) -> bool:
    return array is None or (
        float(np.abs(array).max(initial=0)) < 2**24 and np.array_equal(array, np.rint(array))
    )


def _accumulated(terms: int, unit: float) -> float:
    """Return the relative error of a sum of so many products."""
    return unit * math.sqrt(1 + terms / _LANES)


def _has_floats(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.size > 0 and is_float(value)


# --- size of one operator's rounding error, an array that broadcasts over the output ---


def _relative(node: OpRun, inputs: Inputs, out: Array, unit: float) -> Array:
    """A few units of the result: products are rounded once, functions are polynomials."""
    size = _ULPS.get(node.op_type, _APPROXIMATED_ULPS) * unit * np.abs(out.astype(np.float64))
    return np.asarray(size + _APPROXIMATED_ULPS / 2 * unit if node.op_type in _APPROXIMATED else size)


def _sum(node: OpRun, inputs: Inputs, out: Array, unit: float) -> Array:
    """Addition: engines may reassociate, so the error is that of the operands."""
    return np.asarray(
        unit * sum((np.abs(x.astype(np.float64)) for x in inputs if x is not None), np.zeros(()))
    )


def _reduction(node: OpRun, inputs: Inputs, out: Array, unit: float) -> Array:
    """Sums of k terms, or means of them: u * sqrt(k) times the sum (mean) of magnitudes."""
    x = inputs[0]
    assert x is not None, "a reduction without data"
    terms = max(x.size // max(out.size, 1), 1)
    mean = float(np.mean(np.abs(x.astype(np.float64)))) if x.size else 0.0
    largest = float(np.abs(out.astype(np.float64)).max())
    whole = mean * terms if node.op_type == "ReduceSum" else mean
    return np.asarray(_accumulated(terms, unit) * max(whole, largest))


def _normalization(node: OpRun, inputs: Inputs, out: Array, unit: float) -> Array:
    """Mean and variance, then a scaling: a few units of the largest result."""
    x = inputs[0]
    assert x is not None, "a normalization without data"
    spread = float(np.abs(x.astype(np.float64)).max()) / max(float(x.std(dtype=np.float64)), 1e-30)
    return np.asarray(unit * (_APPROXIMATED_ULPS + spread) * float(np.abs(out.astype(np.float64)).max()))


def _batch_norm(node: OpRun, inputs: Inputs, out: Array, unit: float) -> Array:
    """Engines compute x * a + b with a and b folded: the error is that of the terms."""
    x, scale, bias, mean, var = (np.asarray(item, np.float64) for item in inputs[:5])
    shape = (1, -1, *(1,) * (x.ndim - 2))
    factor = np.abs(scale) / np.sqrt(var + float(getattr(node, "epsilon", 1e-5)))
    offset = np.abs(mean) * factor + np.abs(bias)
    return np.asarray(3 * unit * (np.abs(x) * factor.reshape(shape) + offset.reshape(shape)))


def _bias_size(bias: Array | None, rank: int) -> Array:
    if bias is None:
        return np.zeros(())
    return np.abs(bias.astype(np.float64)).reshape(1, -1, *(1,) * (rank - 2))


def _conv(node: Any, inputs: Inputs, out: Array, unit: float) -> Array:
    """Norm of each patch times norm of each filter."""
    x, w = inputs[0], inputs[1]
    assert x is not None, "Conv without data"
    assert w is not None, "Conv without weights"
    group = node.group or 1
    window = make_window(x.shape[2:], w.shape[2:], node.strides, node.dilations, node.pads, node.auto_pad)
    energy = np.square(x.astype(np.float32)).reshape(len(x), group, -1, *x.shape[2:]).sum(axis=2)
    ones = np.ones((group, 1, *w.shape[2:]), np.float32)
    patches = np.sqrt(np.maximum(convolve(energy, ones, window, group, np.float32), 0))
    filters = np.sqrt(np.square(w.astype(np.float64)).reshape(w.shape[0], -1).sum(axis=1))
    size = np.repeat(patches, w.shape[0] // group, axis=1) * filters.reshape(1, -1, *(1,) * (x.ndim - 2))
    bias = inputs[2] if len(inputs) > 2 else None
    return np.asarray(_accumulated(math.prod(w.shape[1:]), unit) * (size + _bias_size(bias, x.ndim)))


def _conv_transposed(node: Any, inputs: Inputs, out: Array, unit: float) -> Array:
    """Norm of each pixel times norm of each output's filter, the largest over the picture."""
    x, w = inputs[0], inputs[1]
    assert x is not None, "ConvTranspose without data"
    assert w is not None, "ConvTranspose without weights"
    terms = w.shape[0] // (node.group or 1) * math.prod(w.shape[2:])
    pixel = math.sqrt(float(np.square(x.astype(np.float64)).sum(axis=1).max()))
    largest = float(np.sqrt(np.square(w.astype(np.float64)).reshape(*w.shape[:2], -1).sum(axis=(0, 2))).max())
    bias = inputs[2] if len(inputs) > 2 else None
    return np.asarray(_accumulated(terms, unit) * (pixel * largest + _bias_size(bias, x.ndim)))


def _product(a: Array, b: Array, unit: float) -> Array:
    """Row norms times column norms."""
    rows = np.sqrt(np.square(a.astype(np.float64)).sum(axis=-1, keepdims=a.ndim > 1))
    columns = np.sqrt(
        np.square(b.astype(np.float64)).sum(axis=-2 if b.ndim > 1 else -1, keepdims=a.ndim > 1 < b.ndim)
    )
    return np.asarray(_accumulated(a.shape[-1], unit) * rows * columns)


def _matmul(node: OpRun, inputs: Inputs, out: Array, unit: float) -> Array:
    a, b = inputs[0], inputs[1]
    assert a is not None, "MatMul without its first operand"
    assert b is not None, "MatMul without its second operand"
    if min(a.ndim, b.ndim) < 2:
        return np.asarray(
            _product(
                a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0] if b.ndim == 1 else b.shape[-2], -1), unit
            ).max()
        )
    return _product(a, b, unit)


def _gemm(node: Any, inputs: Inputs, out: Array, unit: float) -> Array:
    a, b = inputs[0], inputs[1]
    assert a is not None, "Gemm without its first operand"
    assert b is not None, "Gemm without its second operand"
    size = abs(float(node.alpha)) * _product(a.T if node.transA else a, b.T if node.transB else b, unit)
    c = inputs[2] if len(inputs) > 2 else None
    return (
        size if c is None else np.asarray(size + unit * abs(float(node.beta)) * np.abs(c.astype(np.float64)))
    )


def _recurrent(node: OpRun, inputs: Inputs, out: Array, unit: float) -> Array:
    """Error of the gates' dot products, carried through all steps; states are of the order of 1."""
    x, w, r = inputs[:3]
    assert x is not None, "a recurrent layer without data"
    assert w is not None, "a recurrent layer without weights"
    assert r is not None, "a recurrent layer without recurrent weights"
    rows = [float(np.sqrt(np.square(m.astype(np.float64)).sum(axis=-1)).max()) for m in (w, r)]
    data = float(np.sqrt(np.square(x.astype(np.float64)).sum(axis=-1)).max())
    terms = w.shape[-1] + r.shape[-1]
    # a sigmoid passes on a quarter of its input's error, a tanh all of it, damped by the gates
    gates = _accumulated(terms, unit) * (rows[0] * data + rows[1] * math.sqrt(r.shape[-1])) / 4
    return np.asarray((gates + unit * _APPROXIMATED_ULPS) * math.sqrt(max(x.shape[0], 1)))


SIZES: Mapping[str, Size] = {
    "Add": _sum,
    "Sub": _sum,
    "Sum": _sum,
    "Conv": _conv,
    "ConvTranspose": _conv_transposed,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _reduction,
    "ReduceSum": _reduction,
    "ReduceMean": _reduction,
    "AveragePool": _reduction,
    "GlobalAveragePool": _reduction,
    "CumSum": _reduction,
    "LayerNormalization": _normalization,
    "InstanceNormalization": _normalization,
    "BatchNormalization": _batch_norm,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
