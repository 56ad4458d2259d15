"""Constant weights as sums of bases: small integers times one scale per output channel.

Understood, in any nesting: quantizers of one and two bits, `DequantizeLinear` of small integers, `Sign`,
plain floats with at most three values around zero per channel, products with constant scales, sums of such
terms (several binary bases per layer), and transposes of all these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, ints_attribute, producer, static_shape
from ....compiler.ops.constants import constant_expression, constant_of
from . import thresholds as th
from .kernels.bits import Code
from .layers_binary import Base
from .thresholds import CannotFold

MOST_BASES = 8
_CODES = (Code.BINARY, Code.TERNARY, Code.INT2, Code.UINT2)


def bases_of(value: ir.Value | None, axis: int, data_scale: float) -> list[Base]:
    """Return the bases whose sum is a constant weight, output channels first, in its own order of axes else.

    Args:
        value: the weight.
        axis: of its output channels.
        data_scale: what the data's integers are multiplied with; goes into the scales.

    Raises:
        CannotFold: it is no such constant.
    """
    terms = _terms(value)
    if len(terms) > MOST_BASES:
        raise CannotFold(f"weights with {len(terms)} bases, at most {MOST_BASES}")
    return [_base(codes, scale, axis, data_scale) for codes, scale in terms]


def _base(codes: _Numbers, scale: _Numbers, axis: int, data_scale: float) -> Base:
    first = np.moveaxis(codes, axis, 0)
    spread = np.moveaxis(np.broadcast_to(scale, codes.shape), axis, 0).reshape(len(first), -1)
    if (spread != spread[:, :1]).any():
        raise CannotFold("a weight's scale varies within an output channel")
    wide = spread[:, 0].astype(np.float64) * data_scale
    return Base(np.ascontiguousarray(first, np.int8), _code_of(codes), wide)


def _code_of(codes: _Numbers) -> Code:
    found = np.unique(codes)
    for code in _CODES:
        if np.isin(found, code.values).all():
            return code
    raise CannotFold(f"weights of values {found[:8]}")


_Numbers = npt.NDArray[np.number]
_Term = tuple[_Numbers, _Numbers]  # integers, and a float32 scale that broadcasts to them


def _terms(value: ir.Value | None) -> list[_Term]:
    node = value.producer() if value is not None else None
    if node is None or constant_of(value) is not None:
        return [_plain(constant_of(value))]
    if node.op_type == "Transpose":
        perm = ints_attribute(node, "perm") or None
        return [
            (c.transpose(perm), np.broadcast_to(s, c.shape).transpose(perm))
            for c, s in _terms(node.inputs[0])
        ]
    if node.op_type == "Add":
        return [*_terms(node.inputs[0]), *_terms(node.inputs[1])]
    if node.op_type == "Mul":
        return _scaled(node)
    if node.op_type in th.QUANTIZERS and node.op_type != "Sign":
        return [_quantized(node)]
    if producer(value, "DequantizeLinear") is not None:
        return [_dequantized(node)]
    return [_plain(stored(value) if node.op_type != "Sign" else _sign(node))]


def evaluate_weight(value: ir.Value | None, depth: int = 12) -> npt.NDArray[np.float32] | None:
    """Return such a weight as floats, every operator rounding as in docs/semantics.md; None for others.

    Args:
        value: of a graph.
        depth: operators above it that are looked at, at most.
    """
    node = value.producer() if value is not None else None
    data = stored(value)
    if data is not None or node is None or not depth:
        return None if data is None else np.asarray(data, np.float32)
    try:
        if node.op_type in th.QUANTIZERS or node.op_type == "DequantizeLinear":
            ((codes, scale),) = _terms(value)
            return np.asarray(codes.astype(np.float32) * scale, np.float32)
    except CannotFold:
        return None
    rule, operands = _EVALUATED.get(node.op_type), list[npt.NDArray[np.float32]]()
    for operand in node.inputs if rule is not None else ():
        array = evaluate_weight(operand, depth - 1)
        if array is None:
            return None
        operands.append(array)
    return None if rule is None else np.asarray(rule(node, operands), np.float32)


_EVALUATED: dict[str, Callable[[ir.Node, Sequence[npt.NDArray[np.float32]]], _Numbers]] = {
    "Add": lambda node, x: x[0] + x[1],
    "Mul": lambda node, x: x[0] * x[1],
    "Transpose": lambda node, x: x[0].transpose(ints_attribute(node, "perm") or None),
}


def stored(value: ir.Value | None) -> _Numbers | None:
    """Return a constant of any size, also behind the tables and casts that compact-constants makes of it."""
    node = value.producer() if value is not None else None
    direct = constant_of(value)
    if direct is not None or node is None or node.domain:
        return direct
    if node.op_type == "Cast":
        data = stored(node.inputs[0])
        dtype = ir.DataType(int_attribute(node, "to", 1)).numpy()
        return None if data is None else np.asarray(data.astype(dtype))
    if node.op_type == "Gather" and int_attribute(node, "axis", 0) == 0:
        table, index = stored(node.inputs[0]), stored(node.inputs[1])
        return None if table is None or index is None else np.asarray(table[index.astype(np.int64)])
    return constant_expression(value) if node.op_type in ("ConstantOfShape", "Expand", "Identity") else None


def _sign(node: ir.Node) -> _Numbers | None:
    data = stored(node.inputs[0])
    return None if data is None else np.asarray(np.sign(data))


def _scaled(node: ir.Node) -> list[_Term]:
    """Return terms times a constant; the one with fewer elements is the scale."""
    sizes = [math.prod(static_shape(value) or ()) for value in node.inputs]
    data, factor = node.inputs if sizes[0] >= sizes[1] else reversed(node.inputs)
    scale = constant_expression(factor)
    if scale is None:
        raise CannotFold(f"node {node.name!r} multiplies weights with something that is not constant")
    return [(c, np.asarray(s * scale.astype(np.float32))) for c, s in _terms(data)]


def _quantized(node: ir.Node) -> _Term:
    data, book = stored(node.inputs[0]), th.codebook_of(node)
    parameters = [constant_expression(parameter) for parameter in node.inputs[1:]]
    known = [array for array in parameters if array is not None]
    if data is None or len(known) != len(parameters):
        raise CannotFold(f"the weights of {node.name!r} are not constant")
    return th.codes_of(th.RULES[node.op_type](node, data, known), book), np.array([book.scale], np.float32)


def _dequantized(node: ir.Node) -> _Term:
    q, scale = stored(node.inputs[0]), constant_expression(node.inputs[1])
    zero = constant_expression(node.inputs[2]) if len(node.inputs) > 2 else None
    if q is None or scale is None or (zero is None) != (len(node.inputs) < 3) or scale.ndim > 1:
        raise CannotFold(f"the weights of {node.name!r} are not constant, or in blocks")
    shape = [1] * q.ndim
    if scale.size > 1:
        shape[int_attribute(node, "axis", 1) % q.ndim] = scale.size
    offset = 0 if zero is None else zero.astype(np.int64).reshape(shape if zero.size > 1 else [1] * q.ndim)
    return np.asarray(q.astype(np.int64) - offset), scale.astype(np.float32).reshape(shape)


def _plain(data: _Numbers | None) -> _Term:
    """Read floats whose magnitudes are 0 or one number per slice of some axis."""
    if data is None or data.dtype != np.float32 or not data.ndim:
        raise CannotFold("the weights are not constant floats")
    sizes = np.abs(data)
    for axis in (None, *range(data.ndim)):
        others = None if axis is None else tuple(i for i in range(data.ndim) if i != axis)
        scale = np.asarray(sizes.max(axis=others, keepdims=True))
        if bool(((sizes == 0) | (sizes == scale)).all()):
            return np.asarray(np.sign(data), np.int8), np.where(scale == 0, np.float32(1), scale)
    raise CannotFold("weights of more than one magnitude per channel")
