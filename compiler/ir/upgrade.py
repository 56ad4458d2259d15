"""Raising a model's opset to 21, in place, in every graph, without touching weights.

The table holds every operator of the default domain whose attributes, inputs or meaning changed between
opset 7 and 21 in a way that an older node shows; all other changes only widened types. onnx's own
converter is not used: it copies the weights, skips bodies, and keeps the new default coordinates of Resize.
Source: onnx/docs/Changelog.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..errors import ModelError
from .walk import (
    Array,
    Names,
    add_initializer,
    all_graphs,
    constant,
    int_attribute,
    node_label,
    replace_value,
    static_shape,
)

TARGET_OPSET = 21

Rule = Callable[["Upgrade", ir.Node], None]


@dataclass(frozen=True)
class Upgrade:
    """What the rules share: free names and a few edits."""

    names: Names

    def constant(self, node: ir.Node, key: str, array: Array) -> ir.Value:
        """Add a constant named after the node's first output."""
        assert node.graph is not None, f"{node_label(node)} is in no graph"
        return add_initializer(node.graph, self.names.fresh(f"{node.outputs[0].name}_{key}"), array)

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Set input `index`, leaving inputs before it empty where there were none."""
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)

    def attribute_to_input(self, node: ir.Node, key: str, index: int) -> None:
        """Turn an INT or INTS attribute into a 1-D int64 input; nothing where the attribute is absent."""
        attr = node.attributes.pop(key, None)
        if attr is not None:
            array = np.atleast_1d(np.asarray(attr.value, dtype=np.int64))
            self.set_input(node, index, self.constant(node, key, array))

    def insert(
        self, before: ir.Node, op: str, inputs: list[ir.Value], attributes: Mapping[str, int] | None = None
    ) -> ir.Value:
        """Insert a node in front of `before` and return its output."""
        base = f"{before.outputs[0].name}_{op.lower()}"
        node = ir.node(op, inputs, attributes, name=self.names.fresh(base))
        node.outputs[0].name = self.names.fresh(base)
        assert before.graph is not None
        before.graph.insert_before(before, node)
        return node.outputs[0]


def upgrade_opset(model: ir.Model, notes: list[str]) -> None:
    """Rewrite the nodes of a model of opset 7-20 to opset 21; ranks should be inferred before.

    Raises:
        ModelError: `opset-upgrade`, for the few old forms that have no equal in opset 21.
    """
    source = model.opset_imports[""]
    upgrade = Upgrade(Names(model))
    for graph in all_graphs(model):
        for node in list(graph):
            if not node.domain:
                _apply(upgrade, node, source)
        graph.opset_imports.update({"": TARGET_OPSET} if "" in graph.opset_imports else {})
    model.opset_imports[""] = TARGET_OPSET
    notes.append(f"opset {source} raised to {TARGET_OPSET}")


def _apply(upgrade: Upgrade, node: ir.Node, source: int) -> None:
    node.version = None
    for version in _VERSIONS:
        rule = RULES.get((node.op_type, version))
        if version > source and rule is not None:
            rule(upgrade, node)


def _refuse(node: ir.Node, why: str) -> ModelError:
    return ModelError("opset-upgrade", f"{node_label(node)} {why}", "export the model with opset 17 or newer")


# --- rules ------------------------------------------------------------------------------------------


def _axes_to_input(upgrade: Upgrade, node: ir.Node) -> None:
    upgrade.attribute_to_input(node, "axes", 1)


def _split_to_input(upgrade: Upgrade, node: ir.Node) -> None:
    upgrade.attribute_to_input(node, "split", 1)


def _count_outputs(upgrade: Upgrade, node: ir.Node) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes.add(ir.AttrInt64("num_outputs", len(node.outputs)))


def _bounds_to_inputs(upgrade: Upgrade, node: ir.Node) -> None:
    for index, key in ((1, "min"), (2, "max")):
        attr = node.attributes.pop(key, None)
        if attr is not None:
            upgrade.set_input(node, index, _scalar(upgrade, node, key, attr.as_float()))


def _scalar(upgrade: Upgrade, node: ir.Node, key: str, value: float) -> ir.Value:
    source = node.inputs[0]
    dtype = ir.DataType.FLOAT if source is None or source.dtype is None else source.dtype
    return upgrade.constant(node, key, np.asarray(value, dtype=dtype.numpy()))


def _pads_to_inputs(upgrade: Upgrade, node: ir.Node) -> None:
    upgrade.attribute_to_input(node, "pads", 1)
    value = node.attributes.pop("value", None)
    if value is not None:
        upgrade.set_input(node, 2, _scalar(upgrade, node, "value", value.as_float()))


def _slice_to_inputs(upgrade: Upgrade, node: ir.Node) -> None:
    for index, key in ((1, "starts"), (2, "ends"), (3, "axes")):
        upgrade.attribute_to_input(node, key, index)


def _k_to_input(upgrade: Upgrade, node: ir.Node) -> None:
    upgrade.attribute_to_input(node, "k", 1)


def _rename_scatter(upgrade: Upgrade, node: ir.Node) -> None:
    node.op_type = "ScatterElements"


def _drop_ratio(upgrade: Upgrade, node: ir.Node) -> None:
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        raise _refuse(node, "has its mask read, whose type changed in opset 12")
    node.attributes.pop("ratio", None)


def _drop_spatial(upgrade: Upgrade, node: ir.Node) -> None:
    spatial = node.attributes.pop("spatial", None)
    if spatial is not None and spatial.as_int() != 1:
        raise _refuse(node, "normalizes per element (spatial=0), which ONNX dropped in opset 9")


def _inference_outputs(upgrade: Upgrade, node: ir.Node) -> None:
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise _refuse(node, "has its training outputs read")
    if len(node.outputs) > 1:
        node.resize_outputs(1)


def _last_axis_softmax(upgrade: Upgrade, node: ir.Node) -> None:
    """Before opset 13, Softmax-likes flattened the input to 2-D at `axis` (default 1)."""
    source = node.inputs[0]
    assert source is not None, f"{node_label(node)} without input"
    axis = int_attribute(node, "axis", 1)
    rank = None if source.shape is None else len(source.shape)
    if rank is not None and axis % max(rank, 1) == rank - 1:
        node.attributes.add(ir.AttrInt64("axis", -1))
        return
    shape = upgrade.insert(node, "Shape", [source])
    flat = upgrade.insert(node, "Flatten", [source], {"axis": axis})
    node.replace_input_with(0, flat)
    node.attributes.add(ir.AttrInt64("axis", -1))
    _reshape_after(upgrade, node, shape)


def _reshape_after(upgrade: Upgrade, node: ir.Node, shape: ir.Value) -> None:
    old = node.outputs[0]
    after = ir.node("Reshape", [old, shape], name=upgrade.names.fresh(f"{node.name}_reshape"))
    new = after.outputs[0]
    new.type, new.shape = old.type, None if old.shape is None else old.shape.copy()
    assert node.graph is not None
    node.graph.insert_after(node, after)
    replace_value(old, new)


def _scales_to_input(upgrade: Upgrade, node: ir.Node) -> None:
    scales = node.attributes.pop("scales", None)
    if scales is None:
        raise _refuse(node, "has no scales")
    array = np.asarray(scales.as_floats(), dtype=np.float32)
    upgrade.set_input(node, 1, upgrade.constant(node, "scales", array))


def _upsample_is_resize(upgrade: Upgrade, node: ir.Node) -> None:
    """Upsample only stretches, so its samples lie asymmetric and nearest downwards whatever the scales."""
    node.op_type = "Resize"
    if node.attributes.get_string("mode") == "bilinear":
        node.attributes.add(ir.AttrString("mode", "linear"))
    _set_asymmetric(node, "floor")


def _set_asymmetric(node: ir.Node, nearest: str) -> None:
    """Give a Resize of opset 10 (inputs X, scales) the inputs and coordinates of opset 13."""
    scales = node.inputs[1]
    node.resize_inputs(3)
    node.replace_input_with(1, None)
    node.replace_input_with(2, scales)
    node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
    node.attributes.add(ir.AttrString("nearest_mode", nearest))


def _asymmetric_resize(upgrade: Upgrade, node: ir.Node) -> None:
    """Opset 10 did not say how it samples; onnxruntime rounds down when stretching, up when shrinking."""
    if "coordinate_transformation_mode" in node.attributes:
        return
    array = constant(node.inputs[1])
    factors = [] if array is None else [float(factor) for factor in array.reshape(-1)]
    shrinks = any(factor < 1 for factor in factors)
    if not factors or (shrinks and any(factor > 1 for factor in factors)):
        raise _refuse(node, "has scales that are not constant, or shrink one axis and stretch another")
    _set_asymmetric(node, "ceil" if shrinks else "floor")


def _modern_resize(upgrade: Upgrade, node: ir.Node) -> None:
    """Opset 13 made roi and scales optional and dropped `tf_half_pixel_for_nn`."""
    for index in (1, 2):
        if len(node.inputs) > index:
            array = constant(node.inputs[index])
            if array is not None and array.size == 0:
                node.replace_input_with(index, None)
    if node.attributes.get_string("coordinate_transformation_mode") != "tf_half_pixel_for_nn":
        return
    if node.attributes.get_string("nearest_mode", "round_prefer_floor") != "floor":
        raise _refuse(node, "has tf_half_pixel_for_nn coordinates without nearest_mode floor")
    # floor((i + 0.5) / s) is (i + 0.5) / s - 0.5 rounded, halves up.
    node.attributes.add(ir.AttrString("coordinate_transformation_mode", "half_pixel"))
    node.attributes.add(ir.AttrString("nearest_mode", "round_prefer_ceil"))


def _output_half_pixel(upgrade: Upgrade, node: ir.Node) -> None:
    if "coordinate_transformation_mode" not in node.attributes:
        node.attributes.add(ir.AttrString("coordinate_transformation_mode", "output_half_pixel"))


def _linear_mode_names(upgrade: Upgrade, node: ir.Node) -> None:
    mode = node.attributes.get_string("mode", "bilinear")
    node.attributes.add(ir.AttrString("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)))


def _axis_to_input(upgrade: Upgrade, node: ir.Node) -> None:
    axis = node.attributes.pop("axis", None)
    value = np.asarray(1 if axis is None else axis.as_int(), dtype=np.int64)
    upgrade.set_input(node, 2, upgrade.constant(node, "axis", value))


def _per_channel_norm(upgrade: Upgrade, node: ir.Node) -> None:
    """Opset 21 takes scale and bias per channel, opset 18 took them per group."""
    shape, groups = static_shape(node.inputs[0]), int_attribute(node, "num_groups", 1)
    for index, key in ((1, "scale"), (2, "bias")):
        array = constant(node.inputs[index])
        if array is None or shape is None or len(shape) < 2:
            raise _refuse(node, "has a scale or bias that is not constant, or an unknown channel count")
        if array.size == groups != shape[1]:
            repeated = np.repeat(array, shape[1] // groups)
            node.replace_input_with(index, upgrade.constant(node, key, repeated))


def _batchless_scan(upgrade: Upgrade, node: ir.Node) -> None:
    raise _refuse(node, "is a Scan of opset 8, which had a batch axis")


_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSumSquare",
)  # fmt: skip

# (operator, opset that changed it) -> what an older node needs.
RULES: Mapping[tuple[str, int], Rule] = {
    ("BatchNormalization", 9): _drop_spatial,
    ("Scan", 9): _batchless_scan,
    ("Upsample", 9): _scales_to_input,
    ("Slice", 10): _slice_to_inputs,
    ("TopK", 10): _k_to_input,
    ("Upsample", 10): _upsample_is_resize,
    ("Clip", 11): _bounds_to_inputs,
    ("Pad", 11): _pads_to_inputs,
    ("Resize", 11): _asymmetric_resize,
    ("Scatter", 11): _rename_scatter,
    ("Dropout", 12): _drop_ratio,
    ("Hardmax", 13): _last_axis_softmax,
    ("LogSoftmax", 13): _last_axis_softmax,
    ("ReduceSum", 13): _axes_to_input,
    ("Resize", 13): _modern_resize,
    ("Softmax", 13): _last_axis_softmax,
    ("Split", 13): _split_to_input,
    ("Squeeze", 13): _axes_to_input,
    ("Unsqueeze", 13): _axes_to_input,
    ("BatchNormalization", 14): _inference_outputs,
    ("RoiAlign", 16): _output_half_pixel,
    ("Split", 18): _count_outputs,
    **{(name, 18): _axes_to_input for name in _REDUCTIONS},
    ("DFT", 20): _axis_to_input,
    ("GridSample", 20): _linear_mode_names,
    ("GroupNormalization", 21): _per_channel_norm,
}
_VERSIONS = tuple(sorted({version for _, version in RULES}))
