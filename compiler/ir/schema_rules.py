"""Verifier rule: every node fits the schema of its operator (inputs, outputs, attributes, their types)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from ..errors import InvalidGraph
from .operators import schema_of
from .walk import node_label


@dataclass(frozen=True)
class _Form:
    """What a schema demands, looked up once per operator."""

    required: tuple[bool, ...]
    min_inputs: int
    max_inputs: int
    min_outputs: int
    max_outputs: int
    attributes: dict[str, onnx.defs.OpSchema.AttrType]
    needed: frozenset[str]


@functools.lru_cache(maxsize=1024)
def _form(name: str, version: int, domain: str) -> _Form:
    schema = onnx.defs.get_schema(name, version, domain)
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return _Form(
        required=tuple(one.option == single for one in schema.inputs),
        min_inputs=schema.min_input,
        max_inputs=schema.max_input,
        min_outputs=schema.min_output,
        max_outputs=schema.max_output,
        attributes={key: attr.type for key, attr in schema.attributes.items()},
        needed=frozenset(key for key, attr in schema.attributes.items() if attr.required),
    )


def check_schema(node: ir.Node, versions: dict[str, int]) -> None:
    """Refuse a node that its operator's schema does not allow.

    Raises:
        InvalidGraph: `ir-schema`.
    """
    schema = schema_of(node, versions)
    if schema is None:
        raise InvalidGraph(
            "ir-schema", f"{node_label(node)} is no operator of the imported opsets {versions}"
        )
    form = _form(node.op_type, versions[node.domain], node.domain)
    _check_inputs(node, form)
    if not form.min_outputs <= len(node.outputs) <= form.max_outputs:
        fit = f"{form.min_outputs} to {form.max_outputs}"
        raise InvalidGraph("ir-schema", f"{node_label(node)} has {len(node.outputs)} outputs, {fit} fit")
    _check_attributes(node, form)


def _check_inputs(node: ir.Node, form: _Form) -> None:
    if not form.min_inputs <= len(node.inputs) <= form.max_inputs:
        raise InvalidGraph(
            "ir-schema",
            f"{node_label(node)} has {len(node.inputs)} inputs, not {form.min_inputs} to {form.max_inputs}",
        )
    for index, (value, required) in enumerate(zip(node.inputs, form.required, strict=False)):
        if required and value is None:
            raise InvalidGraph("ir-schema", f"{node_label(node)} lacks its required input {index}")


def _check_attributes(node: ir.Node, form: _Form) -> None:
    for name, attr in node.attributes.items():
        kind = form.attributes.get(name)
        if kind is None:
            raise InvalidGraph(
                "ir-schema",
                f"{node_label(node)} has the unknown attribute {name!r}; known: {sorted(form.attributes)}",
            )
        if getattr(onnx.defs.OpSchema.AttrType, attr.type.name) != kind:
            raise InvalidGraph(
                "ir-schema", f"attribute {name!r} of {node_label(node)} is of type {attr.type.name}"
            )
        if attr.is_ref():
            raise InvalidGraph("ir-schema", f"attribute {name!r} of {node_label(node)} refers to a function")
    if missing := sorted(form.needed - node.attributes.keys()):
        raise InvalidGraph("ir-schema", f"{node_label(node)} lacks its required attributes {missing}")
