"""Constant weights as integers with one unit per output channel, whatever they are written as."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.errors import UnsupportedOp
from ...compiler.ir.quant import Scheme, broadcast_params, view
from ...compiler.ops.constants import constant_expression
from .graph import Floats, Ints
from .refuse import at
from .submodel import Array, Function, constant_value

_MOVES = ("Transpose", "Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze")
_MOST_BITS = 16


@dataclass(frozen=True, eq=False)
class Weights:
    """`real = unit * q`; q int64 as the layer reads it, unit [outputs], float32 values in float64."""

    q: Ints
    unit: Floats


def weights_of(node: ir.Node, index: int, axis: int) -> Weights:
    """Return the weights at input `index`, whose outputs lie along `axis`.

    Raises:
        UnsupportedOp: `fpga-weights`: not constant, not quantized, or scales along other axes.
    """
    value = node.inputs[index]
    real = None if value is None else constant_value(value)
    if value is None or real is None:
        raise UnsupportedOp(
            "fpga-weights", at(node, f"input {index} is not constant"), "export with frozen weights"
        )
    scale = _scales(value, real)
    if scale is None:
        raise UnsupportedOp(
            "fpga-weights",
            at(node, f"the weights {value.name!r} are floats without a quantizer"),
            "quantize the model first, with --precision or pared optimize",
        )
    steps = real.astype(np.float64) / scale
    q = np.rint(steps)
    if not np.allclose(steps, q, atol=1e-3) or float(np.abs(q).max(initial=0)) >= 2**_MOST_BITS:
        raise UnsupportedOp(
            "fpga-weights",
            at(node, f"{value.name!r} is no multiple of its scale in {_MOST_BITS} bits"),
            "use fewer bits",
        )
    return Weights(q.astype(np.int64), _per_output(node, scale, axis))


def _scales(value: ir.Value, real: Array) -> Floats | None:
    """Return scales of the shape of `real`, or None where nothing quantized it."""
    source = _quantized_source(value)
    if source is None:
        whole = np.array_equal(real, np.rint(real))
        return np.ones(real.shape) if whole else None
    params = view(source)
    assert params is not None, f"{source.name} lost its quantizer"
    shape = constant_value(source)
    assert shape is not None, f"{source.name} is not constant"
    scale = np.broadcast_to(broadcast_params(params, shape.shape)[0].astype(np.float32), shape.shape)
    if source is value:
        return np.asarray(scale, np.float64)
    return np.asarray(Function(source, value)(np.ascontiguousarray(scale)), np.float64)


def _quantized_source(value: ir.Value) -> ir.Value | None:
    current: ir.Value | None = value
    while current is not None:
        if view(current) is not None:
            return current
        node = current.producer()
        current = node.inputs[0] if node is not None and node.op_type in _MOVES else None
    return None


def _per_output(node: ir.Node, scale: Floats, axis: int) -> Floats:
    rows = np.moveaxis(scale, axis, 0).reshape(scale.shape[axis], -1)
    if rows.shape[1] and not np.all(rows == rows[:, :1]):
        raise UnsupportedOp(
            "fpga-weights",
            at(node, "weight scales differ inside an output channel (blocks, or scales along an input axis)"),
            "quantize per tensor or per output channel",
        )
    return np.ascontiguousarray(rows[:, 0])


@dataclass(frozen=True, eq=False)
class Grid:
    """What a quantizer gives: q in [low, high] in steps of `step`, `real = unit * (q - zero)`."""

    low: int
    high: int
    step: int
    unit: float
    zero: int

    def codes(self, real: Array) -> Ints:
        """Return the integers behind quantized reals; integers stay."""
        if is_whole(real.dtype):
            return real.astype(np.int64)
        return np.rint(real.astype(np.float64) / self.unit).astype(np.int64) + self.zero


def is_whole(dtype: np.dtype[np.generic]) -> bool:
    """Say whether a type holds integers, of four bits too, which NumPy does not count as such."""
    return dtype.kind in "iu" or dtype.name.removeprefix("u").startswith("int")


def grid_of(node: ir.Node) -> Grid | None:
    """Return the grid of an activation quantizer, None where `node` is none.

    Raises:
        UnsupportedOp: `fpga-quantizer`: per channel, in blocks, computed scales, over 16 bits, odd zero
            points.
    """
    if node.domain == "" and node.op_type == "QuantizeLinear":
        return _linear(node)
    if node.op_type == "MultiThreshold":
        return _multithreshold(node)
    if node.op_type not in ("Quant", "BipolarQuant", "Trunc"):
        return None
    params = view(node.outputs[0])
    if params is None or params.scale.size != 1 or params.zero_point.dtype.kind == "f":
        raise _odd(node, "needs one constant scale and a whole zero point")
    if params.spec.bits > _MOST_BITS:
        raise _odd(node, f"has {params.spec.bits} bits, at most {_MOST_BITS} are taken")
    spec = params.spec
    step = 2 if spec.scheme is Scheme.BIPOLAR else 1
    return Grid(spec.qmin, spec.qmax, step, _number(params.scale), int(params.zero_point.reshape(())))


def _odd(node: ir.Node, finding: str) -> Exception:
    return UnsupportedOp(
        "fpga-quantizer", at(node, finding), "quantize activations per tensor with constant parameters"
    )


def _number(array: npt.NDArray[np.generic]) -> float:
    return float(np.float32(array.reshape(())))


def _linear(node: ir.Node) -> Grid:
    scale = constant_expression(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = np.zeros((), np.int64) if given is None else constant_expression(given)
    dtype = node.outputs[0].dtype
    if scale is None or zero is None or scale.size != 1 or dtype is None or not dtype.is_integer():
        raise _odd(node, "needs one constant scale and zero point and an integer type")
    if dtype.bitwidth > _MOST_BITS:
        raise _odd(node, f"has {dtype.bitwidth} bits, at most {_MOST_BITS} are taken")
    signed = dtype.is_signed()
    low = -(1 << (dtype.bitwidth - 1)) if signed else 0
    return Grid(low, low + (1 << dtype.bitwidth) - 1, 1, _number(scale), int(zero.reshape(())))


def _multithreshold(node: ir.Node) -> Grid:
    levels = constant_expression(node.inputs[1])
    scale, bias = (
        float(node.attributes[key].as_float()) if key in node.attributes else default
        for key, default in (("out_scale", 1.0), ("out_bias", 0.0))
    )
    if levels is None or levels.shape[-1] >= 1 << _MOST_BITS or scale <= 0:
        raise _odd(node, "needs constant thresholds, fewer than 65536, and a positive out_scale")
    start = bias / scale
    if start == round(start):
        return Grid(round(start), round(start) + levels.shape[-1], 1, scale, 0)
    if 2 * start == round(2 * start):
        return Grid(round(2 * start), round(2 * start) + 2 * levels.shape[-1], 2, scale / 2, 0)
    raise _odd(node, f"out_bias {bias} is no multiple of half of out_scale {scale}")
