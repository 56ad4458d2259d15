"""Rules for products of bits: Conv, Gemm and MatMul whose weights are small integers times scales.

A product looks ahead: operators up to a quantizer become thresholds of its integer sum; without one,
operators per channel become operations on the sum, which is then a real number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute, only_user
from ....compiler.ops.common import float_attribute
from ....compiler.ops.constants import constant_expression
from . import layers as L
from . import layers_binary as B
from . import thresholds as th
from .bit_values import bits_of, codes_of_chain, smallest
from .kernels.bits import Code
from .kernels.conv_binary import ConvBinarySpec, Output, verdict
from .kernels.real_end import RealEnd, RealOp
from .layers import Codebook
from .reader import Reader, clip_of, covers, shape_of, tensor_of
from .thresholds import CannotFold, Keys
from .weights_binary import bases_of
from .windows import window_of


@dataclass(frozen=True, eq=False)
class _Product:
    """Conv, Gemm or MatMul on bits.

    Attributes:
        bases: weights [M, C, kh, kw], scales with the data's in them.
        bias: float64 [M] or None.
    """

    node: ir.Node
    x: L.Tensor
    book: Codebook
    bases: tuple[B.Base, ...]
    bias: npt.NDArray[np.float64] | None
    window: L.Window

    @property
    def channels(self) -> int:
        """Output channels."""
        return len(self.bases[0].codes)

    def spec(self, base: B.Base, output: Output) -> ConvBinarySpec:
        """Return the kernel's spec, its batch left out."""
        (_, c, h, w), window = self.x.image, self.window
        return ConvBinarySpec(
            1, h, w, c, self.channels, window.kernel, window.strides, window.pads, window.dilations,
            self.book.code, base.code, output,
        )  # fmt: skip


def product(reader: Reader, node: ir.Node) -> bool:
    """Read a product whose data are bits and whose weights are bases."""
    x = reader.bits.get(node.inputs[0]) if node.inputs[0] is not None else None
    if x is None or x.book is None:
        return False
    try:
        found = _product_of(node, x, x.book)
        layer = _sums(reader, found) or _reals(reader, found)
    except CannotFold:
        return False
    return layer


def _product_of(node: ir.Node, x: L.Tensor, book: Codebook) -> _Product:
    if node.op_type == "Conv" and len(x.shape) == 4 and int_attribute(node, "group", 1) == 1:
        bases = bases_of(node.inputs[1], 0, book.scale)
        window = window_of(node, bases[0].codes.shape[2:], x.shape[2:])
    elif node.op_type in ("Gemm", "MatMul") and len(x.shape) == 2 and _is_plain(node):
        axis = 0 if int_attribute(node, "transB", 0) else 1
        bases, window = bases_of(node.inputs[1], axis, book.scale), L.Window((1, 1))
        bases = [replace(base, codes=base.codes.reshape(*base.codes.shape[:2], 1, 1)) for base in bases]
    else:
        raise CannotFold("groups, factors, or another rank")
    return _Product(node, x, book, tuple(_fitted(b, book.code) for b in bases), _bias(node, bases[0]), window)


def _is_plain(node: ir.Node) -> bool:
    factors = [attribute(node, name, 1.0) for name in ("alpha", "beta")]
    return node.op_type == "MatMul" or (factors == [1.0, 1.0] and not int_attribute(node, "transA", 0))


def _bias(node: ir.Node, base: B.Base) -> npt.NDArray[np.float64] | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return None
    array = constant_expression(value)
    if array is None:
        raise CannotFold("the bias is not constant")
    return np.asarray(np.broadcast_to(array.reshape(-1), (len(base.codes),)), np.float64)


def _fitted(base: B.Base, data: Code) -> B.Base:
    """Return weights in a code that the kernel multiplies with the data's."""
    signed = (Code.BINARY, Code.TERNARY)
    if data in signed and base.code not in signed:
        raise CannotFold(f"{data.value} data with {base.code.value} weights")
    return replace(base, code=Code.INT2) if data not in signed and base.code in signed else base


def _sums(reader: Reader, found: _Product) -> bool:
    """Read the product and what follows up to a quantizer as thresholds of its sum."""
    if len(found.bases) > 1:
        return False
    try:
        nodes = th.chain_to_quantizer(found.node.outputs[0])
        book = th.codebook_of(nodes[-1])
        base, shape = found.bases[0], shape_of(nodes[-1].outputs[0], nodes[-1])
        spec = found.spec(base, book.code)
        if not verdict(spec).ok or len(shape) != len(found.x.shape):
            return False
        folded = th.fold_sums(
            lambda sums: codes_of_chain(nodes, _real(found, sums), book, shape),
            shape[1],
            spec.reach,
            book.code,
        )
        book, folded = smallest(book, folded)
        base = replace(base, codes=_turned(base, folded))
    except CannotFold:
        return False
    result = nodes[-1].outputs[0]
    reader.take(*nodes)
    layer = B.BitSums(
        (found.x,), bits_of(result, nodes[-1], book), covers(found.node, *nodes), base, found.window,
        B.Limits(folded.thresholds, folded.negate),
    )  # fmt: skip
    reader.emit_bits(layer, result)
    return True


