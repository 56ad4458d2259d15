"""The one reader of quantization: what spec, scale and zero point a value was made with.

`real = (q - zero_point) * scale` with integer `q` in [qmin, qmax]. The operations in the graph carry it
(DequantizeLinear, QONNX Quant, BipolarQuant, Trunc); `view` reads them, nothing else should.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..ops.common import FINN_DOMAIN, QONNX_DOMAIN, channel_axis, int_attribute, string_attribute
from ..ops.constants import constant_expression
from ..ops.quant import ROUNDINGS

Array = npt.NDArray[np.number]
Integers = npt.NDArray[np.integer]

__all__ = [
    "FINN_DOMAIN",
    "QONNX_DOMAIN",
    "QuantParams",
    "QuantSpec",
    "Rounding",
    "Scheme",
    "broadcast_params",
    "container",
    "dequantize_array",
    "pack_bits",
    "quantize_array",
    "unpack_bits",
    "view",
]


class Scheme(enum.StrEnum):
    """How integers stand for reals. POWER_OF_TWO is symmetric with scales 2^k; BIPOLAR is {-1, +1}."""

    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"
    POWER_OF_TWO = "power-of-two"
    BIPOLAR = "bipolar"


class Rounding(enum.StrEnum):
    """Rounding by its QONNX name; ROUND is half to even, HALF_UP and HALF_DOWN are by magnitude."""

    ROUND = "ROUND"
    FLOOR = "FLOOR"
    CEIL = "CEIL"
    UP = "UP"
    DOWN = "DOWN"
    HALF_UP = "HALF_UP"
    HALF_DOWN = "HALF_DOWN"


_SAME_ROUNDING = {"HALF_EVEN": "ROUND", "ROUND_TO_ZERO": "DOWN"}


@dataclass(frozen=True)
class QuantSpec:
    """The decision: an integer format and how values get into it.

    Attributes:
        bits: 1 to 32.
        signed: two's complement, else from 0 on.
        narrow: leave out the lowest value if signed, the highest if unsigned.
        scheme: see `Scheme`.
        axis: one scale per index of this axis; None: one for the tensor.
        block_size: one scale per so many consecutive indices of `axis`; 0: no blocks.
        rounding: see `Rounding`.
        overflow: what happens outside [qmin, qmax].
    """

    bits: int
    signed: bool = True
    narrow: bool = False
    scheme: Scheme = Scheme.SYMMETRIC
    axis: int | None = None
    block_size: int = 0
    rounding: Rounding = Rounding.ROUND
    overflow: Literal["saturate", "wrap"] = "saturate"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 32:
            raise ValueError(f"bits must be 1..32, got {self.bits}")
        if self.block_size < 0 or (self.block_size and self.axis is None):
            raise ValueError(f"block_size {self.block_size} needs an axis and must not be negative")
        if self.scheme is Scheme.BIPOLAR and self.bits != 1:
            raise ValueError(f"bipolar has 1 bit, got {self.bits}")
        if self.qmin >= self.qmax:
            raise ValueError(f"{self.bits} bits, signed={self.signed}, narrow={self.narrow} leave no range")

    @property
    def qmin(self) -> int:
        """Lowest integer."""
        if self.scheme is Scheme.BIPOLAR:
            return -1
        return -(1 << (self.bits - 1)) + self.narrow if self.signed else 0

    @property
    def qmax(self) -> int:
        """Highest integer."""
        if self.scheme is Scheme.BIPOLAR:
            return 1
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1 - self.narrow


@dataclass(frozen=True, eq=False)
class QuantParams:
    """A spec with its numbers.

    Attributes:
        spec: the format.
        scale: float, shape () per tensor, [channels] per channel, the tensor's rank when in blocks.
        zero_point: same shape; int64, or float64 where QONNX gives one that is not a whole number.
    """

    spec: QuantSpec
    scale: Array
    zero_point: Array

    def __post_init__(self) -> None:
        if self.scale.shape != self.zero_point.shape:
            raise ValueError(
                f"scale {self.scale.shape} and zero point {self.zero_point.shape} differ in shape"
            )
        if not bool(np.all(self.scale > 0)) or not bool(np.all(np.isfinite(self.scale))):
            raise ValueError("scales must be positive and finite")


def container(spec: QuantSpec) -> np.dtype[np.integer]:
    """Return the smallest NumPy integer type that holds the range of `spec`."""
    for name in ("int8", "int16", "int32") if spec.qmin < 0 else ("uint8", "uint16", "uint32"):
        if spec.qmax <= np.iinfo(name).max:
            return np.dtype(name)
    raise AssertionError(f"no integer type for {spec}")


def broadcast_params(params: QuantParams, shape: Sequence[int]) -> tuple[Array, Array]:
    """Return (scale, zero_point) shaped so that they broadcast over a tensor of `shape`."""
    axis, block = params.spec.axis, params.spec.block_size
    if axis is None:
        return params.scale, params.zero_point
    if block:
        return _repeat(params.scale, axis, block, shape), _repeat(params.zero_point, axis, block, shape)
    spread = [1] * len(shape)
    spread[axis] = params.scale.size
    return params.scale.reshape(spread), params.zero_point.reshape(spread)


def _repeat(array: Array, axis: int, block: int, shape: Sequence[int]) -> Array:
    full = np.repeat(array, block, axis=axis)
    return np.take(full, np.arange(shape[axis]), axis=axis)


def quantize_array(x: Array, params: QuantParams) -> Integers:
    """Quantize reals to integers of type `container(spec)`, as QuantizeLinear does.

    `round(x / scale) + zero_point`, then saturate or wrap. (QONNX adds the zero point before it rounds; the
    two differ only within an ulp of ties and only where the zero point is not 0.) NaN becomes the zero point.
    """
    spec = params.spec
    scale, zero = broadcast_params(params, x.shape)
    if spec.scheme is Scheme.BIPOLAR:
        return np.where(x >= 0, 1, -1).astype(np.int8)
    ratio = np.nan_to_num(np.divide(x, scale), nan=0.0, posinf=np.inf, neginf=-np.inf)
    shifted = ROUNDINGS[spec.rounding.value](ratio).astype(np.float64) + zero
    if spec.overflow == "saturate":
        return np.asarray(np.clip(shifted, spec.qmin, spec.qmax), container(spec))
    span = spec.qmax - spec.qmin + 1
    wrapped = np.mod(shifted - spec.qmin, span) + spec.qmin
    return np.asarray(wrapped, container(spec))


def dequantize_array(q: Array, params: QuantParams) -> Array:
    """Return `(q - zero_point) * scale` in the dtype of the scale, one rounding per operation."""
    scale, zero = broadcast_params(params, q.shape)
    return np.asarray((q.astype(np.float64) - zero).astype(scale.dtype) * scale)


def pack_bits(q: Array, bits: int) -> npt.NDArray[np.uint8]:
    """Pack integers, flattened, `bits` each, lowest bits first; for 4 and 2 bits this is ONNX's packing."""
    planes = (q.reshape(-1, 1).astype(np.int64) >> np.arange(bits)) & 1
    return np.packbits(planes.astype(np.uint8).reshape(-1), bitorder="little")


