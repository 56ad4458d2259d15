"""Products of activations that become int8 in blocks at run time, and weights of few bits in such blocks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ....compiler.ir.quant import view
from ....compiler.ir.walk import attribute, int_attribute, producer
from ....compiler.ops import dynamic_blocks
from ....compiler.ops.common import PARED_DOMAIN
from .layers import Floats
from .layers_lowbit import LowbitBlocks
from .quantized import array_of
from .read_chain import End, emit
from .read_lowbit import weights_in_codes
from .read_products import biased
from .reader import Reader, Refused, Rule, covers, input_of, shape_of, tensor_of


def run_time_blocks(reader: Reader, node: ir.Node) -> None:
    """Leave DynamicBlockQuantize to the products behind it, which must be its only readers."""
    for value in node.outputs:
        for use in value.uses():
            if use.node.op_type != "DequantizeLinear" or use.node.domain:
                raise Refused(node, f"its result goes to {use.node.op_type}; the kernels are products")


def in_blocks(otherwise: Rule) -> Rule:
    """Return a rule for MatMul and Gemm that takes products of blocks, and leaves others to `otherwise`."""

    def rule(reader: Reader, node: ir.Node) -> None:
        dequantize = producer(node.inputs[0], "DequantizeLinear")
        q = None if dequantize is None else dequantize.inputs[0]
        maker = producer(q, dynamic_blocks.OP, PARED_DOMAIN)
        if maker is None:
            otherwise(reader, node)
        else:
            _product(reader, node, maker)

    return rule


def _product(reader: Reader, node: ir.Node, maker: ir.Node) -> None:
    weight, transposed = input_of(node, 1), bool(int_attribute(node, "transB", 0))
    factors = [attribute(node, name, 1.0) for name in ("alpha", "beta")]
    if factors != [1.0, 1.0] or int_attribute(node, "transA", 0):
        raise Refused(node, f"alpha, beta {factors} and transA; the kernels have 1, 1 and no transA")
    params = view(weight)
    if params is None or not reader.is_constant(weight) or len(shape_of(weight, node)) != 2:
        raise Refused(node, "blocks at run time need a constant quantized matrix on the right")
    found = weights_in_codes(weight, params, 0 if transposed else 1)
    if found is None or not isinstance(found[2], int) or found[5] > 4:
        raise Refused(node, "weights beside blocks at run time have up to 4 bits and one zero point")
    codes, scale, _, block, bipolar, bits = found
    zero = 1 if bipolar else found[2]
    if params.spec.block_size != int_attribute(maker, "block_size", dynamic_blocks.BLOCK):
        raise Refused(node, f"blocks of {block} weights beside other blocks of activations")
    whole = codes.astype(np.int8)
    last, bias = _bias(reader, node, codes.shape[0])
    # The kernel's one bit is -1 and +1; anything else has two or four.
    layer = LowbitBlocks(
        (reader.real(maker.inputs[0], node),), tensor_of(last.outputs[0], node),
        covers(maker, node) if last is node else covers(maker, node, last),
        2 * whole - 1 if bipolar else whole - np.int8(zero), scale, zero,
        1 if bipolar else 2 if bits < 4 else 4, block, bias,
    )  # fmt: skip
    reader.take(last)
    emit(reader, node, End(last.outputs[0], (), layer.output), layer)


def _bias(reader: Reader, node: ir.Node, columns: int) -> tuple[ir.Node, Floats | None]:
    """Return the node that gives the result, and the constant that is added to the product."""
    if len(node.inputs) < 3:
        last, value = biased(reader, node, columns) if node.op_type == "MatMul" else (node, None)
    else:
        last, value = node, node.inputs[2]
    if value is None:
        return last, None
    array = array_of(value)
    if array is None or array.dtype != np.float32 or array.size not in (1, *array.shape[-1:]):
        raise Refused(node, "the bias is no constant float32 per output")
    return last, np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (columns,)), np.float32)
