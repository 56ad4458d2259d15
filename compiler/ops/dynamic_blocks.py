"""`DynamicBlockQuantize`: int8 with one scale per block of the last axis, measured on the values themselves.

ONNX's DynamicQuantizeLinear has one scale per tensor. Per block of x, in float32, one rounding per operator:

    largest = max |x|, scale = largest / 127, q = round_half_even(x * (127 / largest))

with q = 0 where largest is below 2^-100 (127 / largest stays finite). x is finite. A `DequantizeLinear` with
the same `block_size` along the last axis gives the values back; see docs/semantics.md for products of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

from ..errors import UnsupportedOp
from .common import PARED_DOMAIN, Array, Expander, int_attribute

OP = "DynamicBlockQuantize"
LEVELS = 127
SMALLEST = 2.0**-100
BLOCK = 32

Floats = npt.NDArray[np.float32]


def _infer(ctx: onnx.shape_inference.InferenceContext) -> None:
    if not ctx.has_input(0):
        return
    given = ctx.get_input_type(0)
    size = int(getattr(ctx.get_attribute("block_size"), "i", BLOCK))  # None where it is left out
    for index, kind in enumerate((onnx.TensorProto.INT8, onnx.TensorProto.FLOAT)):
        made = onnx.TypeProto()
        made.CopyFrom(given)
        made.tensor_type.elem_type = kind
        dims = made.tensor_type.shape.dim
        if index and len(dims):
            last = dims[-1].dim_value
            dims[-1].Clear()
            if last:
                dims[-1].dim_value = -(-last // size)
        ctx.set_output_type(index, made)


def _schema() -> OpSchema:
    parameter = OpSchema.FormalParameter
    schema = OpSchema(
        OP,
        PARED_DOMAIN,
        1,
        "Quantizes to int8 in blocks of the last axis, each with the scale of its largest value.",
        inputs=[parameter("x", "T")],
        outputs=[parameter("q", "tensor(int8)"), parameter("scale", "T")],
        type_constraints=[("T", ["tensor(float)"], "float32")],
        attributes=[OpSchema.Attribute("block_size", onnx.helper.make_attribute("block_size", BLOCK))],
    )
    schema.set_type_and_shape_inference_function(_infer)
    return schema


SCHEMA = _schema()


def block_steps(x: Floats, block: int) -> tuple[Floats, Floats]:
    """Return x in steps of its blocks' scales, [..., blocks, block], not yet rounded, and the scales.

    Raises:
        ValueError: the last axis is no whole number of blocks.
    """
    split = x.reshape(*x.shape[:-1], -1, block)
    largest = np.abs(split).max(axis=-1)
    known = largest >= np.float32(SMALLEST)
    factor = np.divide(np.float32(LEVELS), largest, out=np.zeros_like(largest), where=known)
    return split * factor[..., None], largest / np.float32(LEVELS)


def dynamic_block_quantize(x: Floats, block: int) -> tuple[npt.NDArray[np.int8], Floats]:
    """Evaluate DynamicBlockQuantize."""
    steps, scale = block_steps(x, block)
    return np.rint(steps).astype(np.int8).reshape(x.shape), scale


def expand(node: ir.Node, out: Expander) -> list[ir.Value]:
    """Write DynamicBlockQuantize in standard ops, bit for bit the same.

    Raises:
        UnsupportedOp: the rank or the last size of the data is unknown.
    """
    x, block = node.inputs[0], int_attribute(node, "block_size", BLOCK)
    depth = x.shape[-1] if x is not None and x.shape is not None and len(x.shape) else None
    if x is None or x.shape is None or not isinstance(depth, int) or depth % block:
        raise UnsupportedOp(
            "block-shape",
            f"{OP} {node.name!r} needs a last axis of whole blocks of {block}, got {depth}",
            "give the model's input sizes with --shape",
        )
    outer = [0] * (len(x.shape) - 1)
    split = ir.Shape([*x.shape[:-1], depth // block, block])
    each = ir.Shape([*x.shape[:-1], depth // block, 1])
    real: Array = np.asarray(LEVELS, np.float32)
    kind = ir.DataType.FLOAT
    parts = out.op("Reshape", [x, np.array([*outer, depth // block, block])], kind, shape=split)
    sizes = out.op("Abs", [parts], kind, shape=split)
    largest = out.op("ReduceMax", [sizes, np.array([-1])], kind, {"keepdims": 1}, each)
    least: Array = np.asarray(SMALLEST, np.float32)
    known = out.op("GreaterOrEqual", [largest, least], ir.DataType.BOOL, shape=each)
    raw = out.op("Div", [real, largest], kind, shape=each)
    factor = out.op("Where", [known, raw, np.asarray(0, np.float32)], kind, shape=each)
    steps = out.op("Round", [out.op("Mul", [parts, factor], kind, shape=split)], kind, shape=split)
    whole = out.op("Cast", [steps], ir.DataType.INT8, {"to": int(ir.DataType.INT8)}, split)
    q = out.op("Reshape", [whole, np.array([*outer, depth])], ir.DataType.INT8, shape=x.shape)
    scale = out.op("Div", [largest, real], kind, shape=each)
    flat = out.op("Reshape", [scale, np.array([*outer, depth // block])], kind, shape=ir.Shape(split[:-1]))
    return [q, flat]