def unpack_bits(
    packed: npt.NDArray[np.uint8], bits: int, signed: bool, shape: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Undo `pack_bits`; returns int64 of `shape`."""
    count = int(np.prod(shape))
    planes = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits).astype(np.int64)
    values = planes @ (np.int64(1) << np.arange(bits, dtype=np.int64))
    if signed:
        values = values - ((values >> (bits - 1)) << bits)
    return values.reshape(tuple(shape))


# --- reading the graph ---


def view(value: ir.Value | None) -> QuantParams | None:
    """Return how `value` was quantized, or None if it was not by constant parameters.

    Reads values made by DequantizeLinear (any integer type, per tensor, channel or block), Quant,
    BipolarQuant and the six-input Trunc. Scales and zero points may be small expressions of constants.
    """
    node = value.producer() if value is not None else None
    if node is None:
        return None
    read = _READERS.get((node.domain, node.op_type))
    return None if read is None else read(node)


_INTEGERS: Mapping[ir.DataType, tuple[int, bool]] = {
    ir.DataType.INT2: (2, True),
    ir.DataType.UINT2: (2, False),
    ir.DataType.INT4: (4, True),
    ir.DataType.UINT4: (4, False),
    ir.DataType.INT8: (8, True),
    ir.DataType.UINT8: (8, False),
    ir.DataType.INT16: (16, True),
    ir.DataType.UINT16: (16, False),
    ir.DataType.INT32: (32, True),
}


def _read_dequantize_linear(node: ir.Node) -> QuantParams | None:
    data = node.inputs[0]
    scale = constant_expression(node.inputs[1])
    has_zero = len(node.inputs) > 2 and node.inputs[2] is not None
    zero = constant_expression(node.inputs[2]) if has_zero else None
    if data is None or data.dtype is None or scale is None or (has_zero and zero is None):
        return None
    if data.dtype not in _INTEGERS:
        return None
    bits, signed = _INTEGERS[data.dtype]
    block = int_attribute(node, "block_size", 0)
    axis: int | None = int_attribute(node, "axis", 1)
    if scale.size == 1 and not block:
        scale, axis = scale.reshape(()), None
    elif axis is not None and axis < 0:
        if data.shape is None:
            return None
        axis += len(data.shape)
    zero = np.zeros(scale.shape, np.int64) if zero is None else zero.astype(np.int64).reshape(scale.shape)
    scheme = Scheme.ASYMMETRIC if zero.any() else Scheme.SYMMETRIC
    return _params(QuantSpec(bits, signed, False, scheme, axis, block), scale, zero)


def _read_quant(node: ir.Node) -> QuantParams | None:
    scale, zero, bits = (constant_expression(item) for item in node.inputs[1:4])
    if scale is None or zero is None or bits is None or bits.size != 1:
        return None
    rounding = string_attribute(node, "rounding_mode", "ROUND").upper()
    signed, narrow = bool(int_attribute(node, "signed", 1)), bool(int_attribute(node, "narrow", 1))
    return _qonnx(node, scale, zero, (int(bits.reshape(())), signed, narrow), rounding)


def _read_trunc(node: ir.Node) -> QuantParams | None:
    if len(node.inputs) != 6 or node.inputs[5] is None:
        return None
    scale, zero, _, out_scale, bits = (constant_expression(item) for item in node.inputs[1:6])
    if scale is None or zero is None or out_scale is None or bits is None or bits.size != 1:
        return None
    out_zero = zero / np.exp2(np.rint(np.log2(out_scale / scale)))
    rounding = string_attribute(node, "rounding_mode", "FLOOR").upper()
    signed, narrow = bool(int_attribute(node, "signed", 1)), bool(int_attribute(node, "narrow", 0))
    return _qonnx(node, out_scale, out_zero, (int(bits.reshape(())), signed, narrow), rounding)


def _read_bipolar(node: ir.Node) -> QuantParams | None:
    scale = constant_expression(node.inputs[1])
    return None if scale is None else _qonnx(node, scale, np.zeros((), np.float32), (1, True, False), "ROUND")


def _qonnx(
    node: ir.Node, scale: Array, zero: Array, how: tuple[int, bool, bool], rounding: str
) -> QuantParams | None:
    """Bring QONNX's broadcast scale and zero point to the shape that `QuantParams` has."""
    bits, signed, narrow = how
    x = node.inputs[0]
    shape = np.broadcast_shapes(scale.shape, zero.shape)
    scale, zero = np.broadcast_to(scale, shape), np.broadcast_to(zero, shape)
    if x is None or (scale.size != 1 and x.shape is None):
        return None
    try:
        axis = channel_axis(shape, len(x.shape)) if scale.size != 1 and x.shape is not None else None
        bipolar = bits == 1 and signed
        scheme = Scheme.ASYMMETRIC if zero.any() else Scheme.BIPOLAR if bipolar else Scheme.SYMMETRIC
        named = Rounding(_SAME_ROUNDING.get(rounding, rounding))
        spec = QuantSpec(bits, signed, narrow and not bipolar, scheme, axis, rounding=named)
    except ValueError:
        return None
    flat = () if axis is None else (-1,)
    whole = zero.astype(np.int64) if np.array_equal(zero, np.rint(zero)) else zero.astype(np.float64)
    return _params(spec, scale.reshape(flat), whole.reshape(flat))


def _params(spec: QuantSpec, scale: Array, zero: Array) -> QuantParams | None:
    positive = bool(np.all(scale > 0)) and bool(np.all(np.isfinite(scale)))
    return QuantParams(spec, scale, zero) if positive and scale.shape == zero.shape else None


_READERS: Mapping[tuple[str, str], Callable[[ir.Node], QuantParams | None]] = {
    ("", "DequantizeLinear"): _read_dequantize_linear,
    (QONNX_DOMAIN, "Quant"): _read_quant,
    (QONNX_DOMAIN, "BipolarQuant"): _read_bipolar,
    (QONNX_DOMAIN, "Trunc"): _read_trunc,
}
