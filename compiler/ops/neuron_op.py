"""`Neuron`: one step of spiking neurons, in the body of a Scan over time; arithmetic: `neurons.py`.

Attribute `kind` is one of `neurons.PARAMETERS`. Inputs: what arrives, the states of the step before, and as
constants the kind's parameters and the seconds per step. Outputs: what leaves, the new states.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

from ..errors import UnsupportedOp
from . import neurons
from .common import PARED_DOMAIN, Array, Expander, string_attribute
from .constants import constant_expression

OP = "Neuron"
_LAVA = neurons.PARAMETERS[neurons.LAVA]


def _infer(ctx: onnx.shape_inference.InferenceContext) -> None:
    for index in range(ctx.get_num_outputs()):
        if index < ctx.get_num_inputs() and ctx.has_input(index):
            ctx.set_output_type(index, ctx.get_input_type(index))


def _schema() -> OpSchema:
    parameter, option = OpSchema.FormalParameter, OpSchema.FormalParameterOption

    def several(name: str) -> OpSchema.FormalParameter:
        return parameter(name, "T", param_option=option.Variadic, is_homogeneous=False)

    tensors = ["tensor(float)", "tensor(double)", "tensor(int64)"]
    schema = OpSchema(
        OP,
        PARED_DOMAIN,
        1,
        "One step of spiking neurons: input, states and parameters to output and new states.",
        inputs=[parameter("x", "X"), several("rest")],
        outputs=[parameter("y", "X"), several("states")],
        type_constraints=[("X", ["tensor(float)"], "float32"), ("T", tensors, "states and parameters")],
        attributes=[OpSchema.Attribute("kind", OpSchema.AttrType.STRING, "kind of neuron", required=True)],
    )
    schema.set_type_and_shape_inference_function(_infer)
    return schema


SCHEMA = _schema()


def kind_of(node: ir.Node) -> str:
    """Return the kind; raises `UnsupportedOp`, `neuron-kind`, for an unknown one or other inputs."""
    kind = string_attribute(node, "kind", "")
    if kind not in neurons.PARAMETERS:
        raise _unfit(node, f"is of kind {kind!r}; known: {', '.join(neurons.PARAMETERS)}")
    inputs = 2 + neurons.state_count(kind) + len(neurons.PARAMETERS[kind])
    if len(node.inputs) != inputs or len(node.outputs) != 1 + neurons.state_count(kind):
        raise _unfit(node, f"of kind {kind} has {len(node.inputs)} inputs, it needs {inputs}")
    return kind


def parameters_of(node: ir.Node) -> dict[str, Array]:
    """Return the parameters by name; raises `UnsupportedOp` where one is not constant."""
    kind = kind_of(node)
    first = 1 + neurons.state_count(kind)
    pairs = zip(neurons.PARAMETERS[kind], node.inputs[first:-1], strict=True)
    return {name: _constant(node, name, value) for name, value in pairs}


def step_of(node: ir.Node) -> float:
    """Return seconds per step."""
    return float(_constant(node, "dt", node.inputs[-1]).reshape(-1)[0])


def _constant(node: ir.Node, name: str, value: ir.Value | None) -> Array:
    array = None if value is None else constant_expression(value)
    if array is None or not array.size:
        raise _unfit(node, f"has a parameter {name} that is not constant")
    return np.asarray(array)


def _unfit(node: ir.Node, why: str) -> UnsupportedOp:
    return UnsupportedOp("neuron-kind", f"{OP} {node.name!r} {why}", "export the network again")


def expand(node: ir.Node, out: Expander) -> list[ir.Value]:
    """Write a neuron in standard ops, bit for bit the same; raises `UnsupportedOp` as `parameters_of`."""
    kind, given = kind_of(node), parameters_of(node)
    x, *states = node.inputs[: 1 + neurons.state_count(kind)]
    assert x is not None, "x is no optional input"
    kept = [state for state in states if state is not None]
    writer = _Writer(node, out, x)
    if kind == neurons.LAVA:
        return writer.lava(given, *kept)
    if kind == neurons.DELAY:
        return writer.delay(neurons.delay_steps(given["delay"], step_of(node)), *kept)
    return writer.recurrence(neurons.recurrence(kind, given, step_of(node)), *kept)


class _Writer:
    """Adds the nodes of one neuron."""

    def __init__(self, node: ir.Node, out: Expander, x: ir.Value) -> None:
        self._out, self._x, self._shape = out, x, x.shape

    def recurrence(self, neuron: neurons.Recurrence, v: ir.Value, *i: ir.Value) -> list[ir.Value]:
        drive, current = self._x, []
        if neuron.keep_i is not None and neuron.gain_i is not None:
            kept = self._op("Mul", i[0], neuron.keep_i)
            drive = self._op("Add", kept, self._op("Mul", self._x, neuron.gain_i))
            current = [drive]
        total = self._op("Add", self._op("Mul", v, neuron.keep_v), self._op("Mul", drive, neuron.gain_v))
        total = self._op("Add", total, neuron.rest)
        if neuron.threshold is None or neuron.v_reset is None:
            return [self._op("Identity", total), total, *current]
        fired = self._op("Greater", total, neuron.threshold, kind=ir.DataType.BOOL)
        y = self._cast(fired, ir.DataType.FLOAT)
        return [y, self._op("Where", fired, neuron.v_reset, total), *current]

    def lava(self, given: neurons.Parameters, v: ir.Value, i: ir.Value) -> list[ir.Value]:
        i_decay, v_decay, mantissa = (np.asarray(given[n], np.int64) for n in _LAVA)
        limit = neurons.LIMIT
        whole = self._cast(self._op("Round", self._x), ir.DataType.INT64)
        arrived = self._whole("Add", self._whole("Mul", whole, neurons.WEIGHT_UNIT), limit)
        total = self._whole("Add", self._decayed(i, i_decay), arrived)
        current = self._whole("Sub", self._whole("Mod", total, 2 * limit), limit)
        raised = self._whole("Add", self._decayed(v, v_decay), current)
        held = self._whole("Min", self._whole("Max", raised, 1 - limit), limit - 1)
        level: Array = mantissa * neurons.WEIGHT_UNIT
        fired = self._op("GreaterOrEqual", held, level, kind=ir.DataType.BOOL)
        y = self._cast(fired, ir.DataType.FLOAT)
        zero: Array = np.zeros((), np.int64)
        return [y, self._op("Where", fired, zero, held, kind=ir.DataType.INT64), current]

    def delay(self, steps: neurons.Integers, queue: ir.Value) -> list[ir.Value]:
        """Take what each element's delay says by a mask over the queue, as a sum of one nonzero term."""
        rank = 0 if self._shape is None else len(self._shape)
        depth = queue.shape[0] if queue.shape is not None else None
        if not isinstance(depth, int):
            raise UnsupportedOp("neuron-kind", "a Delay needs a queue of fixed length", "export it again")
        newest = self._op("Unsqueeze", self._x, np.array([0]), shape=_one_more(1, self._shape))
        parts: list[ir.Value | Array] = [queue, np.array([0]), np.array([depth - 1]), np.array([0])]
        kept = self._out.op("Slice", parts, ir.DataType.FLOAT, shape=_one_more(depth - 1, self._shape))
        moved = self._out.op("Concat", [newest, kept], ir.DataType.FLOAT, {"axis": 0}, queue.shape)
        each = np.broadcast_to(steps, (1,) * (rank - steps.ndim) + steps.shape)
        mask: Array = (np.arange(depth).reshape(-1, *[1] * rank) == each[None]).astype(np.float32)
        taken = self._out.op("Mul", [moved, mask], ir.DataType.FLOAT, shape=queue.shape)
        y = self._out.op("ReduceSum", [taken, np.array([0])], ir.DataType.FLOAT, {"keepdims": 0}, self._shape)
        return [y, moved]

    def _decayed(self, value: ir.Value, decay: neurons.Integers) -> ir.Value:
        size = self._whole("Mul", self._whole("Abs", value), neurons.UNITY - decay)
        return self._whole("Mul", self._whole("Sign", value), self._whole("Div", size, neurons.UNITY))

    def _whole(self, op_type: str, *inputs: ir.Value | Array | int) -> ir.Value:
        values = [np.asarray(item, np.int64) if isinstance(item, int) else item for item in inputs]
        return self._op(op_type, *values, kind=ir.DataType.INT64)

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        return self._out.op("Cast", [value], to, {"to": int(to)}, self._shape)

    def _op(
        self,
        op_type: str,
        *inputs: ir.Value | Array,
        kind: ir.DataType = ir.DataType.FLOAT,
        shape: ir.Shape | None = None,
    ) -> ir.Value:
        return self._out.op(op_type, list(inputs), kind, shape=shape if shape is not None else self._shape)


def _one_more(size: int, shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([size, *shape])
