"""Quantizers behind integer wires: their float arithmetic becomes `graph.Requant`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.errors import UnsupportedOp
from ...compiler.ops.common import float_attribute
from ...compiler.ops.constants import constant_expression
from .graph import Floats, Ints, Requant, Wire
from .refuse import at
from .steps import Codes, Steps, find_steps
from .submodel import Function
from .weights import Grid

# Operators that keep the order of values, also when rounded; constants in them may change the direction.
MONOTONE = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "BatchNormalization", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh",
        "HardSigmoid", "Identity", "Neg", "Unsqueeze", "Squeeze", "Cast", "Elu", "Selu", "Softplus",
        "Softsign", "Sign", "Max", "Min", "Floor", "Ceil", "Round", "DequantizeLinear", "ThresholdedRelu",
        "Celu", "Erf", "Exp", "Sqrt", "Log", "Atan",
    }
)  # fmt: skip
# Falling where x is negative unless alpha is at least 0; with the default alpha of each.
_ALPHAS = {"LeakyRelu": 0.01, "Elu": 1.0, "ThresholdedRelu": 1.0, "Selu": 1.67}
_MOST_THRESHOLDS = 1 << 22
_TRIED = 4096
_INT32 = 2**31 - 1


def is_monotone(node: ir.Node, value: ir.Value) -> bool:
    """Say whether a node keeps or turns round the order of `value`, whatever constants stand beside it."""
    if node.domain or node.op_type not in MONOTONE:
        return False
    if node.op_type == "Cast":  # integers wrap, and bool forgets the sign
        to = node.outputs[0].dtype
        return to is not None and to.is_floating_point()
    if node.op_type == "Div":
        return node.inputs[0] is value
    lowest = min(float_attribute(node, "alpha", _ALPHAS.get(node.op_type, 0.0)), 0.0)
    gamma = float_attribute(node, "gamma", 1.0) if node.op_type == "Selu" else 0.0
    return node.op_type not in _ALPHAS or (lowest >= 0 and gamma >= 0)


@dataclass(frozen=True, eq=False)
class Region:
    """What makes a layer an integer layer of docs/semantics.md: unit float32 [C], bias in steps."""

    unit: Floats
    bias: Ints


@dataclass(frozen=True, eq=False)
class Held:
    """A real tensor that is a wire's, at `source`, after monotone float operators up to `value`.

    Attributes:
        region: of the layer that made the wire, if it is one of integers.
        error: bound of the reference's rounding error in the real, per channel; None where it has none.
        reals: ascending integers with the real that each stands for, where that is no line.
    """

    wire: Wire
    source: ir.Value
    value: ir.Value
    region: Region | None = None
    error: Floats | None = None
    reals: tuple[Ints, npt.NDArray[np.float32]] | None = None


def requantize(node: ir.Node, held: Held, grid: Grid) -> Requant:
    """Return the layer that a quantizer is behind a wire.

    Raises:
        UnsupportedOp: too many thresholds, a chain that is no function per channel, an int32 overflow.
    """
    wire = held.wire
    channels = wire.shape[0] if wire.shape else 1
    levels = (grid.high - grid.low) // grid.step
    if levels * channels > _MOST_THRESHOLDS:
        raise UnsupportedOp(
            "fpga-thresholds",
            at(node, f"{channels} channels of {levels} levels"),
            "use fewer bits for activations",
        )
    codes = _integer_codes(node, held, grid) or _float_codes(node, held, grid)
    low, high = (_per_channel(bound, channels) for bound in (wire.low, wire.high))
    steps = find_steps(codes, low, high, grid.low, levels, grid.step)
    check_order(node, codes, steps, low, high)
    thresholds, sign, axis = _compressed(steps.thresholds, steps.sign)
    output = Wire(
        node.outputs[0].name or "",
        wire.shape,
        np.asarray(steps.start),
        np.asarray(steps.high),
        np.asarray(grid.unit),
        np.zeros(()),
        grid.zero,
        grid.step,
    )
    return Requant(
        node.name or "", (wire.name,), output, thresholds, sign, axis, steps.start, steps.unproven
    )  # fmt: skip


def check_order(node: ir.Node, codes: Codes, steps: Steps, low: Ints, high: Ints) -> None:
    """Compare thresholds with the arithmetic itself, at all accumulators where there are few of them."""
    count = min(int((high - low).max()) + 1, _TRIED)
    acc = low + np.rint(np.linspace(0, 1, count)[:, None] * (high - low)).astype(np.int64)
    reached = [np.searchsorted(row, s * a, side="right") for row, s, a in zip(
        steps.thresholds, steps.sign, acc.T, strict=True)]  # fmt: skip
    if not np.array_equal(steps.start + steps.step * np.stack(reached, axis=1), codes(acc, 0)):
        raise UnsupportedOp(
            "fpga-chain",
            at(node, "its result neither only rises nor only falls with the layer's sum"),
            "use monotone operators between layer and quantizer",
        )


def _compressed(thresholds: Ints, sign: Ints) -> tuple[Ints, Ints, int | None]:
    """Keep one row where all channels are alike."""
    alike = bool((thresholds == thresholds[:1]).all()) and bool((sign == sign[0]).all())
    return (thresholds[:1], sign[:1], None) if alike else (thresholds, sign, 0)


def _per_channel(array: Ints | Floats, channels: int) -> Ints:
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (channels,)))


def _integer_codes(node: ir.Node, held: Held, grid: Grid) -> Codes | None:
    """Return the integer semantics of a byte layer [-> Relu | Clip] -> QuantizeLinear; None elsewhere."""
    region, dtype = held.region, node.outputs[0].dtype
    if region is None or node.op_type != "QuantizeLinear" or dtype is None or dtype.bitwidth > 8:
        return None
    limits = _limits(held)
    if limits is None:
        return None
    wire, scale = held.wire, np.float32(grid.unit)
    bias = region.bias
    if (
        max(abs(int((wire.low.reshape(-1) + bias).min())), abs(int((wire.high.reshape(-1) + bias).max())))
        > _INT32
    ):
        raise UnsupportedOp(
            "fpga-overflow",
            at(node, "an accumulator can leave 32 bits"),
            "use fewer bits, or exclude the layer",
        )
    factor = region.unit.astype(np.float32) / scale
    low, high = np.float32(limits[0]) / scale, np.float32(limits[1]) / scale

    def codes(acc: Ints, nudge: int) -> Ints:
        steps = np.clip((acc + bias).astype(np.float32) * factor, low, high)
        return np.asarray(
            np.clip(np.rint(steps).astype(np.float64) + grid.zero, grid.low, grid.high), np.int64
        )

    return codes


def _limits(held: Held) -> tuple[float, float] | None:
    """Return what one Relu or Clip between layer and quantizer cuts at; None where more stands there."""
    if held.source is held.value:
        return -np.inf, np.inf
    node = held.value.producer()
    if node is None or node.op_type not in ("Relu", "Clip") or node.inputs[0] is not held.source:
        return None
    if node.op_type == "Relu":
        return 0.0, np.inf
    ends = [constant_expression(v) if v is not None else None for v in (*node.inputs[1:], None, None)[:2]]
    low, high = (
        e if a is None else float(a.reshape(())) for a, e in zip(ends, (-np.inf, np.inf), strict=True)
    )
    return low, high


def _float_codes(node: ir.Node, held: Held, grid: Grid) -> Codes:
    """Return the reference's float arithmetic from the accumulator to the code."""
    wire, function = held.wire, Function(held.source, node.outputs[0])
    rank = len(wire.shape)
    channels = wire.shape[0] if rank else 1
    unit, offset = wire.unit.reshape(-1), wire.offset.reshape(-1)
    error = np.zeros(1) if held.error is None else held.error.reshape(-1)

    def codes(acc: Ints, nudge: int) -> Ints:
        if held.reals is None:
            real = (unit * (acc - wire.zero) + offset + nudge * error).astype(np.float32)
        else:
            place = np.searchsorted(held.reals[0], acc, side="right") - 1
            real = held.reals[1][np.maximum(place, 0)]
        spread = real.reshape(*real.shape, *[1] * (rank - 1))
        got = function(
            np.ascontiguousarray(np.broadcast_to(spread, (acc.shape[0], channels, *[1] * (rank - 1))))
        )
        if got.size != acc.shape[0] * channels:
            raise UnsupportedOp(
                "fpga-chain",
                at(node, "its result depends on more than the channel"),
                "use one value per channel",
            )
        if got.dtype.kind == "f" and np.isnan(got).any():
            raise UnsupportedOp(
                "fpga-chain",
                at(node, "some sums of the layer give no number"),
                "cut them off with Relu or Clip",
            )
        return grid.codes(got).reshape(acc.shape[0], channels)

    return codes
