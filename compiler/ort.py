"""The only door to onnxruntime: sessions, runs and optimised graphs, with errors a user can act on.

onnxruntime is imported on the first call, so that `import pared` stays fast.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from .backend import Array, Arrays, Port, Signature
from .errors import DataError, InvalidGraph, ModelError, UnsupportedOp
from .inputs import check_inputs
from .ort_provider import NO_CPU, Provider, check_started, check_taken, need_provider

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import onnxruntime

Optimize = Literal["none", "basic", "extended", "all"]

# What sessions get: every onnxruntime since 1.18 reads IR version 10, and nothing that 11 to 13 add matters
# to it (it looks at the element types themselves), while a version above its own maximum is refused.
IR_VERSION = 10

# The newest version that files handed in may have; 14, which onnx 1.23 writes, is above every maximum so far.
_NEWEST_IR_VERSION = 13

# Domains of our own operators; onnxruntime has no kernels for them, so they are expanded.
OWN_DOMAINS = ("qonnx.custom_op.general", "finn.custom_op.general", "pared.ops")

# Protobuf ends at 2 GiB; above this the weights go to files.
_PROTO_LIMIT = 1 << 30

# Rounds float weights between DequantizeLinear and QuantizeLinear to int8 with one scale: layers that were
# left in float on purpose, or that have other widths, would silently lose accuracy (seen with 1.31).
_UNASKED = ["WeightBiasQuantization"]

_LEVELS: Mapping[Optimize, str] = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

# The `last` of a kernel that was not given one.
_OPEN_END = 2**31 - 1

_DTYPES = {"float": "FLOAT", "double": "DOUBLE", "bool": "BOOL", "string": "STRING"}

_signatures: weakref.WeakKeyDictionary[object, Signature] = weakref.WeakKeyDictionary()


def make_session(
    model: ir.Model | bytes | Path,
    *,
    threads: int | None = 1,
    optimize: Optimize = "all",
    extra_outputs: Sequence[str] = (),
    low_memory: bool = False,
    provider: Provider | None = None,
) -> onnxruntime.InferenceSession:
    """Make an onnxruntime session, on the CPU unless a provider is named.

    Args:
        model: not edited. Own operators are expanded into standard ones, the IR version is lowered.
        threads: intra-op threads; None takes every core this process may use.
        optimize: graph optimisations; `none` runs the graph as it is written, `extended` fuses as it does on
            every machine, `all` also chooses layouts for this one.
        extra_outputs: names of inner values to return as well.
        low_memory: trade speed for memory: no arena, no prepacked copies of weights.
        provider: runs every node; none is left to the CPU.

    Raises:
        MissingTool: `ort-provider-missing`: this onnxruntime has no such provider, or cannot start it.
        UnsupportedOp: no kernel, naming the operator; `ort-provider-refused`: the provider leaves nodes out.
        InvalidGraph: onnxruntime finds the graph broken.
        ModelError: anything else that keeps the model from loading.
    """
    options = _options(threads, optimize, low_memory)
    if provider is not None:
        need_provider(provider.name)
        options.add_session_config_entry(*NO_CPU)
    with _loadable(model, extra_outputs) as (source, folder):
        if folder:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        return _create(source, options, provider)


def run_session(
    session: onnxruntime.InferenceSession, inputs: Arrays, outputs: Sequence[str] | None = None
) -> dict[str, Array]:
    """Run once and return `{output name: array}`; `outputs` restricts and orders them.

    Raises:
        DataError: a wrong name, dtype or shape, naming the input, or a failure inside the graph.
    """
    if session not in _signatures:
        _signatures[session] = session_signature(session)
    signature = _signatures[session]
    names = [port.name for port in signature.outputs] if outputs is None else list(outputs)
    return run_checked(session, check_inputs(signature, inputs), names)


def run_checked(
    session: onnxruntime.InferenceSession, inputs: Arrays, outputs: list[str]
) -> dict[str, Array]:
    """Run with inputs that were checked already; raises `DataError` when a node fails on them."""
    try:
        results = session.run(outputs, inputs)
    except _error_types() as err:
        raise DataError(
            "run-failed",
            f"onnxruntime could not run the model on these inputs: {_brief(err)}",
            "check their shapes and values",
        ) from err
    return dict(zip(outputs, results, strict=True))


def session_signature(session: onnxruntime.InferenceSession) -> Signature:
    """Return inputs and outputs as onnxruntime sees them; a size it does not know is the empty name."""
    return Signature(
        tuple(_port(arg) for arg in session.get_inputs()), tuple(_port(arg) for arg in session.get_outputs())
    )


def optimized_model(model: ir.Model | bytes | Path, optimize: Optimize = "all") -> onnx.ModelProto:
    """Return the graph that onnxruntime really runs after its own optimisations, without big weights."""
    import onnx

    options = _options(1, optimize, low_memory=True)
    with tempfile.TemporaryDirectory() as folder, _loadable(model, ()) as (source, external):
        path = os.path.join(folder, "optimized.onnx")
        options.optimized_model_filepath = path
        # Big weights go to a file beside it: the graph alone stays below the protobuf limit.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights.bin"
        )
        if external:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", external)
        _create(source, options)
        return onnx.load(path, load_external_data=False)


@dataclass(frozen=True)
class Kernel:
    """A CPU kernel of onnxruntime: for which opset versions, and for which dtypes by type parameter."""

    domain: str
    op_type: str
    first: int
    last: int
    types: Mapping[str, frozenset[str]]

    def takes_version(self, since: int) -> bool:
        """Match as onnxruntime does: a kernel without an end knows the version it was made for only."""
        return since == self.first or (self.last != _OPEN_END and self.first <= since <= self.last)


def kernels() -> list[Kernel]:
    """Return every CPU kernel in this build of onnxruntime."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = []
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            types = {name: frozenset(dtypes) for name, dtypes in kernel.type_constraints.items()}
            first, last = kernel.version_range
            found.append(Kernel(kernel.domain, kernel.op_name, first, last, types))
    return found


