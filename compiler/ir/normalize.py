"""Putting a freshly read model into the form that everything else relies on.

Names unique across all graphs, nodes named and sorted, constants frozen, foreign spellings of the own
operators renamed, sizes of inputs bound. Nothing here changes what the model computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from ..errors import ModelError, nearest
from .skeleton import KEPT_BYTES
from .upgrade import TARGET_OPSET
from .walk import Names, all_graphs, all_nodes, bodies, read_only, rename, values_of

QONNX = "qonnx.custom_op.general"
FINN = "finn.custom_op.general"

# QONNX has written its operators under four domains over the years.
_SPELLINGS = frozenset({QONNX, FINN, "onnx.brevitas", "qonnx.custom_op.channels_last"})
_HOME: Mapping[str, str] = {"Quant": QONNX, "BipolarQuant": QONNX, "Trunc": QONNX, "MultiThreshold": FINN}
_OWN_VERSION = 1

Notes = list[str]


def drop_input_defaults(model: ir.Model, notes: Notes) -> None:
    """Turn initializers that are also graph inputs into plain constants."""
    dropped = 0
    for graph in all_graphs(model):
        kept = [value for value in graph.inputs if not value.is_initializer()]
        if len(kept) == len(graph.inputs):
            continue
        dropped += len(graph.inputs) - len(kept)
        graph.inputs.clear()
        graph.inputs.extend(kept)
    if dropped and model.ir_version > 3:
        notes.append(f"{dropped} inputs with default values are treated as constants")


def freeze(model: ir.Model) -> None:
    """Make every constant an immutable in-memory array or a memory-mapped file; no array is copied."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _frozen(value.const_value)
            _trust_tensor(value)
        for node in graph:
            for key, attr in list(node.attributes.items()):
                if not attr.is_ref() and attr.type == ir.AttributeType.TENSOR:
                    node.attributes[key] = ir.AttrTensor(key, _frozen(attr.as_tensor()))


def _frozen(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor):
        return tensor if tensor.nbytes > KEPT_BYTES else _loaded(tensor)
    if isinstance(tensor, ir.StringTensor) or tensor.dtype == ir.DataType.STRING:
        return tensor
    array = read_only(tensor.numpy())
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)


def _loaded(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """Read a small external tensor: shape inference needs its values, and a mapping each would be many."""
    with open(tensor.path, "rb") as file:
        file.seek(tensor.offset or 0)
        raw = file.read(tensor.nbytes)
    proto = onnx.TensorProto(data_type=tensor.dtype.value, dims=tensor.shape.numpy(), raw_data=raw)
    return ir.Tensor(
        read_only(ir.serde.TensorProtoTensor(proto).numpy()), dtype=tensor.dtype, name=tensor.name
    )


def _trust_tensor(value: ir.Value) -> None:
    """Give a constant the type and shape of its tensor; a `value_info` that says otherwise was wrong."""
    tensor = value.const_value
    if tensor is not None:
        value.type = ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(list(tensor.shape.numpy()))


def name_everything(model: ir.Model, notes: Notes) -> None:
    """Give every node a name and every value and node a name of its own, in graph order.

    Sibling bodies may share names in ONNX; here the later ones are renamed, because names say where a
    value comes from.
    """
    taken = _value_names(model)
    node_names = Names(ir.Graph([], [], nodes=[]))
    renamed = 0
    for node in all_nodes(model):
        base = node.name or f"{node.op_type}_{next((v.name for v in node.outputs if v.name), 'out')}"
        fresh = node_names.fresh(base)
        renamed += bool(node.name) and fresh != node.name
        node.name = fresh
    if renamed:
        notes.append(f"{renamed} nodes shared a name with another and were renamed")
    if taken:
        notes.append(f"{taken} values in bodies shared a name with one elsewhere and were renamed")


def _value_names(model: ir.Model) -> int:
    names, renamed = Names(ir.Graph([], [], nodes=[])), 0
    for graph in all_graphs(model):
        for value in list(values_of(graph)):
            if not value.name:
                if value.uses() or value.is_graph_output():
                    value.name = names.fresh("value")
                continue
            fresh = names.fresh(value.name)
            if fresh != value.name:
                rename(value, fresh)
                renamed += 1
    return renamed


def sort(model: ir.Model) -> None:
    """Sort the nodes of every graph, keeping the order where it is already right."""
    for graph in all_graphs(model):
        if not _is_sorted(graph):
            graph.sort()


def _is_sorted(graph: ir.Graph) -> bool:
    seen: set[ir.Node] = set()
    for node in graph:
        nested = [inner for body in bodies(node) for inner in all_nodes(body)]
        for one in (node, *nested):
            for value in one.inputs:
                maker = None if value is None else value.producer()
                if maker is not None and maker.graph is graph and maker not in seen:
                    return False
        seen.add(node)
    return True


def canonical_domains(model: ir.Model) -> None:
    """Rename the spellings of QONNX and FINN operators to one, and `ai.onnx` to the empty domain."""
    imports = model.opset_imports
    if "ai.onnx" in imports:
        imports[""] = imports.pop("ai.onnx")
    # A model of ai.onnx.ml operators alone need not import the default domain; rewriting needs it.
    imports.setdefault("", TARGET_OPSET)
    used: set[str] = set()
    for node in all_nodes(model):
        if node.domain == "ai.onnx":
            node.domain = ""
        if node.domain in _SPELLINGS and node.op_type in _HOME:
            node.domain = _HOME[node.op_type]
        used.add(node.domain)
    for domain in [domain for domain in imports if domain and domain not in used]:
        del imports[domain]
    for domain in (QONNX, FINN):
        if domain in used:
            imports[domain] = _OWN_VERSION


# --- sizes of inputs --------------------------------------------------------------------------------


def bind_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int | str]]) -> None:
    """Set the sizes of inputs. A size given for a symbol holds wherever an input has that symbol.

    Args:
        model: edited in place.
        shapes: input name -> sizes; a string keeps or names a symbolic size.

    Raises:
        ModelError: `unknown-input`, `shape-conflict`, `bad-shape`.
    """
    inputs = {value.name or "": value for value in model.graph.inputs}
    symbols: dict[str, int | str] = {}
    for name, sizes in shapes.items():
        if name not in inputs:
            raise ModelError(
                "unknown-input", f"the model has no input {name!r}", nearest(name, list(inputs)) or "none"
            )
        _bind(inputs[name], sizes, symbols)
    for value in inputs.values():
        if value.shape is not None:
            value.shape = ir.Shape([_bound(dim, symbols) for dim in value.shape.dims])
    if shapes:
        _forget_sizes(model, symbols)


