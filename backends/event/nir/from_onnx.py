"""From a Scan over time back to NIR: what `to_onnx` wrote, after passes have been over it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ....compiler.backend import Array
from ....compiler.errors import UnsupportedOp
from ....compiler.ir.walk import constant as stored
from ....compiler.ir.walk import int_attribute, ints_attribute, node_label, producer, static_shape
from ....compiler.ops import neurons
from ....compiler.ops.constants import constant_expression
from ....compiler.ops.neuron_op import OP, kind_of, parameters_of, step_of
from .records import Graph, Node, Value

Shape = tuple[int, ...]


def scan_of(model: ir.Model) -> ir.Node | None:
    """Return the Scan that is the whole model but for states at rest; None where there is none."""
    scans = [node for node in model.graph if node.op_type == "Scan"]
    if len(scans) != 1 or len(model.graph.inputs) != 1 or len(model.graph.outputs) != 1:
        return None
    scan = scans[0]
    whole = scan.inputs[-1] is model.graph.inputs[0] and scan.outputs[-1] is model.graph.outputs[0]
    return scan if whole and int_attribute(scan, "num_scan_inputs", 0) == 1 else None


def from_onnx(scan: ir.Node) -> Graph:
    """Return the NIR graph of a Scan.

    Raises:
        UnsupportedOp: `nir-export`, the first node that NIR cannot say.
    """
    body = scan.attributes["body"].as_graph()
    axes = [ints_attribute(scan, key, (0,)) for key in ("scan_input_axes", "scan_output_axes")]
    if axes != [(1,), (1,)] or len(body.outputs) != len(body.inputs):
        raise _refuse(scan, "does not go along axis 1 from one input to one output")
    for value in scan.inputs[:-1]:
        if not _is_rest(value):
            raise _refuse(scan, "starts from states that are not zero")
    return _Reader(scan, body).graph()


def _refuse(node: ir.Node, why: str) -> UnsupportedOp:
    return UnsupportedOp("nir-export", f"{node_label(node)} {why}, which NIR does not say", "use target cpu")


def constant(value: ir.Value | None) -> Array | None:
    """Return what a value is worth, also where a pass stored it in fewer bits behind a Cast."""
    cast = producer(value, "Cast")
    narrow = None if cast is None else stored(cast.inputs[0])
    if narrow is not None and value is not None and value.dtype is not None:
        return narrow.astype(value.dtype.numpy())
    found = stored(value)
    return constant_expression(value) if found is None else found


def _is_rest(value: ir.Value | None) -> bool:
    """Tell whether an initial state is all zeros."""
    made = producer(value, "ConstantOfShape")
    if made is not None:
        fill = made.attributes.get("value")
        return fill is None or not np.any(fill.as_tensor().numpy())
    array = constant(value)
    return array is not None and not np.any(array)


class _Reader:
    """Goes through the body of one Scan."""

    def __init__(self, scan: ir.Node, body: ir.Graph) -> None:
        self._scan, self._body = scan, body
        self._next = dict(zip(body.inputs[:-1], body.outputs[:-1], strict=True))
        self._source, self._sink = str(scan.inputs[-1] and scan.inputs[-1].name), str(scan.outputs[-1].name)
        self._steps: set[float] = set()

    def graph(self) -> Graph:
        """Return the network."""
        nodes: dict[str, Node | Graph] = {
            self._source: Node("Input", {"shape": np.array(self._shape(self._body.inputs[-1]))})
        }
        edges: list[tuple[str, str]] = []
        for node in self._body:
            if node.op_type in ("Identity", "Greater", "Constant") or _is_junction(node):
                continue
            name = str(node.name)
            nodes[name] = self._node(node)
            edges += [(start, name) for start in self._arriving(node, _entry(node))]
        result = self._body.outputs[-1]
        nodes[self._sink] = Node("Output", {"shape": np.array(self._shape(result))})
        edges += [(start, self._sink) for start in self._arriving(self._scan, result)]
        if len(self._steps) > 1:
            raise _refuse(self._scan, f"has steps of {sorted(self._steps)} s")
        return Graph(nodes, tuple(edges), {"dt": min(self._steps, default=1.0)})

    def _arriving(self, node: ir.Node, value: ir.Value | None) -> list[str]:
        found = self._sources(node, value, frozenset())
        if len(set(found)) != len(found):
            raise _refuse(node, "adds a value to itself")
        return found

    def _sources(self, node: ir.Node, value: ir.Value | None, seen: frozenset[ir.Value]) -> list[str]:
        """Return the names of the NIR nodes whose values add up to a value."""
        if value is None or value in seen:
            raise _refuse(node, "adds up over time without a neuron")
        if value is self._body.inputs[-1]:
            return [self._source]
        if value in self._next:
            return self._sources(node, self._next[value], seen | {value})
        made = value.producer()
        if made is None or made.graph is not self._body:
            array = constant(value)
            if array is None or np.any(array):
                raise _refuse(node, f"reads {value.name!r}")
            return []
        if made.op_type == "Identity" or _is_junction(made):
            return [name for x in made.inputs for name in self._sources(node, x, seen | {value})]
        if value is not made.outputs[0]:
            raise _refuse(node, f"reads the state of {made.name!r}")
        return [str(made.name)]

    def _shape(self, value: ir.Value | None) -> Shape:
        sizes = () if value is None or value.shape is None else tuple(value.shape)[1:]
        if not sizes or not all(isinstance(size, int) for size in sizes):
            raise _refuse(self._scan, f"has a value of shape {sizes}")
        return tuple(int(size) for size in sizes if isinstance(size, int))

    def _node(self, node: ir.Node) -> Node:
        """Return the NIR node that an ONNX node is."""
        if node.op_type == OP:
            return self._neuron(node)
        if node.op_type == "Gemm":
            return _gemm(node)
        if node.op_type == "Conv":
            return self._conv(node)
        if node.op_type == "AveragePool":
            return _average(node)
        if node.op_type in ("Reshape", "Flatten"):
            return self._flatten(node)
        if node.op_type == "Mul" and constant(node.inputs[1]) is not None:
            return Node("Scale", {"scale": self._spread(node, constant(node.inputs[1]))})
        above = producer(node.inputs[0], "Greater") if node.op_type == "Cast" else None
        limit = None if above is None else constant(above.inputs[1])
        if limit is None:
            raise _refuse(node, "is an operator")
        return Node("Threshold", {"threshold": self._spread(node, limit)})

    def _spread(self, node: ir.Node, array: Array | None) -> Array:
        assert array is not None, "the caller looked"
        return np.array(np.broadcast_to(array, self._shape(node.outputs[0])))

    def _neuron(self, node: ir.Node) -> Node:
        kind, given = kind_of(node), parameters_of(node)
        states = 1 + neurons.state_count(kind)
        for state, new in zip(node.inputs[1:states], node.outputs[1:states], strict=True):
            if state is None or state not in self._next or _named(self._next[state]) is not new:
                raise _refuse(node, "has states that are not its own")
        if kind == neurons.LAVA:
            raise _refuse(node, "decays in integers")
        self._steps.add(step_of(node))
        shape = self._shape(node.outputs[0])
        return Node(kind, {name: np.array(np.broadcast_to(array, shape)) for name, array in given.items()})

    def _conv(self, node: ir.Node) -> Node:
        weight, bias = constant(node.inputs[1]), _optional(node, 2)
        if weight is None or weight.ndim not in (3, 4) or int_attribute(node, "auto_pad", 0):
            raise _refuse(node, "is no convolution of one or two axes with constant weights")
        rank = weight.ndim - 2
        values = _window(node, rank)
        groups = int_attribute(node, "group", 1)
        if (
            bias is None
            and rank == 2
            and groups == len(weight)
            and weight.shape[1] == 1
            and np.all(weight == 1)
        ):
            del values["dilation"]
            return Node("SumPool2d", {"kernel_size": np.array(weight.shape[2:]), **values})
        shape = self._shape(_entry(node))[1:]
        values["input_shape"] = np.array(shape) if rank == 2 else int(shape[0])
        values["bias"] = np.zeros(len(weight), np.float32) if bias is None else bias
        return Node(f"Conv{rank}d", {"weight": weight, "groups": groups, **values})

    def _flatten(self, node: ir.Node) -> Node:
        before, after = self._shape(_entry(node)), self._shape(node.outputs[0])
        starts = [axis for axis in range(len(after)) if before[:axis] == after[:axis]]
        for start in reversed(starts):
            end = start + len(before) - len(after)
            if end < len(before) and before[end + 1 :] == after[start + 1 :]:
                values: dict[str, Value] = {
                    "start_dim": start,
                    "end_dim": end,
                    "input_type": np.array(before),
                }
                return Node("Flatten", values)
        raise _refuse(node, f"makes {after} of {before}")


def _is_junction(node: ir.Node) -> bool:
    return node.op_type == "Add" and all(constant(value) is None for value in node.inputs)


def _entry(node: ir.Node) -> ir.Value | None:
    """Return what comes into a node; of a Cast, what its comparison reads."""
    above = producer(node.inputs[0], "Greater") if node.op_type == "Cast" else None
    return node.inputs[0] if above is None else above.inputs[0]


def _named(value: ir.Value) -> ir.Value:
    """Go back over Identity."""
    while (made := producer(value, "Identity")) is not None and made.inputs[0] is not None:
        value = made.inputs[0]
    return value


def _optional(node: ir.Node, position: int) -> Array | None:
    return constant(node.inputs[position]) if position < len(node.inputs) else None


def _gemm(node: ir.Node) -> Node:
    weight, bias = constant(node.inputs[1]), _optional(node, 2)
    factors = [node.attributes[key].as_float() for key in ("alpha", "beta") if key in node.attributes]
    if weight is None or int_attribute(node, "transA", 0) or any(factor != 1 for factor in factors):
        raise _refuse(node, "is no product with constant weights")
    weight = np.ascontiguousarray(weight if int_attribute(node, "transB", 0) else weight.T)
    if bias is None:
        return Node("Linear", {"weight": weight})
    return Node("Affine", {"weight": weight, "bias": np.array(np.broadcast_to(bias, len(weight)))})


def _window(node: ir.Node, rank: int) -> dict[str, Value]:
    """Return stride, padding and dilation, as arrays of an image's or numbers of a sequence's."""
    pads = ints_attribute(node, "pads", (0,) * 2 * rank)
    before, after = pads[:rank], pads[rank:]
    kernel = static_shape(node.inputs[1])
    found: dict[str, tuple[int, ...]] = {
        "stride": ints_attribute(node, "strides", (1,) * rank),
        "padding": before,
        "dilation": ints_attribute(node, "dilations", (1,) * rank),
    }
    values: dict[str, Value] = {key: np.array(v) if rank == 2 else v[0] for key, v in found.items()}
    if before != after:
        reach = [d * (k - 1) for d, k in zip(found["dilation"], (kernel or ())[2:], strict=True)]
        if before != tuple(r // 2 for r in reach) or after != tuple(r - r // 2 for r in reach):
            raise _refuse(node, f"pads {before} before and {after} behind")
        values["padding"] = "same"
    return values


def _average(node: ir.Node) -> Node:
    kernel = ints_attribute(node, "kernel_shape")
    pads = ints_attribute(node, "pads", (0,) * 2 * len(kernel))
    strides, dilations = (ints_attribute(node, key, (1,) * len(kernel)) for key in ("strides", "dilations"))
    even = pads[: len(kernel)] == pads[len(kernel) :] and set(dilations) == {1}
    counted = int_attribute(node, "count_include_pad", 0) or not any(pads)
    if len(kernel) != 2 or not even or not counted or int_attribute(node, "ceil_mode", 0):
        raise _refuse(node, "is an average of another kind")
    return Node(
        "AvgPool2d",
        {"kernel_size": np.array(kernel), "stride": np.array(strides), "padding": np.array(pads[:2])},
    )