def version() -> str:
    """Return the version of the installed onnxruntime."""
    import onnxruntime

    return str(onnxruntime.__version__)


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _options(threads: int | None, optimize: Optimize, low_memory: bool) -> onnxruntime.SessionOptions:
    import onnxruntime as ort

    count = threads or usable_cores()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimize])
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = count
    # Denormals stay on: flushing them is set per thread and would leak into the caller's own arithmetic.
    options.enable_cpu_mem_arena = not low_memory
    options.enable_mem_pattern = not low_memory
    # Weights in blocks are fused with their MatMul; level 1 keeps the activations in float32, while the
    # default of 4 rounds them to int8.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if low_memory:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


@contextlib.contextmanager
def _loadable(
    model: ir.Model | bytes | Path, extra_outputs: Sequence[str]
) -> Iterator[tuple[str | bytes, str]]:
    """Yield what `InferenceSession` takes, and the folder of external data ("" where it needs none)."""
    if isinstance(model, bytes | Path):
        if not extra_outputs and not _needs_rewriting(model):
            yield (str(model), "") if isinstance(model, Path) else (model, "")
            return
        model = _read(model)
    model = _expanded(model)
    folders = _external_folders(model)
    if len(folders) <= 1 and _bytes_in_memory(model) <= _PROTO_LIMIT:
        yield _proto(model, extra_outputs).SerializeToString(), next(iter(folders), "")
        return
    with tempfile.TemporaryDirectory(prefix="pared-") as folder:
        yield _save_split(model, extra_outputs, Path(folder)), ""


def _needs_rewriting(model: bytes | Path) -> bool:
    """Tell by a scan of the bytes, without parsing, whether the file needs a lower version or expansion."""
    if isinstance(model, bytes):
        return _scan(model)
    if not model.is_file():
        raise ModelError("model-not-found", f"model file {model} does not exist", "check the path")
    if model.stat().st_size == 0:
        raise ModelError("model-empty", f"model file {model} is empty", "write or download it again")
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _scan(data)


def _scan(data: bytes | mmap.mmap) -> bool:
    # Field 1 of a ModelProto is the IR version; serializers write it first, as a one-byte varint.
    head = data[:2]
    old = head[:1] == b"\x08" and head[1:2] <= bytes([_NEWEST_IR_VERSION])
    return not old or any(data.find(domain.encode()) >= 0 for domain in OWN_DOMAINS)


def _read(model: bytes | Path) -> ir.Model:
    import onnx
    import onnx_ir as ir
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return ir.load(model) if isinstance(model, Path) else ir.from_proto(onnx.load_from_string(model))
    except (DecodeError, ValueError) as err:
        where = str(model) if isinstance(model, Path) else "the given bytes"
        raise ModelError(
            "model-unreadable", f"{where} is not an ONNX model: {err}", "export it again"
        ) from err


