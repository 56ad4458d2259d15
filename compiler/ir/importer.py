"""Import: from a file, bytes, ModelProto or ir.Model to a checked model in the form that passes rely on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from ..errors import ModelError
from ..ops import register
from . import normalize
from .export import capped_ir_version
from .external import check_external, set_base
from .guards import check_proto
from .inline import inline_functions
from .operators import check_operators
from .prepare import prepare
from .qoperator import expand_qoperators
from .shapes import infer_shapes
from .source import Source, file_digest, read_bytes, read_path, read_proto
from .text import fingerprint
from .upgrade import TARGET_OPSET, upgrade_opset
from .value_sizes import check_value_sizes
from .verifier import verify_graph
from .walk import all_graphs

ModelSource = str | Path | bytes | onnx.ModelProto | ir.Model
Shapes = Mapping[str, Sequence[int | str]]


@dataclass(frozen=True)
class Imported:
    """A model that was taken in.

    Attributes:
        model: in canonical form: opset 21 or newer, functions inlined, constants frozen, names unique,
            types and shapes inferred, QOperator nodes as QDQ.
        sha256: of the file's bytes (of the fingerprint for an ir.Model).
        path: of the file, or None.
        external: external data file, as the model spells it -> sha256.
        notes: what was changed on the way in that the user may want to know.
    """

    model: ir.Model
    sha256: str
    path: Path | None = None
    external: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def import_model(source: ModelSource, shapes: Shapes | None = None) -> Imported:
    """Read, check and canonicalize a model; the caller's object is not changed.

    Args:
        source: path of an .onnx file (or .nir, .net), its bytes, a ModelProto or an ir.Model.
        shapes: input name -> sizes, to bind dynamic dimensions; a string keeps one symbolic.

    Raises:
        ModelError: the model is refused; `reason` says why. `InvalidGraph` and `UnsupportedOp` are
            among its subclasses.
    """
    register()
    notes: list[str] = []
    if isinstance(source, ir.Model):
        if source.functions:
            return import_model(ir.serde.serialize_model(source), shapes)
        model, digest = source.clone(), fingerprint(source)
        _canonicalize(model, shapes or {}, notes)
        return Imported(model, digest, notes=notes)
    read = _read(source, notes)
    check_proto(read.proto)
    external = check_external(read)
    inline_functions(read.proto)
    prepare(read.proto, notes)
    model = _deserialize(read)
    _canonicalize(model, shapes or {}, notes)
    return Imported(model, read.sha256, read.path, external, notes)


def _read(source: str | Path | bytes | onnx.ModelProto, notes: list[str]) -> Source:
    if isinstance(source, onnx.ModelProto):
        return read_proto(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return read_bytes(bytes(source))
    if isinstance(source, str | Path):
        return read_file(Path(source), notes)
    raise ModelError(
        "not-a-model",
        f"a model was needed, got {type(source).__name__}",
        "give a path, bytes, an onnx.ModelProto or an onnx_ir.Model",
    )


def read_file(path: Path, notes: list[str]) -> Source:
    """Read a model file; networks of other formats (`.nir`, `.net`) come as the ONNX that they are made into.

    Raises:
        ModelError: what `read_path` raises, or the reader of the format.
    """
    from ..registry import foreign_reader

    reader = foreign_reader(path)
    if reader is None:
        return read_path(path)
    proto, told = reader(path)
    notes += told
    return Source(proto, file_digest(path), path)


def _deserialize(read: Source) -> ir.Model:
    try:
        model = ir.serde.deserialize_model(read.proto)
    except (ir.serde.SerdeError, ValueError, TypeError, AssertionError) as err:
        raise ModelError(
            "malformed-model", f"the model cannot be read: {_innermost(err)}", "export it again"
        ) from err
    if read.path is not None:
        for graph in all_graphs(model):
            set_base(graph, read)
    return model


def _innermost(err: BaseException) -> str:
    while err.__cause__ is not None:
        err = err.__cause__
    return " ".join(str(err).split())[:400]


def _canonicalize(model: ir.Model, shapes: Shapes, notes: list[str]) -> None:
    normalize.drop_input_defaults(model, notes)
    normalize.freeze(model)
    normalize.canonical_domains(model)
    normalize.sort(model)
    normalize.name_everything(model, notes)
    check_operators(model)
    normalize.bind_shapes(model, shapes)
    if model.opset_imports[""] < TARGET_OPSET:
        infer_shapes(model, untrusted=True)
        upgrade_opset(model, notes)
    expand_qoperators(model, notes)
    infer_shapes(model, untrusted=True)
    model.ir_version = capped_ir_version(model)
    verify_graph(model)
    check_value_sizes(model)
