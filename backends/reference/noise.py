"""How large the rounding error of one operator may be, and random errors of that size.

The model is random rounding (Higham and Mary 2019): k rounding errors of unit u add up to about u * sqrt(k)
times the sum of magnitudes, which Cauchy-Schwarz bounds by the product of the operands' norms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

from .base import MOVING, REFERENCE_DOMAIN, Array, is_float
from .windows import box_sums, make_window

# Results are copies or choices of inputs, or exact: no rounding.
EXACT = MOVING | {
    "Abs", "Ceil", "Clip", "Floor", "GlobalMaxPool", "Max", "MaxPool", "Min", "Neg", "ReduceMax", "ReduceMin",
    "Relu", "Round", "Sign", "TopK", "Quant", "BipolarQuant", "MultiThreshold", "Trunc",
}  # fmt: skip

# Functions that engines approximate by polynomials: a few units of the value, and of 1 where that is the top.
_APPROXIMATED = frozenset(
    ["Sigmoid", "Tanh", "Erf", "Softmax", "HardSigmoid", "Sin", "Cos", "Softsign", "LSTM", "GRU", "RNN"]
)
_APPROXIMATED_ULPS = 8.0
_ULPS = {"Mul": 1.0, "Div": 1.0, "Sqrt": 1.0, "PRelu": 1.0, "LeakyRelu": 1.0, "Reciprocal": 1.0}

# Fine quantizers divide, multiply by a folded scale or go through a table: a few roundings of the value that
# is about to be rounded. What the operators before them got wrong is in that value already.
TIE_WIDENING = 4.0
_FINE_LEVELS = 64
# Quantized Softmax is made of integer tables and an integer division: measured, it is off by a few hundredths
# of a step (docs/semantics.md). This share of a step is granted where a quantizer stands behind Softmax.
_TABLE_ERROR = 0.125

# Every engine adds in at least so many lanes or blocks, so fewer rounding errors follow each other.
_LANES = 8

# Whole numbers below 2^24 go through these without rounding, in any order.
_EXACT_ON_INTEGERS = frozenset(
    ["Add", "Sub", "Mul", "Sum", "ReduceSum", "Conv", "ConvTranspose", "Gemm", "MatMul"]
)

# Elements looked at before the whole of an array, to see that it is not made of whole numbers.
_GLANCE = 64

# Unit roundoff of float32, in which kernels of half models add.
_SINGLE = 2.0**-24

Inputs = Sequence[Array | None]


def unit_roundoff(array: npt.NDArray[np.generic]) -> float:
    """Return half the spacing of the dtype's floats at 1."""
    return _unit_of(array.dtype)


@functools.cache
def _unit_of(dtype: np.dtype[np.generic]) -> float:
    return 2.0**-8 if dtype.name == "bfloat16" else float(np.finfo(dtype.name).eps) / 2


@functools.cache
def _ends(dtype: np.dtype[np.generic]) -> tuple[float, float]:
    """Return the lowest and the largest finite value of a half type."""
    top = 65504.0 if dtype == np.float16 else (2 - 2.0**-7) * 2.0**127
    return -top, top


class Norms:
    """Norms of rows of operands; those of constants are worked out once for all runs.

    Args:
        constants: names of values that are the same in every run.
    """

    def __init__(self, constants: frozenset[str] = frozenset()) -> None:
        self.constants = constants
        self._known: dict[tuple[object, ...], Array] = {}

    def __call__(self, name: str, array: Array, axes: tuple[int, ...]) -> Array:
        """Return the Euclidean norm of `array`, the operand called `name`, over `axes`, which stay as 1."""
        # A matrix and its transpose differ in their strides.
        key = (name, array.shape, array.strides, axes)
        if key in self._known:
            return self._known[key]
        norm = np.sqrt(np.square(array.astype(np.float64)).sum(axis=axes, keepdims=True))
        if name in self.constants:
            self._known[key] = norm
        return np.asarray(norm)


Size = Callable[[OpRun, Inputs, Array, float, Norms], Array]