def _expanded(model: ir.Model) -> ir.Model:
    """Return a model that onnxruntime has kernels for: without our own operators and bfloat16."""
    from .ops import expand_custom_ops
    from .ops.bfloat16 import has_bfloat16, write_out_bfloat16

    domains = {node.domain for graph in _graphs(model) for node in graph}
    short = has_bfloat16(model)
    if domains.isdisjoint(OWN_DOMAINS) and not short:
        return model
    copy = model.clone()
    expand_custom_ops(copy)
    if short:
        write_out_bfloat16(copy)
    return copy


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from model.graph.subgraphs()


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in _graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _external_folders(model: ir.Model) -> set[str]:
    import onnx_ir as ir

    return {
        str(tensor.base_dir) or "." for tensor in _tensors(model) if isinstance(tensor, ir.ExternalTensor)
    }


def _bytes_in_memory(model: ir.Model) -> int:
    import onnx_ir as ir

    return sum(tensor.nbytes for tensor in _tensors(model) if not isinstance(tensor, ir.ExternalTensor))


def _proto(model: ir.Model, extra_outputs: Sequence[str]) -> onnx.ModelProto:
    import onnx
    import onnx_ir as ir

    proto: onnx.ModelProto = ir.to_proto(model)
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    present = {output.name for output in proto.graph.output}
    # onnxruntime infers the types of outputs that have none.
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(extra_outputs) if name not in present
    )
    return proto


def _save_split(model: ir.Model, extra_outputs: Sequence[str], folder: Path) -> str:
    """Write graph and weights apart, for models beyond the protobuf limit."""
    import onnx_ir as ir

    slim = model.clone()
    ir.external_data.unload_from_model(slim, folder, "weights.bin", size_threshold_bytes=1024)
    path = folder / "model.onnx"
    path.write_bytes(_proto(slim, extra_outputs).SerializeToString())
    return str(path)


def _create(
    source: str | bytes, options: onnxruntime.SessionOptions, provider: Provider | None = None
) -> onnxruntime.InferenceSession:
    import onnxruntime as ort

    wanted = provider or Provider("CPUExecutionProvider")
    try:
        session = ort.InferenceSession(
            source, options, providers=[(wanted.name, dict(wanted.options))], disabled_optimizers=_UNASKED
        )
    except _error_types() as err:
        if provider is not None:
            check_taken(provider, err)
        _raise_load_error(err)
    check_started(session, wanted)
    return session


def _error_types() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf",
        "ModelLoaded", "NoModel", "NoSuchFile", "NotFound", "NotImplemented", "RuntimeException",
    )  # fmt: skip
    return (*(getattr(state, name) for name in names if hasattr(state, name)), RuntimeError, ValueError)


def _raise_load_error(err: Exception) -> NoReturn:
    text = str(err)
    if found := re.search(
        r"Could not find an implementation for (\S+?)\((\d+)\) node with name '([^']*)'", text
    ):
        op, opset, node = found.groups()
        raise UnsupportedOp(
            "op-no-kernel",
            f"onnxruntime {version()} has no CPU kernel for {op}-{opset} with the dtypes of node {node!r}",
            "use other dtypes there, e.g. float32",
        ) from err
    found = re.search(r"error: (\S+)\(-?\d+\) is not a registered", text) or re.search(
        r"No Op registered for (\S+)", text
    )
    if found:
        raise UnsupportedOp(
            "op-unknown",
            f"onnxruntime {version()} does not know operator {found.group(1)!r}",
            "replace it with standard ONNX operators",
        ) from err
    kind = type(err).__name__
    if kind in ("InvalidGraph", "InvalidArgument"):
        raise InvalidGraph("graph-invalid", f"onnxruntime refuses the graph: {_brief(err)}") from err
    if kind == "InvalidProtobuf":
        raise ModelError("model-unreadable", "the model is not an ONNX protobuf", "export it again") from err
    raise ModelError("model-not-loadable", f"onnxruntime could not load the model: {_brief(err)}") from err


def _brief(err: Exception) -> str:
    """Drop onnxruntime's prefixes and source paths from an error text."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(err).strip())
    return re.sub(r"\S*/onnxruntime_src/\S+ ", "", text).strip()[:600]


def _port(arg: onnxruntime.NodeArg) -> Port:
    kind = re.sub(r"^tensor\((.*)\)$", r"\1", arg.type)
    shape = tuple(size if isinstance(size, int) else (size or "") for size in arg.shape)
    return Port(arg.name, _DTYPES.get(kind, kind.upper()), shape)
