"""The last step before a payload is written: the same graph in fewer bytes.

Names, comments and redundant attributes take a third of a small int8 model. Nothing here changes what
the graph computes or makes it anything but plain ONNX.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir

from .equal import equal_groups, share
from .walk import all_graphs, all_nodes, all_values, ints_attribute, rename

_FIRST = string.ascii_letters + "_"
_FURTHER = _FIRST + string.digits
_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})
# Defaults that the specification gives in words, because they depend on the number of axes.
_SPATIAL_DEFAULTS = {"strides": 1, "dilations": 1, "pads": 0}


def compact(model: ir.Model) -> dict[str, str]:
    """Make `model` (a clone that is only written from now on) small; return short name -> original name.

    Inputs and outputs of the main graph keep their names, types and shapes. Values and constants get
    the shortest names, the most used ones first; node names, comments, metadata, inner shapes,
    attributes at their defaults and unused opset imports go.
    """
    for graph in all_graphs(model):
        _strip_graph(graph)
        for node in graph:
            _strip_node(node)
            _drop_defaults(node, model.opset_imports)
    _strip_model(model)
    names = _shorten(model)
    _forget_inner_types(model)
    return names


def _strip_model(model: ir.Model) -> None:
    model.doc_string = None
    model.metadata_props.clear()
    model.model_version = None
    model.domain = None
    model.producer_name, model.producer_version = "pared", None
    used = {node.domain for node in all_nodes(model)} | {"", *(key[0] for key in model.functions)}
    for domain in [domain for domain in model.opset_imports if domain not in used]:
        del model.opset_imports[domain]


def _plain(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return the tensor without name and comments, to be written as raw bytes."""
    if isinstance(tensor, ir.ExternalTensor) or tensor.dtype == ir.DataType.STRING:
        return tensor
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype)


def _strip_graph(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.const_value = _plain(value.const_value)
    for group in list(equal_groups(graph)):
        share(group)
    graph.doc_string = None
    graph.metadata_props.clear()
    graph.name = "g"  # the checker wants one


def _strip_node(node: ir.Node) -> None:
    node.name = ""  # not None: a clone would make up a name
    node.doc_string = None
    node.metadata_props.clear()
    for name, attr in list(node.attributes.items()):
        if attr.type == ir.AttributeType.TENSOR and not attr.is_ref():
            node.attributes[name] = ir.AttrTensor(name, _plain(attr.as_tensor()))
        elif attr.doc_string:
            node.attributes[name] = ir.Attr(name, attr.type, attr.value)
    last = max((index for index, value in enumerate(node.inputs) if value is not None), default=-1)
    node.resize_inputs(last + 1)


def _drop_defaults(node: ir.Node, opsets: Mapping[str, int]) -> None:
    if node.domain:
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets[""], node.domain)
    except onnx.defs.SchemaError:
        return
    for name, attr in list(node.attributes.items()):
        declared = schema.attributes.get(name)
        if declared is None or attr.is_ref() or declared.required:
            continue
        if _is_declared_default(attr, declared.default_value) or _is_spatial_default(node, attr):
            del node.attributes[name]


def _is_declared_default(attr: ir.Attr, default: onnx.AttributeProto) -> bool:
    if default.type == onnx.AttributeProto.UNDEFINED or int(attr.type) != int(default.type):
        return False
    if attr.type not in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
        return False
    given = ir.serde.serialize_attribute(attr)
    return (given.i, given.f, given.s) == (default.i, default.f, default.s)


def _is_spatial_default(node: ir.Node, attr: ir.Attr) -> bool:
    if node.op_type not in _WINDOWED:
        return False
    if attr.name in _SPATIAL_DEFAULTS:
        return set(attr.as_ints()) <= {_SPATIAL_DEFAULTS[attr.name]}
    return attr.name == "kernel_shape" and _weight_says(node)


def _weight_says(node: ir.Node) -> bool:
    """The window of a convolution is in the shape of its weights."""
    weight = node.inputs[1] if node.op_type in ("Conv", "ConvTranspose") else None
    if weight is None or weight.shape is None:
        return False
    return tuple(weight.shape.dims[2:]) == ints_attribute(node, "kernel_shape")


def _shorten(model: ir.Model) -> dict[str, str]:
    kept = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    fixed = set(map(id, (*model.graph.inputs, *model.graph.outputs)))
    values = [value for value in all_values(model) if id(value) not in fixed]
    # An unnamed output is an optional one that is left out.
    named = [value for value in values if value.name]
    named.sort(key=lambda value: len(value.uses()), reverse=True)
    short_names = (name for name in _short_names() if name not in kept)
    chosen = {short: value for short, value in zip(short_names, named, strict=False)}
    originals = {short: value.name or "" for short, value in chosen.items()}
    _rename_all(chosen)
    return originals


def _rename_all(chosen: Mapping[str, ir.Value]) -> None:
    """Rename at once: a new name may still be an old name of another value."""
    for index, value in enumerate(chosen.values()):
        rename(value, f" {index}")
    for short, value in chosen.items():
        rename(value, short)


def _short_names() -> Iterator[str]:
    for length in itertools.count(0):
        for tail in itertools.product(_FURTHER, repeat=length):
            for first in _FIRST:
                yield first + "".join(tail)


def _forget_inner_types(model: ir.Model) -> None:
    """Drop types and shapes of all but inputs and outputs of graphs: readers infer them."""
    kept = {id(value) for graph in all_graphs(model) for value in (*graph.inputs, *graph.outputs)}
    for value in all_values(model):
        value.metadata_props.clear()
        value.doc_string = None
        if id(value) not in kept:
            value.type = None
            value.shape = None
