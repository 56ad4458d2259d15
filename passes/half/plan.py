"""Decides which nodes compute in half floats; every other one has a reason to stay in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...compiler.exclusion import excluded_by
from ...compiler.ir.walk import Array, all_graphs, bodies, constant, is_constant, users, values_of
from .rules import (
    ANGULAR,
    BOUNDED,
    DEQUANTIZERS,
    FOLLOWERS,
    LAYERS,
    QUANTIZERS,
    SQUASHING,
    Form,
    form_of,
    reason_to_keep,
)
from .weights import SMALLEST, Constants

FLOAT = ir.DataType.FLOAT
# It gave bfloat16 to the operators that lacked it and changed nothing else.
OPSET_OF_BFLOAT16 = 22
CONSTANT = "it is constant"
FOLLOWS = "all that it reads is in float32"
# Values of bodies cannot be asked for while the float32 model runs on calibration data.
UNSEEN = "it is in a body, where nobody looks whether values stay below 65504"
# A matrix that is larger is a layer's, not a table of frequencies.
_SMALL = 4096


@dataclass
class Plan:
    """What becomes of every node.

    Attributes:
        kind: the half type.
        constants: of the model, rounded.
        forms: nodes that compute in half floats -> their operands' forms.
        kept: all other nodes that read or make float32 values -> why.
        scales: weights' DequantizeLinear nodes that get a half scale.
        fixed: values that do not depend on the model's inputs.
    """

    kind: ir.DataType
    constants: Constants
    forms: dict[ir.Node, Form] = field(default_factory=dict)
    kept: dict[ir.Node, str] = field(default_factory=dict)
    scales: set[ir.Node] = field(default_factory=set)
    fixed: set[ir.Value] = field(default_factory=set)

    def wants_half(self, node: ir.Node, index: int) -> bool:
        """Say whether a node reads its float input `index` as a half float."""
        form = self.forms.get(node)
        return form is not None and form.takes(index)

    def turned(self, model: ir.Model) -> list[ir.Value]:
        """Return the values of the main graph that are half floats somewhere and depend on the inputs."""
        values = [v for v in values_of(model.graph) if is_float(v) and v not in self.fixed]
        return [v for v in values if not is_constant(v) and (self.makes_half(v) or self._read_half(v))]

    def _read_half(self, value: ir.Value) -> bool:
        return any(self.wants_half(node, index) for node, index in value.uses())

    def makes_half(self, value: ir.Value) -> bool:
        """Say whether the maker of a value makes it a half float."""
        node = value.producer()
        if node is None or value.dtype != FLOAT:
            return False
        form = self.forms.get(node)
        if form is None:
            return node in self.scales
        return form.makes(list(node.outputs).index(value))


def is_float(value: ir.Value | None) -> bool:
    """Say whether a value is a float32 tensor."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == FLOAT


def make_plan(
    model: ir.Model, kind: ir.DataType, constants: Constants, keep: Sequence[str], exclude: Sequence[str]
) -> Plan:
    """Decide for every node of every graph.

    Args:
        model: not edited.
        kind: the half type.
        constants: of this model.
        keep: operators, values or nodes that stay in float32, by name or regular expression.
        exclude: the same of nodes alone.
    """
    plan = Plan(kind, constants)
    versions = dict(model.opset_imports)
    if kind == ir.DataType.BFLOAT16:
        versions[""] = max(versions[""], OPSET_OF_BFLOAT16)
    for graph in all_graphs(model):
        plan.fixed |= _fixed(graph, plan.fixed)
        nodes = [node for node in graph if any(is_float(v) for v in (*node.inputs, *node.outputs))]
        quantized = _quantized_regions(plan, nodes)
        angles = _angles(nodes)
        huge: set[ir.Value] = set()
        for node in nodes:
            form = form_of(node, versions, kind)
            why = _named(node, keep, exclude) or _keep(plan, node, form, huge)
            if why in (None, FOLLOWS) and kind == ir.DataType.FLOAT16 and graph is not model.graph:
                why = UNSEEN
            if node in quantized:
                why = "it belongs to quantized layers"
            elif why is None and node in angles:
                why = "angles are computed from it"
            if why is None:
                plan.forms[node] = form
            else:
                plan.kept[node] = why
    for node in [node for node in plan.kept if _feeds_half(plan, node)]:
        if _has_half_scale(plan, node):
            plan.scales.add(node)
            del plan.kept[node]
        else:
            plan.kept[node] = "its scale would lose digits"
    return plan


def _named(node: ir.Node, keep: Sequence[str], exclude: Sequence[str]) -> str | None:
    names = (node.op_type, str(node.name), *(str(v.name) for v in node.outputs))
    found = [p for n in names if (p := excluded_by(n, keep)) is not None]
    found += [p] if (p := excluded_by(str(node.name), exclude)) is not None else []
    return f"kept by {found[0]!r}" if found else None