class Noise:
    """Random errors for one run; the hook of an `Evaluator` and the jitter of its quantizers.

    Args:
        rng: where the errors come from.
        norms: shared between the runs of a model.
        layers_in_float: quantized layers, which are exact by definition, get the rounding errors of an engine
            that leaves them in float; such an engine may only differ at ties.
    """

    def __init__(
        self, rng: np.random.Generator, norms: Norms | None = None, *, layers_in_float: bool = False
    ) -> None:
        self._rng = rng
        self._norms = norms if norms is not None else Norms()
        self._constants = self._norms.constants
        self._layers_in_float = layers_in_float
        self._tabled: set[str] = set()

    def disturb(self, node: OpRun, inputs: Inputs, outputs: Sequence[Array]) -> Sequence[Array]:
        """Return float outputs moved by up to their operator's rounding error."""
        if node.op_type == "Softmax":
            self._tabled.add(node.output[0])
        if node.op_type == "DequantizeLinear":
            return [self._unrounded(out) for out in outputs]
        if node.op_type in EXACT or node.domain == REFERENCE_DOMAIN or node.output[0] in self._constants:
            return outputs
        if node.op_type in _EXACT_ON_INTEGERS and all(_is_whole(x) for x in (*inputs, *outputs)):
            return outputs
        return [self._disturbed(node, inputs, out) if _has_floats(out) else out for out in outputs]

    def _disturbed(self, node: OpRun, inputs: Inputs, out: Array) -> Array:
        unit = unit_roundoff(out)
        size = SIZES.get(node.op_type, _relative)(node, inputs, out, min(unit, _SINGLE), self._norms)
        if unit > _SINGLE:
            # Sums are made in float32; the one rounding at the end may be left out by an engine that fuses.
            size = size + unit * _magnitude(out)
        error = self._uniform(out.shape)
        if out.dtype == np.float64:
            error = error * size
        else:
            np.multiply(error, size, error, casting="same_kind")
        moved = np.asarray(out + error)
        if unit > _SINGLE:
            # What an honest engine rounds to the largest number is no infinity.
            moved = np.clip(moved, *_ends(out.dtype), out=moved, where=np.isfinite(out))
        moved = moved.astype(out.dtype, copy=False)
        # An infinite result (a mask, say) has no rounding error.
        return moved if np.isfinite(np.max(size)) else np.where(np.isfinite(out), moved, out)

    def _unrounded(self, out: Array) -> Array:
        """Return weights in half floats as an engine has them that scales its sums instead of them."""
        unit = unit_roundoff(out) if _has_floats(out) else 0.0
        if unit <= _SINGLE:
            return out
        moved = out.astype(np.float32) * (1 + np.float32(unit) * self._uniform(out.shape))
        return np.asarray(np.clip(moved, *_ends(out.dtype))).astype(out.dtype)

    def jitter(self, node: OpRun, values: Array, levels: int) -> Array:
        """Return values about to be rounded, moved so that near ties may fall either way.

        Quantized layers are exact and coarse quantizers see only the errors of the operators before them:
        their steps are no small events.
        """
        exact = node.domain == REFERENCE_DOMAIN
        coarse = levels < _FINE_LEVELS
        if coarse or node.output[0] in self._constants or (exact and not self._layers_in_float):
            return values
        size = np.maximum(np.abs(values), 1.0)
        if exact:
            # Sums cancel: the error goes by the largest.
            size = np.asarray(size[np.isfinite(size)].max(initial=1.0))
        size = np.minimum(TIE_WIDENING * 2.0**-24 * size, 0.5)
        if node.input[0] in self._tabled:
            size = np.maximum(size, _TABLE_ERROR)
        return np.asarray(values + self._uniform(values.shape) * size).astype(values.dtype)

    def _uniform(self, shape: tuple[int, ...]) -> Array:
        numbers = self._rng.random(shape, dtype=np.float32)
        numbers *= np.float32(2)
        numbers -= np.float32(1)
        return numbers