def _fold(
    found: _Product, nodes: Sequence[ir.Node], book: Codebook, shape: tuple[int, ...], reach: int
) -> th.Folded:
    def codes(sums: Keys) -> th.Integers:
        return codes_of_chain(nodes, _real(found, sums), book, shape)

    return th.fold_sums(codes, shape[1], reach, book.code)


def _real(found: _Product, sums: Keys) -> th.Floats:
    """Return what the product gives as a float: exact, then one rounding."""
    wide = sums.astype(np.float64) * found.bases[0].scale
    return np.asarray(wide if found.bias is None else wide + found.bias, np.float32)


def _turned(base: B.Base, folded: th.Folded) -> np.ndarray:
    """Return the weights, negated in channels that fall.

    Raises:
        CannotFold: a negated weight is not in the code.
    """
    codes = np.where(folded.negate[:, None, None, None], -base.codes, base.codes)
    if not np.isin(codes, base.code.values).all():
        raise CannotFold(f"{base.code.value} holds {base.code.values}; a falling channel needs {codes.max()}")
    return np.asarray(codes, np.int8)


def _reals(reader: Reader, found: _Product) -> bool:
    """Read the product and what follows per channel as a real number."""
    if not all(verdict(found.spec(base, RealEnd(()))).ok for base in found.bases):
        return False
    value, nodes, steps = found.node.outputs[0], list[ir.Node](), list[B.Step]()
    while (node := only_user(value)) is not None and (step := _step(node, found.channels)) is not None:
        if _quantizes(node):
            break
        steps += step
        nodes.append(node)
        value = node.outputs[0]
    reader.take(*nodes)
    output = tensor_of(value, nodes[-1] if nodes else found.node)
    layer = B.BitReals(
        (found.x,), output, covers(found.node, *nodes), found.bases, found.window, found.bias, tuple(steps)
    )
    reader.emit(layer, value)
    return True


def _quantizes(node: ir.Node) -> bool:
    """Say whether the operators from here on become thresholds of floats, which is exact."""
    try:
        return bool(th.chain_from(node))
    except CannotFold:
        return False


def _step(node: ir.Node, channels: int) -> list[B.Step] | None:
    """Return an operator per channel as operations that round as it does; None for any other."""
    if node.op_type == "Identity":
        return []
    limits = clip_of(node)
    if limits is not None:
        return [B.Step(RealOp("clip", *limits))]
    index = (
        th.data_index(node) if node.op_type in ("Add", "BatchNormalization", "Div", "Mul", "Sub") else None
    )
    if index is None:
        return None
    arrays = [constant_expression(value) for i, value in enumerate(node.inputs) if i != index]
    spread = [_per_channel(array, node, channels) for array in arrays]
    constants = [array for array in spread if array is not None]
    return _steps_of(node, constants) if len(constants) == len(spread) else None


def _steps_of(node: ir.Node, constants: Sequence[np.ndarray]) -> list[B.Step]:
    if node.op_type == "BatchNormalization":
        gamma, beta, mean, variance = (array.astype(np.float64) for array in constants)
        scale = gamma / np.sqrt(variance + float_attribute(node, "epsilon", 1e-5))
        return [B.Step(RealOp("affine64"), (scale, beta - mean * scale))]
    (array,) = constants
    if node.op_type == "Sub":
        return [B.Step(RealOp("add"), (-array,))]
    return [B.Step(RealOp({"Add": "add", "Div": "div", "Mul": "mul"}[node.op_type]), (array,))]  # type: ignore[arg-type]


def _per_channel(array: np.ndarray | None, node: ir.Node, channels: int) -> np.ndarray | None:
    shape = shape_of(node.outputs[0], node)
    if array is None or len(shape) not in (2, 4):
        return None
    if array.size == 1:
        return np.full(channels, array.reshape(()), array.dtype)
    if node.op_type == "BatchNormalization":
        return array
    full = (1,) * (len(shape) - array.ndim) + array.shape
    fits = len(full) == len(shape) and array.size == channels == full[1]
    return array.reshape(-1) if fits else None
