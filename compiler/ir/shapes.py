"""Shape and type inference in place, on a copy without weights, with every failure an error."""

from __future__ import annotations

import re
from functools import partial

import onnx
import onnx_ir as ir
from onnx.shape_inference import InferenceError

from ..errors import InvalidGraph
from ..ops import register
from ..ops.size_guard import ABSURD, LONG, is_followed
from .limits import bounded_memory
from .skeleton import skeleton
from .tensor_guards import MOST_AXES
from .walk import all_values

# Names that onnx makes up for sizes it cannot know.
_MADE_UP = re.compile(r"unk__\d+")

Types = dict[str, onnx.TypeProto]

# Elements of vectors that inference may follow, in all nodes together: some 50 bytes each.
_FOLLOWED = 4 << 20
_LEAST_FOLLOWED = 256


def infer_shapes(model: ir.Model, *, untrusted: bool = False) -> None:
    """Infer dtype and shape of every value in every graph, replacing stale ones.

    An inferred size beats a stored one; a stored size stays where inference cannot tell (the size
    that a data-dependent Reshape yields, say) and the ranks agree.

    Args:
        model: edited.
        untrusted: look out for sizes that would take all memory; import does, once and for all.

    Raises:
        InvalidGraph: `shape-inference`, with what onnx says about which node.
    """
    register()
    inferred = _untrusted(model) if untrusted else _run(skeleton(model))
    given = _symbols(model)
    for value in all_values(model):
        found = inferred.get(value.name or "")
        if found is not None and not value.is_initializer():
            _refresh(value, found, given)


def _untrusted(model: ir.Model) -> Types:
    followed = sum(map(is_followed, model.graph.all_nodes()))
    longest = max(_LEAST_FOLLOWED, _FOLLOWED // max(1, followed))
    try:
        return _run(skeleton(model, longest=longest))
    except InvalidGraph as err:
        if LONG not in err.message:
            raise
    return _run(skeleton(model, longest=0), follow=False)


def _run(proto: onnx.ModelProto, *, follow: bool = True) -> Types:
    infer = partial(onnx.shape_inference.infer_shapes, check_type=True, strict_mode=True, data_prop=follow)
    try:
        with bounded_memory(memory_for(proto)):
            done = infer(proto)
    except MemoryError as err:
        raise out_of_bounds() from err
    except (InferenceError, RuntimeError, ValueError, TypeError) as err:
        if ABSURD in str(err):
            raise out_of_bounds() from err
        raise InvalidGraph(
            "shape-inference",
            f"the shapes or types of the graph do not fit: {_short(str(err))}",
            "check the named node's inputs and attributes, or the sizes given with --shape",
        ) from err
    types: Types = {}
    _collect(done.graph, types)
    return types


def memory_for(proto: onnx.ModelProto) -> int:
    """Return the memory that inference of a sane model stays far below, in bytes."""
    return (512 << 20) + 64 * int(proto.ByteSize())


def out_of_bounds() -> InvalidGraph:
    """Return the refusal of a model whose inference would take all memory."""
    return InvalidGraph(
        "shape-inference",
        "the sizes that the graph computes are absurd: inferring them takes more memory than any real model",
        "the file is damaged or hostile",
    )


def _short(text: str, limit: int = 600) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + " ..."


def _collect(graph: onnx.GraphProto, types: Types) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.WhichOneof("value"):
            types[info.name] = info.type
    for node in graph.node:
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                _collect(attr.g, types)


def _symbols(model: ir.Model) -> frozenset[str]:
    """Return the symbolic sizes that the inputs name; some exporters name them like onnx's made-up ones."""
    shapes = [value.shape for value in model.graph.inputs if value.shape is not None]
    return frozenset(
        dim.value for shape in shapes for dim in shape.dims if not isinstance(dim, int) and dim.value
    )


def _refresh(value: ir.Value, found: onnx.TypeProto, given: frozenset[str]) -> None:
    kind = ir.serde.deserialize_type_proto_for_type(found)
    if kind is not None and kind != value.type and getattr(kind, "dtype", None) != ir.DataType.UNDEFINED:
        # A new object: clones share the type, so it must not be edited.
        value.type = kind
    if len(found.tensor_type.shape.dim) > MOST_AXES:
        raise out_of_bounds()
    shape = ir.serde.deserialize_type_proto_for_shape(found)
    if shape is not None:
        merged = _merged(value.shape, shape, given)
        if value.shape is None or merged != list(value.shape.dims):
            value.shape = ir.Shape(merged)


def _merged(stored: ir.Shape | None, inferred: ir.Shape, given: frozenset[str]) -> list[int | str | None]:
    new = [_known(dim, given) for dim in inferred.dims]
    if stored is None or len(stored) != len(new):
        return new
    old = [_known(dim, given) for dim in stored.dims]
    return [_better(a, b) for a, b in zip(new, old, strict=True)]


def _better(inferred: int | str | None, stored: int | str | None) -> int | str | None:
    return stored if inferred is None else inferred


def _known(dim: int | ir.SymbolicDim, given: frozenset[str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    name = dim.value
    return None if name is None or (name not in given and _MADE_UP.fullmatch(name)) else name