def _is_whole(array: Array | None) -> bool:
    if array is None:
        return True
    some = array.reshape(-1)[:: max(1, array.size // _GLANCE)]
    if not np.array_equal(some, np.rint(some)):
        return False
    largest = 1 / unit_roundoff(array) if is_float(array) else 2.0**24
    return float(np.abs(array).max(initial=0)) < min(largest, 2.0**24) and np.array_equal(
        array, np.rint(array)
    )


def _magnitude(array: Array) -> Array:
    """Return |array| in float32 or wider: sizes of errors need no more digits."""
    return np.abs(array if array.dtype in (np.float32, np.float64) else array.astype(np.float32))


def _accumulated(terms: int, unit: float) -> float:
    """Return the relative error of a sum of so many products."""
    return unit * math.sqrt(1 + terms / _LANES)


def _has_floats(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.size > 0 and is_float(value)


# --- size of one operator's rounding error, an array that broadcasts over the output ---


def _relative(node: OpRun, inputs: Inputs, out: Array, unit: float, norms: Norms) -> Array:
    """A few units of the result: products are rounded once, functions are polynomials."""
    size = _ULPS.get(node.op_type, _APPROXIMATED_ULPS) * unit * _magnitude(out)
    return np.asarray(size + _APPROXIMATED_ULPS / 2 * unit if node.op_type in _APPROXIMATED else size)


def _sum(node: OpRun, inputs: Inputs, out: Array, unit: float, norms: Norms) -> Array:
    """Addition: engines may reassociate, so the error is that of the operands."""
    first, *others = (_magnitude(x) for x in inputs if x is not None)
    return np.asarray(unit * sum(others, first))


def _reduction(node: OpRun, inputs: Inputs, out: Array, unit: float, norms: Norms) -> Array:
    """Sums of k terms, or means of them: u * sqrt(k) times the sum (mean) of magnitudes."""
    x = inputs[0]
    assert x is not None, "a reduction without data"
    terms = max(x.size // max(out.size, 1), 1)
    mean = float(np.mean(_magnitude(x), dtype=np.float64)) if x.size else 0.0
    largest = float(_magnitude(out).max())
    whole = mean * terms if node.op_type == "ReduceSum" else mean
    return np.asarray(_accumulated(terms, unit) * max(whole, largest))


def _normalization(node: OpRun, inputs: Inputs, out: Array, unit: float, norms: Norms) -> Array:
    """Mean and variance, then a scaling: a few units of the largest result."""
    x = inputs[0]
    assert x is not None, "a normalization without data"
    spread = float(np.abs(x.astype(np.float64)).max()) / max(float(x.std(dtype=np.float64)), 1e-30)
    return np.asarray(unit * (_APPROXIMATED_ULPS + spread) * float(np.abs(out.astype(np.float64)).max()))


def _batch_norm(node: OpRun, inputs: Inputs, out: Array, unit: float, norms: Norms) -> Array:
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


def _conv(node: Any, inputs: Inputs, out: Array, unit: float, norms: Norms) -> Array:
    """Norm of each patch times norm of each filter."""
    x, w = inputs[0], inputs[1]
    assert x is not None, "Conv without data"
    assert w is not None, "Conv without weights"
    group = node.group or 1
    window = make_window(x.shape[2:], w.shape[2:], node.strides, node.dilations, node.pads, node.auto_pad)
    energy = np.square(x, dtype=np.float32, casting="unsafe")
    energy = energy.reshape(len(x), group, -1, *x.shape[2:]).sum(axis=2)
    patches = np.sqrt(box_sums(energy, window))
    error = _accumulated(math.prod(w.shape[1:]), unit)
    filters = error * norms(node.input[1], w, tuple(range(1, w.ndim))).astype(np.float32)
    size = patches[:, :, None] * filters.reshape(1, group, -1, *(1,) * (x.ndim - 2))
    bias = inputs[2] if len(inputs) > 2 else None
    return np.asarray(size.reshape(out.shape) + (error * _bias_size(bias, x.ndim)).astype(np.float32))


def _conv_transposed(node: Any, inputs: Inputs, out: Array, unit: float, norms: Norms) -> Array:
    """Norm of each pixel times norm of each output's filter, the largest over the picture."""
    x, w = inputs[0], inputs[1]
    assert x is not None, "ConvTranspose without data"
    assert w is not None, "ConvTranspose without weights"
    terms = w.shape[0] // (node.group or 1) * math.prod(w.shape[2:])
    pixel = math.sqrt(float(np.square(x.astype(np.float64)).sum(axis=1).max()))
    largest = float(np.sqrt(np.square(w.astype(np.float64)).reshape(*w.shape[:2], -1).sum(axis=(0, 2))).max())
    bias = inputs[2] if len(inputs) > 2 else None
    return np.asarray(_accumulated(terms, unit) * (pixel * largest + _bias_size(bias, x.ndim)))


def _product(a: Array, b: Array, unit: float, norms: Norms, names: Sequence[str]) -> Array:
    """Row norms of a [..., m, k] times column norms of b [..., k, n]."""
    return np.asarray(_accumulated(a.shape[-1], unit) * norms(names[0], a, (-1,)) * norms(names[1], b, (-2,)))


def _matmul(node: OpRun, inputs: Inputs, out: Array, unit: float, norms: Norms) -> Array:
    a, b = inputs[0], inputs[1]
    assert a is not None, "MatMul without its first operand"
    assert b is not None, "MatMul without its second operand"
    if min(a.ndim, b.ndim) < 2:
        rows, columns = a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0] if b.ndim == 1 else b.shape[-2], -1)
        return np.asarray(_product(rows, columns, unit, norms, node.input).max())
    return _product(a, b, unit, norms, node.input)


def _gemm(node: Any, inputs: Inputs, out: Array, unit: float, norms: Norms) -> Array:
    a, b = inputs[0], inputs[1]
    assert a is not None, "Gemm without its first operand"
    assert b is not None, "Gemm without its second operand"
    left, right = (a.T if node.transA else a), (b.T if node.transB else b)
    size = abs(float(node.alpha)) * _product(left, right, unit, norms, node.input)
    c = inputs[2] if len(inputs) > 2 else None
    return (
        size if c is None else np.asarray(size + unit * abs(float(node.beta)) * np.abs(c.astype(np.float64)))
    )


def _block_product(node: Any, inputs: Inputs, out: Array, unit: float, norms: Norms) -> Array:
    """An engine may add up dequantized values in floats instead."""
    a, b, bias = inputs[0], inputs[1], inputs[7]
    assert a is not None, "a product without data"
    assert b is not None, "a product without weights"
    size = _product(a, b.T if node.transB else b, unit, norms, node.input)
    return size if bias is None else np.asarray(size + unit * np.abs(bias.astype(np.float64)))


def _recurrent(node: OpRun, inputs: Inputs, out: Array, unit: float, norms: Norms) -> Array:
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
    "BlockProduct": _block_product,
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
