"""Chains of float operators that end in a quantizer of one or two bits, folded into thresholds.

A quantized layer of a BNN ends in BatchNorm (or Mul, Add, ...) and a quantizer. Its sum is an integer of
known range, so each threshold is found by bisection, evaluating the chain with the arithmetic of
docs/semantics.md: what comes out is exact, ties and float rounding included, because every operator that is
allowed here is monotone, also when rounded. Where the chain reads float32 values, bisection goes over their
ordered bit patterns; of bytes every value is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ops.bipolar_quant import bipolar_quant
from ....compiler.ops.common import float_attribute, int_attribute, string_attribute
from ....compiler.ops.constants import constant_expression
from ....compiler.ops.multithreshold import multithreshold
from ....compiler.ops.quant import quant
from ....compiler.ops.trunc import trunc_by_scale, trunc_by_width
from .kernels.bits import Code
from .layers import Codebook

Array = npt.NDArray[np.number]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer]
Keys = npt.NDArray[np.int64]
Rule = Callable[[ir.Node, Array, Sequence[Array]], Array]
Coder = Callable[[Floats], Integers]


class CannotFold(Exception):
    """A chain that is no monotone function of its accumulator, or not understood; the message says why."""


@dataclass(frozen=True, eq=False)
class Folded:
    """`code = least value + #{i : a >= thresholds[c, i]}` with a = -accumulator where `negate[c]`.

    Attributes:
        thresholds: [C, levels - 1], ascending per channel.
        negate: [C]; negate these channels' weights, or multiply their input by -1.
    """

    thresholds: Array
    negate: npt.NDArray[np.bool_]


def fold(codes: Integers, accumulators: Integers, code: Code) -> Folded:
    """Fold a function given by its values.

    Args:
        codes: [A, C], the code at each accumulator.
        accumulators: [A], ascending.
        code: which values there are.

    Raises:
        CannotFold: a channel rises and falls.
    """
    steps = np.diff(codes, axis=0)
    falls, rises = np.asarray((steps < 0).any(axis=0)), np.asarray((steps > 0).any(axis=0))
    if (falls & rises).any():
        raise CannotFold(f"channel {int(np.argmax(falls & rises))} rises and falls with its accumulator")
    upward = np.where(falls, codes[::-1], codes)
    values = np.where(falls, -accumulators[::-1, None], accumulators[:, None])
    beyond = values[-1] + 1
    thresholds = []
    for value in code.values[1:]:
        reached = upward >= value
        first = values[np.argmax(reached, axis=0), np.arange(codes.shape[1])]
        thresholds.append(np.where(reached.any(axis=0), first, beyond))
    return Folded(np.stack(thresholds, axis=1).astype(np.int64), falls)


def fold_floats(function: Coder, channels: int, code: Code) -> Folded:
    """Fold a monotone function of float32 values into float32 thresholds, by bisection.

    Args:
        function: maps values [B, C] to codes [B, C]; monotone per channel.
        channels: C.
        code: which values there are.
    """
    ends = _float_at(np.array([-_LARGEST, _LARGEST]))
    low, high = function(np.repeat(ends[:, None], channels, axis=1))
    negate = np.asarray(high < low)
    thresholds = [_first_reached(function, negate, value) for value in code.values[1:]]
    return Folded(np.stack(thresholds, axis=1), negate)


def _first_reached(function: Coder, negate: npt.NDArray[np.bool_], value: int) -> Floats:
    """Return per channel the least float32 y whose code is at least `value`; NaN where there is none."""

    def reaches(keys: Keys) -> npt.NDArray[np.bool_]:
        y = _float_at(keys)
        return np.asarray(function(np.where(negate, -y, y)[None])[0] >= value)

    never, always, first = _bisect(reaches, negate.shape, _LARGEST)
    found = np.where(always, np.float32(-np.inf), _float_at(first))
    return np.where(never, np.float32(np.nan), found)  # no comparison with NaN holds


def _bisect(
    reaches: Callable[[Keys], npt.NDArray[np.bool_]], shape: tuple[int, ...], bound: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], Keys]:
    """Return where no key in [-bound, bound] reaches, where all do, and else the first key that does."""
    low, high = (np.full(shape, key, np.int64) for key in (-bound, bound))
    never, always = ~reaches(high), reaches(low)
    while (high - low > 1).any():
        middle = (low + high) // 2
        reached = reaches(middle)
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return never, always, high


def fold_sums(function: Callable[[Keys], Integers], channels: int, reach: int, code: Code) -> Folded:
    """Fold a monotone function of the sums -reach..reach into integer thresholds, by bisection.

    Args:
        function: maps sums [1, C] to codes [1, C]; monotone per channel.
        channels: C.
        reach: bound of every |sum|.
        code: which values there are.
    """
    low, high = (function(np.full((1, channels), end, np.int64))[0] for end in (-reach, reach))
    negate = np.asarray(high < low)
    sign = np.where(negate, -1, 1)
    thresholds = []
    for value in code.values[1:]:
        reaches = _Reaches(function, sign, value)
        never, always, first = _bisect(reaches, negate.shape, reach)
        thresholds.append(np.where(never, reach + 1, np.where(always, -reach, first)))
    return Folded(np.stack(thresholds, axis=1), negate)


@dataclass(frozen=True, eq=False)
class _Reaches:
    """Says which sums, negated where the function falls, give at least `value`."""

    function: Callable[[Keys], Integers]
    sign: npt.NDArray[np.int_]
    value: int

    def __call__(self, keys: Keys) -> npt.NDArray[np.bool_]:
        return np.asarray(self.function((self.sign * keys)[None])[0] >= self.value)


_LARGEST = 0x7F7FFFFF  # ordinal of the largest finite float32


def _float_at(keys: npt.NDArray[np.int64]) -> Floats:
    """Return the float32 with ordinal `keys`: 0 is 0.0, each step is the next float."""
    magnitude = np.abs(keys).astype(np.uint32)
    bits = magnitude | np.where(keys < 0, np.uint32(1 << 31), np.uint32(0))
    return bits.astype(np.uint32).view(np.float32)


def chain_to_quantizer(value: ir.Value) -> list[ir.Node]:
    """Return the nodes from an accumulator to the quantizer behind it, both ends included.

    Raises:
        CannotFold: an operator has no rule, a value on the way has other readers, or no quantizer follows.
    """
    return chain_from(_reader_of(value))


def chain_from(node: ir.Node) -> list[ir.Node]:
    """Return the nodes from `node` to the first quantizer, both included; each alone reads the one before.

    Raises:
        CannotFold: as `chain_to_quantizer`.
    """
    nodes = [node]
    while True:
        if nodes[-1].op_type not in RULES or data_index(nodes[-1]) is None:
            raise CannotFold(f"node {nodes[-1].name!r} ({nodes[-1].op_type}) has no threshold form")
        if nodes[-1].op_type in QUANTIZERS:
            return nodes
        nodes.append(_reader_of(nodes[-1].outputs[0]))


def _reader_of(value: ir.Value) -> ir.Node:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        raise CannotFold(f"value {value.name!r} is not read by one operator alone")
    return uses[0].node


def data_index(node: ir.Node) -> int | None:
    """Return which input of a node is not constant; None where that is not one that may vary."""
    varying = [i for i, value in enumerate(node.inputs) if value and constant_expression(value) is None]
    places = (0, 1) if node.op_type in ("Add", "Mul") else (0,)
    return varying[0] if len(varying) == 1 and varying[0] in places else None


def evaluate_chain(nodes: Sequence[ir.Node], values: Array, channels: int, rank: int = 2) -> Array:
    """Evaluate `nodes` one after the other.

    Args:
        nodes: each reads the one before it.
        values: [A] (the same in every channel) or [A, C].
        channels: C.
        rank: of the first node's input in the model; channels are axis 1.

    Returns:
        [A, C], in the float type of the model.

    Raises:
        CannotFold: an operator has no rule, or a parameter is not constant or not per channel.
    """
    columns = np.broadcast_to(values.reshape(len(values), -1), (len(values), channels))
    result: Array = columns.astype(np.float32).reshape(len(values), channels, *[1] * (rank - 2))
    for node in nodes:
        rule = RULES.get(node.op_type)
        if rule is None:
            raise CannotFold(f"node {node.name!r} ({node.op_type}) has no threshold form")
        with np.errstate(over="ignore"):  # infinite results are ordered like all others
            result = rule(node, result, _parameters(node))
    if result.size != len(values) * channels:
        raise CannotFold(f"parameters of shape {result.shape[1:]} are not per channel")
    return result.reshape(len(values), channels)


def _parameters(node: ir.Node) -> list[Array]:
    found = [
        constant_expression(value)
        for index, value in enumerate(node.inputs)
        if index != data_index(node) and value is not None
    ]
    if any(array is None for array in found):
        raise CannotFold(f"node {node.name!r} ({node.op_type}) has a parameter that is not constant")
    return [array for array in found if array is not None]


def is_wide(node: ir.Node) -> bool:
    """Say whether a quantizer has more values than bit planes hold; others than quantizers have none."""
    if node.op_type not in QUANTIZERS:
        return node.op_type not in RULES
    try:
        codebook_of(node)
    except CannotFold:
        return True
    return False


def codebook_of(node: ir.Node) -> Codebook:
    """Return the values that a quantizer gives.

    Raises:
        CannotFold: they are no code of one or two bits with one positive scale around zero.
    """
    scale, least, levels = QUANTIZERS[node.op_type](node)
    for code in Code:
        if code is not Code.UINT2 and (code.values[0], len(code.values)) == (least, levels):
            return Codebook(code, scale)
    if least == 0 and levels <= 4:
        return Codebook(Code.UINT2, scale)
    raise CannotFold(f"node {node.name!r} ({node.op_type}) gives {levels} values from {least} on")


def codes_of(reals: Array, book: Codebook) -> Integers:
    """Return the integers behind quantized floats.

    Raises:
        CannotFold: a value is not `scale * code`.
    """
    integers = np.rint(reals.astype(np.float64) / book.scale).astype(np.int64)
    exact = np.float32(book.scale) * integers.astype(np.float32) == reals
    if not (exact.all() and np.isin(integers, book.code.values).all()):
        raise CannotFold(f"values {np.unique(reals)[:5]} are not {book.scale} times {book.code.values}")
    return integers


def _one(array: Array | None, what: str) -> float:
    if array is None or array.size != 1:
        raise CannotFold(f"{what} is not one constant")
    return float(array.reshape(()))


def _bipolar_levels(node: ir.Node) -> tuple[float, int, int]:
    return _positive(_one(constant_expression(node.inputs[1]), "the scale")), -1, 2


def _positive(scale: float) -> float:
    if not scale > 0:
        raise CannotFold(f"scale {scale} is not positive")
    return scale


def _quant_levels(node: ir.Node) -> tuple[float, int, int]:
    scale, zero, bits = (_one(constant_expression(value), "a parameter") for value in node.inputs[1:4])
    if zero != 0 or bits not in (1, 2):
        raise CannotFold(f"{bits} bits with zero point {zero}")
    signed, narrow = int_attribute(node, "signed", 1), int_attribute(node, "narrow", 1)
    if signed and bits == 1:
        return _positive(scale), -1, 2
    levels = 2 ** int(bits) - bool(narrow)
    return _positive(scale), -(2 ** (int(bits) - 1)) + bool(narrow) if signed else 0, levels


def _multithreshold_levels(node: ir.Node) -> tuple[float, int, int]:
    table = constant_expression(node.inputs[1])
    if table is None:
        raise CannotFold("the thresholds are not constant")
    scale, bias = float_attribute(node, "out_scale", 1.0), float_attribute(node, "out_bias", 0.0)
    levels = table.shape[1] + 1
    if levels == 2 and bias == -scale / 2:
        return _positive(scale / 2), -1, 2
    if bias % _positive(scale):
        raise CannotFold(f"out_bias {bias} is no multiple of out_scale {scale}")
    return scale, int(bias / scale), levels


# Quantizer -> (scale, least value, number of values).
QUANTIZERS: Mapping[str, Callable[[ir.Node], tuple[float, int, int]]] = {
    "BipolarQuant": _bipolar_levels,
    "Quant": _quant_levels,
    "MultiThreshold": _multithreshold_levels,
    "Sign": lambda node: (1.0, -1, 3),
}


def _batch_norm(node: ir.Node, x: Array, parameters: Sequence[Array]) -> Array:
    """In float64 and rounded once, in the order of the ONNX reference implementation."""
    shape = (-1, *[1] * (x.ndim - 2))
    scale, bias, mean, variance = (p.astype(np.float64).reshape(shape) for p in parameters)
    epsilon = float_attribute(node, "epsilon", 1e-5)
    wide = scale * (x.astype(np.float64) - mean) / np.sqrt(variance + epsilon) + bias
    return np.asarray(wide, x.dtype)


def _quant(node: ir.Node, x: Array, parameters: Sequence[Array]) -> Array:
    signed, narrow = bool(int_attribute(node, "signed", 1)), bool(int_attribute(node, "narrow", 1))
    scale, zero, bits = parameters
    return quant(x, scale, zero, bits, signed, narrow, string_attribute(node, "rounding_mode", "ROUND"))


def _trunc(node: ir.Node, x: Array, parameters: Sequence[Array]) -> Array:
    rounding = string_attribute(node, "rounding_mode", "FLOOR")
    scale, zero, in_bits, *rest = parameters
    if len(rest) == 1:
        return trunc_by_width(x, scale, zero, in_bits, rest[0], rounding)
    signed, narrow = bool(int_attribute(node, "signed", 1)), bool(int_attribute(node, "narrow", 0))
    return trunc_by_scale(x, scale, zero, rest[0], rest[1], signed, narrow, rounding)


def _multithreshold(node: ir.Node, x: Array, parameters: Sequence[Array]) -> Array:
    scale, bias = float_attribute(node, "out_scale", 1.0), float_attribute(node, "out_bias", 0.0)
    layout = string_attribute(node, "data_layout", "")
    return multithreshold(x, parameters[0], scale, bias, layout)


def _with_axes(change: Callable[[Array, tuple[int, ...]], Array]) -> Rule:
    return lambda node, x, parameters: change(x, tuple(int(axis) for axis in parameters[0].reshape(-1)))


# Every rule is monotone in its data, rounding included.
RULES: Mapping[str, Rule] = {
    "Add": lambda node, x, p: np.asarray(x + p[0]),
    "BatchNormalization": _batch_norm,
    "BipolarQuant": lambda node, x, p: bipolar_quant(x, p[0]),
    "Div": lambda node, x, p: np.asarray(x / p[0]),
    "Identity": lambda node, x, p: x,
    "Mul": lambda node, x, p: np.asarray(x * p[0]),
    "MultiThreshold": _multithreshold,
    "Quant": _quant,
    "Sign": lambda node, x, p: np.asarray(np.sign(x)),
    "Relu": lambda node, x, p: np.maximum(x, np.asarray(0, x.dtype)),
    "Squeeze": _with_axes(np.squeeze),
    "Sub": lambda node, x, p: np.asarray(x - p[0]),
    "Trunc": _trunc,
    "Unsqueeze": _with_axes(np.expand_dims),
}
