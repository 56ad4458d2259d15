"""Rules for what works on values of one and two bits.

Each says False where it does not apply; the rule of `read.py` for real numbers is tried then, for which bits
are unpacked. A product of bits looks ahead: operators up to a quantizer become thresholds of its integer sum;
without one, operators per channel become operations on the sum, which is then a real number. A quantizer
anywhere else, with the monotone operators before it, becomes thresholds of float32 or uint8 values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import ints_attribute
from ....compiler.ops.constants import constant_expression
from . import layers as L
from . import layers_binary as B
from . import thresholds as th
from .bit_values import bits_of, codes_of_chain, smallest
from .layers import Codebook
from .read_popcount import product
from .reader import Reader, Refused, Rule, covers, quantized_tail, shape_of
from .thresholds import CannotFold
from .windows import window_of

NarrowRule = Callable[[Reader, ir.Node], bool]


def narrow_first(narrow: NarrowRule, rule: Rule) -> Rule:
    """Return the rule that tries bits before real numbers."""

    def both(reader: Reader, node: ir.Node) -> None:
        if not narrow(reader, node):
            rule(reader, node)

    return both


# --- quantizers -------------------------------------------------------------------------------------


def quantizer(reader: Reader, node: ir.Node) -> None:
    """Read a quantizer of one or two bits, or refuse it."""
    try:
        _binarize(reader, [node])
    except CannotFold as reason:
        raise Refused(node, str(reason)) from reason


def chain(reader: Reader, node: ir.Node) -> bool:
    """Read an operator and those behind it up to a quantizer of one or two bits."""
    try:
        _binarize(reader, th.chain_from(node))
    except CannotFold:
        return False
    return True


def _binarize(reader: Reader, nodes: Sequence[ir.Node]) -> None:
    index = th.data_index(nodes[0])
    if index is None:
        raise CannotFold("more than one input is not constant")
    value = nodes[0].inputs[index]
    shape = shape_of(nodes[-1].outputs[0], nodes[-1])
    if len(shape) not in (2, 4):
        raise CannotFold(f"a tensor of {len(shape)} axes; bits have 2 or 4")
    book = th.codebook_of(nodes[-1])
    x = reader.quantized(value)
    if x is not None and x.quant is not None:
        folded = _fold_bytes(nodes, book, x.quant, shape)
    else:
        x = reader.real(value, nodes[0])
        if x.shape != shape:
            raise CannotFold("shapes change before the quantizer")
        folded = th.fold_floats(lambda y: codes_of_chain(nodes, y, book, shape), shape[1], book.code)
    book, folded = smallest(book, folded)
    result = nodes[-1].outputs[0]
    reader.take(*nodes[1:])
    limits = B.Limits(folded.thresholds, folded.negate)
    reader.emit_bits(B.Binarize((x,), bits_of(result, nodes[-1], book), covers(*nodes), limits), result)


def _fold_bytes(
    nodes: Sequence[ir.Node], book: Codebook, quant: L.Quant, shape: tuple[int, ...]
) -> th.Folded:
    """Return thresholds of the byte behind a DequantizeLinear."""
    q = np.arange(256)
    reals = (q - quant.zero).astype(np.float32) * np.float32(quant.scale)
    return th.fold(codes_of_chain(nodes, reals, book, shape), q, book.code)


# --- everything else on bits ------------------------------------------------------------------------


def pool(reader: Reader, node: ir.Node) -> bool:
    """Read a maximum over windows of bits."""
    x = reader.bits.get(node.inputs[0]) if node.inputs[0] is not None else None
    if x is None or x.book is None or len(x.shape) != 4 or len(node.outputs) > 1:
        return False
    size = (x.shape[2], x.shape[3])
    window = L.Window(size)
    if node.op_type == "MaxPool":
        window = window_of(node, ints_attribute(node, "kernel_shape"), size)
    extents = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    if window.dilations != (1, 1) or any(pad >= extents[i % 2] for i, pad in enumerate(window.pads)):
        return False
    output = bits_of(node.outputs[0], node, x.book)
    reader.emit_bits(B.BitPool((x,), output, covers(node), window), node.outputs[0])
    return True


def pool_bytes(reader: Reader, node: ir.Node) -> bool:
    """Read a maximum of dequantized bytes whose result is not quantized again: bytes keep their order."""
    x = reader.quantized(node.inputs[0])
    if x is None or len(x.shape) != 4 or len(node.outputs) > 1 or quantized_tail(node.outputs[0]) is not None:
        return False
    value, size = node.outputs[0], (x.shape[2], x.shape[3])
    window = L.Window(size)
    if node.op_type == "MaxPool":
        window = window_of(node, ints_attribute(node, "kernel_shape"), size)
    if window.dilations != (1, 1):
        return False
    output = L.Tensor(f"{value.name}_bytes", shape_of(value, node), x.quant)
    reader.layers.append(L.Pool((x,), output, covers(node), "max", window))
    reader.bytes[value] = output
    return True


def max_pool(reader: Reader, node: ir.Node) -> bool:
    """Read a maximum of bits or bytes."""
    return pool(reader, node) or pool_bytes(reader, node)


def reshape(reader: Reader, node: ir.Node) -> bool:
    """Read a reshape of bits that keeps or flattens the image."""
    x = reader.bits.get(node.inputs[0]) if node.inputs[0] is not None else None
    if x is None or x.book is None:
        return False
    output = bits_of(node.outputs[0], node, x.book)
    n, c, h, w = x.image
    same = len(output.shape) in (2, 4) and output.image == x.image
    if not same and output.shape != (n, c * h * w):
        return False
    reader.emit_bits(L.Reshape((x,), output, covers(node)), node.outputs[0])
    return True


def scale(reader: Reader, node: ir.Node) -> bool:
    """Read a product of bits with one positive number: the bits stay, their scale changes."""
    index = th.data_index(node)
    value = None if index is None else node.inputs[index]
    x = reader.bits.get(value) if value is not None else None
    if index is None or x is None or x.book is None:
        return False
    factor = constant_expression(node.inputs[1 - index])
    if factor is None or factor.size != 1 or factor.dtype != np.float32 or not factor.reshape(()) > 0:
        return False
    wide = np.float32(x.book.scale) * factor.reshape(())
    reader.bits[node.outputs[0]] = replace(x, book=Codebook(x.book.code, float(wide)))
    return True


def mul(reader: Reader, node: ir.Node) -> bool:
    """Read a product with a constant: a scale of bits, or the start of a chain to a quantizer."""
    return scale(reader, node) or chain(reader, node)


NARROW: Mapping[str, NarrowRule] = {
    "Add": chain,
    "BatchNormalization": chain,
    "Conv": product,
    "Div": chain,
    "Dropout": reshape,
    "Flatten": reshape,
    "Gemm": product,
    "GlobalMaxPool": max_pool,
    "Identity": reshape,
    "MatMul": product,
    "MaxPool": max_pool,
    "Mul": mul,
    "Relu": chain,
    "Reshape": reshape,
    "Sign": chain,
    "Squeeze": reshape,
    "Sub": chain,
    "Unsqueeze": reshape,
}
OWN: Mapping[str, Rule] = {"BipolarQuant": quantizer, "MultiThreshold": quantizer, "Quant": quantizer}


def with_bits(rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """Return rules that read bits where there are any, and real numbers with `rules`."""
    both = {name: narrow_first(rule, rules.get(name, _refused)) for name, rule in NARROW.items()}
    return {**rules, **both, **OWN}


def _refused(reader: Reader, node: ir.Node) -> None:
    raise Refused(node, f"no rule for {node.op_type} of real numbers")
