"""Describes a model as it is: contents, cost, quantization, and what blocks which target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from .backend import Backend, Port
from .target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from .ir.quant import QuantParams

# Operator -> positions of its operands that quantization is about: activations first, then weights.
_LAYERS: Mapping[str, tuple[int, ...]] = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "LSTM": (0, 1, 2),
    "GRU": (0, 1, 2),
    "RNN": (0, 1, 2),
}

# Operators that only move values; quantization is looked for behind them.
_MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})

_FORMS: Mapping[str, frozenset[str]] = {
    "QDQ": frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}),
    "QOperator": frozenset(
        {
            "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
            "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool",
            "QLinearGlobalAveragePool", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax",
        }
    ),
    "QONNX": frozenset({"Quant", "BipolarQuant", "Trunc"}),
    "FINN": frozenset({"MultiThreshold"}),
}  # fmt: skip


@dataclass(frozen=True)
class QuantFormat:
    """How one operand is quantized: `axis` None means one scale for the tensor, `block_size` 0 no blocks."""

    operand: str
    constant: bool
    bits: int
    signed: bool
    scheme: str
    axis: int | None
    block_size: int


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer with at least one quantized operand."""

    node: str
    op: str
    operands: tuple[QuantFormat, ...]


@dataclass(frozen=True)
class Quantization:
    """The quantization found.

    Attributes:
        forms: spellings in the file: QDQ, QOperator, QONNX, FINN.
        layers: quantized layers, in graph order.
        float_layers: names of layers of the same kinds without a quantized operand.
    """

    forms: tuple[str, ...]
    layers: tuple[QuantizedLayer, ...]
    float_layers: tuple[str, ...]


@dataclass(frozen=True)
class Blocker:
    """A node that a target does not take, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class TargetCheck:
    """Whether a target takes every node.

    Attributes:
        beyond_nodes: what a compilation checks besides, of the model as a whole; empty where nothing is.
    """

    target: str
    ok: bool
    blockers: tuple[Blocker, ...]
    beyond_nodes: str = ""


@runtime_checkable
class JudgesWholes(Protocol):
    """A backend whose `lower` refuses models that `supports` takes node by node; tells for what."""

    beyond_nodes: ClassVar[str]


@dataclass(frozen=True)
class InspectReport:
    """What `pared inspect` tells.

    Attributes:
        sha256: of the file; `external` has one per external data file.
        ir_version: of the file, as `opset` (domain -> version, "" is standard ONNX), `ops` (operator ->
            count, bodies of control flow included) and `producer` are.
        parameters, weight_bytes, macs, bops: after import; MACs for one call, symbolic sizes as 1.
        dynamic: sizes that are not fixed, as `input[axis]=name`.
        notes: what import changed or assumed.
    """

    file: Path
    file_bytes: int
    sha256: str
    external: dict[str, str]
    ir_version: int
    opset: dict[str, int]
    producer: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: int
    ops: dict[str, int]
    parameters: int
    weight_bytes: int
    macs: int
    bops: int
    dynamic: tuple[str, ...]
    quantization: Quantization
    targets: tuple[TargetCheck, ...]
    notes: tuple[str, ...]


def inspect_model(
    path: Path,
    shapes: Mapping[str, Sequence[int | str]] | None,
    targets: Sequence[Target],
    backends: Mapping[str, Backend],
) -> InspectReport:
    """Import a model and describe it.

    Args:
        path: the ONNX file.
        shapes: input name -> sizes that replace symbolic ones.
        targets: the targets to check it against.
        backends: backend of each target, by name.

    Raises:
        ModelError: the file cannot be imported.
    """
    from .ir.export import signature_of
    from .ir.importer import import_model
    from .ir.stats import count

    imported = import_model(path, shapes)
    raw = _as_written(path)
    raw_ops = _histogram(raw)
    counts, signature = count(imported.model), signature_of(imported.model)
    return InspectReport(
        file=path,
        file_bytes=path.stat().st_size,
        sha256=imported.sha256,
        external=dict(imported.external),
        ir_version=raw.ir_version,
        opset=dict(raw.opset_imports),
        producer=" ".join(filter(None, (raw.producer_name, raw.producer_version))),
        inputs=signature.inputs,
        outputs=signature.outputs,
        nodes=sum(raw_ops.values()),
        ops=raw_ops,
        parameters=counts.parameters,
        weight_bytes=counts.weight_bytes,
        macs=counts.macs,
        bops=counts.bops,
        dynamic=_dynamic(signature.inputs),
        quantization=_quantization(imported.model, raw_ops),
        targets=tuple(check_target(imported.model, t, backends[t.backend]) for t in targets),
        notes=tuple(imported.notes),
    )


def _as_written(path: Path) -> ir.Model:
    """Return the model before import changes it."""
    import onnx_ir as ir

    from .ir.importer import read_file
    from .registry import foreign_reader

    if foreign_reader(path) is None:
        return ir.load(path)
    return ir.serde.deserialize_model(read_file(path, []).proto)


def check_target(model: ir.Model, target: Target, backend: Backend) -> TargetCheck:
    """Ask the backend about every node, bodies of control flow included."""
    from .ir.walk import all_nodes

    found = []
    for node in all_nodes(model):
        verdict = backend.supports(node, target)
        if not verdict.ok:
            found.append(Blocker(node.name or "", _op_name(node), verdict.reason))
    beyond = backend.beyond_nodes if isinstance(backend, JudgesWholes) else ""
    return TargetCheck(target.name, not found, tuple(found), beyond)


def _histogram(model: ir.Model) -> dict[str, int]:
    """Count operators, the most frequent first; custom domains are part of the name."""
    from .ir.walk import all_nodes

    counted = Counter(_op_name(node) for node in all_nodes(model))
    for function in model.functions.values():
        counted.update(_op_name(node) for node in function)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def _op_name(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _dynamic(ports: Iterable[Port]) -> tuple[str, ...]:
    return tuple(
        f"{port.name}[{axis}]={size or '?'}"
        for port in ports
        for axis, size in enumerate(port.shape)
        if isinstance(size, str)
    )


def _quantization(model: ir.Model, raw_ops: Mapping[str, int]) -> Quantization:
    from .ir.walk import all_nodes

    bare = {name.rpartition("::")[2] for name in raw_ops}
    layers, plain = [], []
    for node in all_nodes(model):
        if node.op_type not in _LAYERS or node.domain:
            continue
        operands = tuple(_operands(node))
        if operands:
            layers.append(QuantizedLayer(node.name or "", node.op_type, operands))
        else:
            plain.append(node.name or "")
    forms = tuple(form for form, ops in _FORMS.items() if ops & bare)
    return Quantization(forms, tuple(layers), tuple(plain))


def _operands(node: ir.Node) -> Iterable[QuantFormat]:
    from .ir.quant import view

    for position in _LAYERS[node.op_type]:
        source = _behind_moves(node.inputs[position]) if position < len(node.inputs) else None
        params = view(source)
        if source is not None and params is not None:
            yield _format(source, params)


def _behind_moves(value: ir.Value | None) -> ir.Value | None:
    """Follow a value back through operators that only rearrange it."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _MOVES:
        value = node.inputs[0]
    return value


def _format(value: ir.Value, params: QuantParams) -> QuantFormat:
    from .ir.walk import is_constant

    node = value.producer()
    spec = params.spec
    return QuantFormat(
        operand=value.name or "",
        constant=node is not None and is_constant(node.inputs[0]),
        bits=spec.bits,
        signed=spec.signed,
        scheme=spec.scheme.value,
        axis=spec.axis,
        block_size=spec.block_size,
    )
