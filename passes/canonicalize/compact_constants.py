"""Constants with little in them, stored as the few nodes that make them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.walk import (
    Array,
    add_initializer,
    constant,
    drop_unused_initializer,
    is_unused,
    replace_value,
    unique_name,
)
from ...compiler.pass_api import Context, Effect, PassStats
from .compact_forms import FORMS, Form, Recipe


@dataclass(frozen=True)
class CompactConstants:
    """Store constants with little in them as nodes over smaller constants, for the size of the file.

    Exact, bit for bit. Little is in what is uniform, triangular, repeated, a range of integers, of few
    different values, or of a wider type than needed. onnxruntime folds such nodes when it loads the
    model, so only the file gets smaller. Only the main graph is looked at. A constant is left as it is
    when less than `least_saving` bytes or a quarter of it would be saved; big ones are sampled first. Data of
    QONNX quantizers are left to the backends, which store integers.
    """

    name: ClassVar[str] = "compact-constants"
    effect: ClassVar[Effect] = Effect.EXACT
    least_saving: int = 64

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        stats = PassStats()
        saved = 0
        for value in list(model.graph.initializers.values()):
            ctx.check_cancelled()
            array = None if _is_bound(value) or _size(value) < self.least_saving else constant(value)
            form = None if array is None else best_form(array)
            if array is None or form is None:
                continue
            saving = array.nbytes - form.stored_bytes
            if saving >= max(self.least_saving, array.nbytes // 4):
                _store(model, value, form)
                stats.changed += 1
                saved += saving
        stats.details = {"estimated_bytes_saved": saved}
        return stats


def best_form(array: Array) -> Form | None:
    """Return the smallest of the forms that make exactly `array`, None when no form does."""
    if array.dtype.kind not in "biuf" or array.size < 2:
        return None
    found = [form for form in (rule(array) for rule in FORMS) if form is not None]
    return min(found, key=lambda form: form.stored_bytes, default=None)


def _is_bound(value: ir.Value) -> bool:
    return value.is_graph_input() or value.is_graph_output() or is_unused(value) or _is_coded(value)


def _is_coded(value: ir.Value) -> bool:
    """Say whether a value is the data of quantizers of its own: backends store integers in its place."""
    return all(
        use.node.op_type in ("Quant", "BipolarQuant") and use.node.domain and use.idx == 0
        for use in value.uses()
    )


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


@dataclass
class _Builder:
    """Makes the nodes of a form in the main graph, named after the constant they make."""

    model: ir.Model
    base: str
    nodes: list[ir.Node] = field(default_factory=list)

    def build(self, recipe: Recipe | Array) -> ir.Value:
        if isinstance(recipe, np.ndarray):
            name = unique_name(self.model, f"{self.base}_stored")
            return add_initializer(self.model.graph, name, np.array(recipe))
        assert isinstance(recipe, Recipe)
        inputs = [self.build(part) for part in recipe.inputs]
        name = unique_name(self.model, f"{self.base}_{recipe.op_type.lower()}")
        node = ir.node(recipe.op_type, inputs, dict(recipe.attributes), name=name)
        node.outputs[0].name = unique_name(self.model, f"{name}_made")
        node.outputs[0].type = ir.TensorType(recipe.dtype)
        node.outputs[0].shape = ir.Shape(list(recipe.shape))
        self.nodes.append(node)
        return node.outputs[0]


def _store(model: ir.Model, value: ir.Value, form: Form) -> None:
    assert value.name is not None
    builder = _Builder(model, value.name)
    made = builder.build(form.recipe)
    first = next(iter(model.graph), None)
    assert first is not None, "a constant that is used has a node that uses it"
    model.graph.insert_before(first, builder.nodes)
    replace_value(value, made)
    drop_unused_initializer(value)