def _forget_sizes(model: ir.Model, symbols: Mapping[str, int | str]) -> None:
    """Drop the stored shapes of what nodes compute: they were written for other sizes of the inputs.

    Outputs of the model keep what they declare, with symbols bound.
    """
    for node in all_nodes(model):
        for output in node.outputs:
            kept = output.is_graph_output() and output.shape is not None and node.graph is model.graph
            dims = output.shape.dims if kept and output.shape is not None else ()
            output.shape = ir.Shape([_bound(dim, symbols) for dim in dims]) if kept else None


def _bound(dim: int | ir.SymbolicDim, symbols: Mapping[str, int | str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return symbols.get(dim.value, dim.value) if dim.value is not None else None


def _bind(value: ir.Value, sizes: Sequence[int | str], symbols: dict[str, int | str]) -> None:
    where = f"the shape given for input {value.name!r}"
    for size in sizes:
        if not isinstance(size, str) and (isinstance(size, bool) or int(size) != size or size < 1):
            raise ModelError("bad-shape", f"{where} has the size {size!r}", "sizes are whole numbers from 1")
    if value.shape is None:
        value.shape = ir.Shape(list(sizes))
        return
    old = list(value.shape.dims)
    if len(old) != len(sizes):
        raise ModelError(
            "shape-conflict",
            f"{where} has {len(sizes)} sizes, the model declares {value.shape}",
            f"give {len(old)} sizes",
        )
    for dim, size in zip(old, sizes, strict=True):
        _note_symbol(dim, size, symbols, where)
    value.shape = ir.Shape(
        [dim if isinstance(dim, int) else size for dim, size in zip(old, sizes, strict=True)]
    )


def _note_symbol(
    dim: int | ir.SymbolicDim, size: int | str, symbols: dict[str, int | str], where: str
) -> None:
    if isinstance(dim, int):
        if dim != size:
            raise ModelError(
                "shape-conflict",
                f"{where} says {size} where the model has the fixed size {dim}",
                "fixed sizes cannot be changed; export the model with a dynamic size",
            )
    elif dim.value is not None and symbols.setdefault(dim.value, size) != size:
        raise ModelError(
            "shape-conflict",
            f"{where} says {size} for {dim.value!r}, which is {symbols[dim.value]} elsewhere",
            "give one size for one symbol",
        )
