"""From NIR to ONNX: a Scan over time whose body is the network, with `pared.ops::Neuron` for its neurons.

Input [batch, time, ...], output [batch, time, ...]. States start at zero. Nodes keep NIR's names, so that
`from_onnx` finds them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ....compiler.backend import Array
from ....compiler.ops import neurons
from ....compiler.ops.common import PARED_DOMAIN
from .plan import Plan, Step
from .records import Node
from .sizes import pool_window, windows
from .stepper import parameters, queue_length

Attribute: TypeAlias = int | Sequence[int] | onnx.TensorProto

_OPSET, _IR = 21, 10
_FLOAT, _INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def to_onnx(plan: Plan, producer: str) -> onnx.ModelProto:
    """Return the model of a network."""
    return _Writer(plan).model(producer)


class _Writer:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._constants: list[onnx.TensorProto] = []
        self._before: list[onnx.NodeProto] = []
        self._body: list[onnx.NodeProto] = []
        self._states: list[tuple[str, str, str, int, tuple[int | str, ...]]] = []

    def model(self, producer: str) -> onnx.ModelProto:
        plan = self._plan
        for step in plan.steps:
            self._add(step)
        for name in dict.fromkeys(name for step in plan.steps for name in step.late):
            shape = next(step.shape_out for step in plan.steps if step.name == name)
            self._state(f"{name}_before", name, _FLOAT, ("batch", *shape))
        leaving = self._sum(f"{plan.sink}_step", [*plan.leaving])
        self._node("Identity", [leaving], f"{plan.sink}_now", f"{plan.sink}_now")
        scan = self._scan()
        graph = helper.make_graph(
            [*self._before, scan],
            "nir",
            [helper.make_tensor_value_info(plan.source, _FLOAT, ("batch", "time", *plan.shape_in))],
            [helper.make_tensor_value_info(plan.sink, _FLOAT, ("batch", "time", *plan.shape_out))],
            self._constants,
        )
        imports = [helper.make_opsetid("", _OPSET), helper.make_opsetid(PARED_DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=_IR, producer_name=producer)

    def _scan(self) -> onnx.NodeProto:
        plan, rests, ends = self._plan, [], []
        inputs, outputs = [], []
        for state, new, rest, kind, shape in self._states:
            inputs.append(helper.make_tensor_value_info(state, kind, shape))
            self._rest(rest, kind, shape)
            self._node("Identity", [new], f"{state}_next", f"{state}_next")
            outputs.append(helper.make_tensor_value_info(f"{state}_next", kind, shape))
            rests.append(rest)
            ends.append(f"{state}_end")
        now = f"{plan.source}_now"
        inputs.append(helper.make_tensor_value_info(now, _FLOAT, ("batch", *plan.shape_in)))
        outputs.append(helper.make_tensor_value_info(f"{plan.sink}_now", _FLOAT, ("batch", *plan.shape_out)))
        return helper.make_node(
            "Scan",
            [*rests, plan.source],
            [*ends, plan.sink],
            name="network",
            body=helper.make_graph(self._body, "step", inputs, outputs),
            num_scan_inputs=1,
            scan_input_axes=[1],
            scan_output_axes=[1],
        )

    def _rest(self, name: str, kind: int, shape: Sequence[int | str]) -> None:
        """Add zeros of a state's shape, as many samples as come in."""
        if not self._before:
            self._first("Shape", [self._plan.source], "batch_size", start=0, end=1)
        parts = [
            "batch_size" if size == "batch" else self._constant(f"{name}_{axis}", np.array([size], np.int64))
            for axis, size in enumerate(shape)
        ]
        zero = helper.make_tensor("", kind, [1], [0])
        self._first("Concat", parts, f"{name}_shape", axis=0)
        self._first("ConstantOfShape", [f"{name}_shape"], name, value=zero)

    def _first(self, op_type: str, inputs: list[str], output: str, **attributes: Attribute) -> None:
        """Add a node in front of the Scan."""
        self._before.append(_make(op_type, inputs, output, output, attributes))

    def _add(self, step: Step) -> None:
        sources = [self._now(name) for name in step.sources] + [f"{name}_before" for name in step.late]
        if not sources:
            x = self._constant(f"{step.name}_nothing", np.zeros((1, *step.shape_in), np.float32))
        else:
            x = self._sum(f"{step.name}_sum", sources, named=True)
        if step.node.kind in neurons.PARAMETERS:
            self._neuron(step, x)
        elif step.node.kind == "Threshold":
            limit = self._constant(
                f"{step.name}_threshold", np.asarray(step.node.array("threshold"), np.float32)
            )
            self._node("Greater", [x, limit], f"{step.name}_above", f"{step.name}_above")
            self._node("Cast", [f"{step.name}_above"], step.name, step.name, to=_FLOAT)
        else:
            self._plain(step, x)

    def _plain(self, step: Step, x: str) -> None:
        node, name = step.node, step.name
        if node.kind in ("Affine", "Linear"):
            terms = [x, self._weight(name, node, "weight")]
            terms += [self._weight(name, node, "bias")] if node.kind == "Affine" else []
            self._node("Gemm", terms, name, name, transB=1)
        elif node.kind == "Scale":
            self._node("Mul", [x, self._weight(name, node, "scale")], name, name)
        elif node.kind == "Flatten":
            self._flatten(step, x)
        elif node.kind in ("Conv1d", "Conv2d"):
            self._convolution(step, x)
        else:
            self._pool(step, x)

    def _flatten(self, step: Step, x: str) -> None:
        name = step.name
        if len(step.shape_out) == 1:
            self._node("Flatten", [x], name, name, axis=1)
            return
        # Inside the body, where shape inference sees it.
        sizes = numpy_helper.from_array(np.array([0, *step.shape_out], np.int64))
        self._node("Constant", [], f"{name}_shape", f"{name}_shape", value=sizes)
        self._node("Reshape", [x, f"{name}_shape"], name, name)

    def _convolution(self, step: Step, x: str) -> None:
        node, name = step.node, step.name
        strides, dilations, pads = windows(node, node.array("weight").ndim - 2, name)
        terms = [x, self._weight(name, node, "weight"), self._weight(name, node, "bias")]
        sides = [pad[0] for pad in pads] + [pad[1] for pad in pads]
        groups = int(node.array("groups"))
        self._node("Conv", terms, name, name, strides=strides, dilations=dilations, pads=sides, group=groups)

    def _pool(self, step: Step, x: str) -> None:
        """Add an average, or a sum as a convolution without bias, channel by channel."""
        kernel, strides, pads = pool_window(step.node, step.name)
        window: dict[str, Attribute] = {"strides": strides, "pads": [*pads, *pads]}
        if step.node.kind == "AvgPool2d":
            window |= {"kernel_shape": kernel, "count_include_pad": 1}
            self._node("AveragePool", [x], step.name, step.name, **window)
            return
        channels = step.shape_in[0]
        ones = self._constant(f"{step.name}_ones", np.ones((channels, 1, *kernel), np.float32))
        self._node("Conv", [x, ones], step.name, step.name, group=channels, **window)

    def _neuron(self, step: Step, x: str) -> None:
        node, name, dt = step.node, step.name, self._plan.dt
        shape: tuple[int | str, ...] = ("batch", *step.shape_out)
        kind = _INT64 if node.kind == neurons.LAVA else _FLOAT
        if node.kind == neurons.DELAY:
            shape = (queue_length(step, dt), *shape)
        words = ("v", "i")[: neurons.state_count(node.kind)]
        for word in words:
            self._state(f"{name}_{word}", f"{name}_{word}_new", kind, shape)
        given = [self._constant(f"{name}_{key}", array) for key, array in parameters(node).items()]
        self._body.append(
            helper.make_node(
                "Neuron",
                [x, *(f"{name}_{word}" for word in words), *given, self._time_step()],
                [name, *(f"{name}_{word}_new" for word in words)],
                name=name,
                domain=PARED_DOMAIN,
                kind=node.kind,
            )
        )

    def _time_step(self) -> str:
        if all(constant.name != "dt" for constant in self._constants):
            self._constant("dt", np.array(self._plan.dt, np.float64))
        return "dt"

    def _state(self, name: str, new: str, kind: int, shape: tuple[int | str, ...]) -> None:
        self._states.append((name, new, f"{name}_rest", kind, shape))

    def _now(self, name: str) -> str:
        return f"{name}_now" if name == self._plan.source else name

    def _sum(self, name: str, sources: list[str], named: bool = False) -> str:
        """Add up values; returns the sum's name."""
        names = sources if named else [self._now(source) for source in sources]
        total = names[0]
        for index, more in enumerate(names[1:]):
            self._node("Add", [total, more], f"{name}{index}", f"{name}{index}")
            total = f"{name}{index}"
        return total

    def _weight(self, name: str, node: Node, key: str) -> str:
        return self._constant(f"{name}_{key}", np.asarray(node.array(key), np.float32))

    def _constant(self, name: str, array: Array) -> str:
        plain = np.ascontiguousarray(array).reshape(np.shape(array))
        if plain.dtype.kind in "iu":
            plain = plain.astype(np.int64)
        elif plain.dtype not in (np.float32, np.float64):
            plain = plain.astype(np.float32)
        self._constants.append(numpy_helper.from_array(plain, name))
        return name

    def _node(self, op_type: str, inputs: list[str], output: str, name: str, **attributes: Attribute) -> None:
        self._body.append(_make(op_type, inputs, output, name, attributes))


def _make(
    op_type: str, inputs: list[str], output: str, name: str, attributes: Mapping[str, Attribute]
) -> onnx.NodeProto:
    node = helper.make_node(op_type, inputs, [output], name=name)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return node