def _keep(plan: Plan, node: ir.Node, form: Form, huge: set[ir.Value]) -> str | None:
    if (why := reason_to_keep(node, form)) is not None:
        return why
    if all(v in plan.fixed for v in node.outputs):
        return CONSTANT
    if (why := _bad_constant(plan, node, form, huge)) is not None:
        return why
    if any(v in huge for v in node.inputs if v is not None) and node.op_type in FOLLOWERS:
        if node.op_type not in SQUASHING:
            huge.update(node.outputs)
        return "it reads values beyond the range"
    if node.op_type in FOLLOWERS and _follows(plan, node):
        return FOLLOWS
    return None


def _bad_constant(plan: Plan, node: ir.Node, form: Form, huge: set[ir.Value]) -> str | None:
    """Say which constant of a node cannot be a half float."""
    for index, value in enumerate(node.inputs):
        if value is None or not is_float(value) or not is_constant(value) or not form.takes(index):
            continue
        rounded = plan.constants[value]
        if rounded.vanishes:
            return f"constant {value.name!r} would become 0"
        if rounded.overflowed and node.op_type not in BOUNDED:
            if node.op_type in FOLLOWERS:
                huge.update(node.outputs)
            return f"constant {value.name!r} reaches {rounded.peak:.4g}"
    return None


def _follows(plan: Plan, node: ir.Node) -> bool:
    """Say whether every float value that a node reads is computed by nodes kept in float32."""
    data = _data(plan, node)
    return bool(data) and all(v.producer() in plan.kept for v in data)


# --- quantized regions ------------------------------------------------------------------------------


def _fixed(graph: ir.Graph, known: set[ir.Value]) -> set[ir.Value]:
    """Return the values of a graph that are made of constants alone."""
    found: set[ir.Value] = set()
    for node in graph:
        inputs = [v for v in node.inputs if v is not None]
        constants = all(is_constant(v) or v in known or v in found for v in inputs)
        if constants and not bodies(node) and (inputs or node.op_type == "Constant"):
            found.update(node.outputs)
    return found


def _data(plan: Plan, node: ir.Node) -> list[ir.Value]:
    """Return the float values that a node computes from, constants and their dequantizations aside."""
    values = [v for v in node.inputs if v is not None and is_float(v)]
    return [v for v in values if not is_constant(v) and v not in plan.fixed]


def _dequantized(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type in DEQUANTIZERS


def _plain_weights(node: ir.Node) -> bool:
    """Say whether a layer has float weights."""
    weight = node.inputs[1] if node.op_type in LAYERS and len(node.inputs) > 1 else None
    return weight is not None and is_constant(weight)


def _quantized_regions(plan: Plan, nodes: list[ir.Node]) -> set[ir.Node]:
    """Return the float nodes between dequantizers and quantizers, and quantized layers at the end."""
    behind: set[ir.Node] = set()
    for node in nodes:
        data = _data(plan, node)
        whole = data and not _plain_weights(node)
        if whole and all(_dequantized(v) or v.producer() in behind for v in data):
            behind.add(node)
    inside: set[ir.Node] = set()
    for node in reversed(nodes):
        readers = [u for v in node.outputs for u in users(v)]
        ends = any(v.is_graph_output() for v in node.outputs)
        closed = bool(readers) and not ends and all(u.op_type in QUANTIZERS or u in inside for u in readers)
        layer = node.op_type in LAYERS and all(_dequantized(v) for v in node.inputs[:2] if v is not None)
        if node in behind and (closed or layer):
            inside.add(node)
    return inside


# --- angles -----------------------------------------------------------------------------------------


def _angles(nodes: list[ir.Node]) -> set[ir.Node]:
    """Return the nodes whose results are read for angles alone: rotary positions and the like."""
    found: set[ir.Node] = set()
    for node in reversed(nodes):
        readers = [u for v in node.outputs for u in users(v)]
        small = node.op_type in FOLLOWERS or (node.op_type == "MatMul" and not _big(node))
        if readers and small and all(u.op_type in ANGULAR or u in found for u in readers):
            found.add(node)
    return found


def _big(node: ir.Node) -> bool:
    arrays: Iterator[Array | None] = (constant(v) for v in node.inputs)
    return any(array is not None and array.size > _SMALL for array in arrays)


# --- weights in few bits ----------------------------------------------------------------------------


def _feeds_half(plan: Plan, node: ir.Node) -> bool:
    """Say whether a node dequantizes weights for nodes that compute in half floats."""
    if node.op_type != "DequantizeLinear" or node.domain or node.outputs[0] not in plan.fixed:
        return False
    scale, result = node.inputs[1], node.outputs[0]
    if scale is None or not is_constant(scale) or not is_float(scale) or result.is_graph_output():
        return False
    return bool(result.uses()) and all(plan.wants_half(user, index) for user, index in result.uses())


def _has_half_scale(plan: Plan, node: ir.Node) -> bool:
    """Say whether the scale of dequantized weights keeps all digits as a half float."""
    assert node.inputs[1] is not None, "a dequantizer without a scale"
    rounded = plan.constants[node.inputs[1]]
    sizes = np.abs(rounded.array.astype(np.float32))
    return not rounded.overflowed and bool(np.all(sizes >= SMALLEST[plan.constants.dtype.name]))
