"""The oracle: evaluates any value of a model, integer-exact where layers are quantized.

Built on onnx' reference evaluator: our kernels take the place of slow or inexact ones, values that are no
longer needed are freed, weights are read where they are used and never copied as a whole.
"""

from __future__ import annotations

import contextvars
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpFunction, OpRun, RuntimeContextError, RuntimeImplementationError

from ...compiler.backend import Array, Arrays, Port, Signature
from ...compiler.blas import one_blas_thread
from ...compiler.errors import DataError, ModelError, ParedError, UnsupportedOp, nearest
from ...compiler.inputs import check_inputs
from ...compiler.ir.pages import drop_pages, is_mapped
from . import (
    blocks,
    control,
    dense,
    integer,
    linear_quant,
    own_ops,
    padding,
    pooling,
    recurrent,
    resize,
    widened,
)
from .base import REFERENCE_DOMAIN, Kernel
from .base import Array as Numbers
from .blocks import use_block_products
from .regions import use_integer_layers

KERNELS: tuple[type[OpRun], ...] = (
    dense.Conv,
    dense.ConvTranspose,
    dense.Gemm,
    dense.MatMul,
    pooling.MaxPool,
    pooling.AveragePool,
    pooling.GlobalAveragePool,
    pooling.GlobalMaxPool,
    padding.Pad,
    widened.LRN,
    widened.LpNormalization,
    resize.Resize,
    control.Loop,
    control.Scan,
    recurrent.LSTM,
    recurrent.GRU,
    recurrent.RNN,
    linear_quant.QuantizeLinear,
    linear_quant.DequantizeLinear,
    own_ops.Quant,
    own_ops.BipolarQuant,
    own_ops.Trunc,
    own_ops.MultiThreshold,
    own_ops.DynamicBlockQuantize,
    own_ops.Neuron,
    blocks.BlockProduct,
    integer.IntegerConv,
    integer.IntegerConvTranspose,
    integer.IntegerGemm,
    integer.IntegerMatMul,
)

# Called after each node with (kernel, inputs, outputs); returns the outputs to go on with.
Hook = Callable[[OpRun, Sequence[Numbers | None], Sequence[Numbers]], Sequence[Numbers]]

_hook: contextvars.ContextVar[Hook | None] = contextvars.ContextVar("reference_hook", default=None)


class _Weights(Mapping[str, Array]):
    """Initializers by name, read (memory-mapped where external) when asked for."""

    def __init__(self, values: Mapping[str, ir.Value]) -> None:
        self._values = values
        self._mapped = {name for name, value in self._values.items() if is_mapped(value.const_value)}

    def done_with(self, names: Iterable[str]) -> None:
        """Give back the memory of mapped weights; they are read again when asked for again."""
        for name in self._mapped.intersection(names):
            drop_pages(self._values[name].const_value)

    def __getitem__(self, name: str) -> Array:
        tensor = self._values[name].const_value
        if tensor is None:
            raise KeyError(name)
        return np.asarray(tensor.numpy())

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values


class _Graph(ReferenceEvaluator):
    """Evaluates one graph; used for bodies too, so it keeps the constructor of its base."""

    weights = _Weights({})

    def _load_impl(self, node, input_types=None):  # type: ignore[no-untyped-def]
        try:
            kernel = super()._load_impl(node, input_types)
        except (NotImplementedError, RuntimeImplementationError) as err:
            raise UnsupportedOp(
                "no-reference-kernel",
                f"node {node.name!r}: the reference has no kernel for {node.domain}::{node.op_type}",
                "exclude the node or add a kernel to backends/reference",
            ) from err
        plain = node.domain == "" and isinstance(kernel, type) and not issubclass(kernel, Kernel)
        copies = node.op_type in widened.COPYING
        return widened.widened(kernel, node.op_type) if plain and not copies else kernel

    def run(  # type: ignore[no-untyped-def,override]
        self, output_names, feed_inputs, attributes=None, **_
    ) -> list[Array]:
        names = list(output_names) if output_names is not None else list(self.output_names)
        own: dict[str, Array] = {}
        scope: Mapping[str, Array] = ChainMap(own, self.rt_inits_, feed_inputs, self.weights)  # type: ignore[arg-type]
        for node, unused in zip(self.rt_nodes_, self._last_uses(tuple(names)), strict=True):
            for name, value in zip(node.output, _run_node(node, scope, attributes), strict=False):
                own[name] = value
            self.weights.done_with(node.input)
            for name in unused:
                own.pop(name, None)
        return [scope[name] for name in names]

    def _last_uses(self, kept: tuple[str, ...]) -> list[list[str]]:
        """Return per node the values that nothing needs after it."""
        cached: dict[tuple[str, ...], list[list[str]]] = self.__dict__.setdefault("_unused_after", {})
        if kept not in cached:
            seen, plan = {*kept}, []
            for node in reversed(self.rt_nodes_):
                used = {name for name in (*node.input, *node.output, *_captured(node.onnx_node)) if name}
                plan.append(sorted(used - seen))
                seen |= used
            cached[kept] = plan[::-1]
        return cached[kept]


def _captured(node: onnx.NodeProto) -> Iterable[str]:
    """Yield every name that the bodies of a node mention; a superset of what they take from outside."""
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            yield from (value.name for value in body.output)
            for inner in body.node:
                yield from inner.input
                yield from _captured(inner)


def _run_node(
    node: OpRun, scope: Mapping[str, Array], attributes: Mapping[str, object] | None
) -> Sequence[Array]:
    inputs = [scope[name] if name else None for name in node.input]
    options: dict[str, object] = {}
    if node.has_linked_attribute and attributes:
        options["linked_attributes"] = attributes
    if node.need_context():
        options["context"] = scope
    made_of_operators = isinstance(node, OpFunction)
    fed, short = widened.singles(inputs) if made_of_operators else (inputs, None)
    # onnx' own kernels are not typed
    outputs: Sequence[Numbers] = node.run(*fed, **options)  # type: ignore[no-untyped-call]
    if short is not None:
        outputs = widened.shortened(outputs, short)
    hook = _hook.get()
    return outputs if hook is None else hook(node, cast("list[Numbers | None]", inputs), outputs)


class Evaluator:
    """A model made ready for repeated evaluation of the same outputs.

    Args:
        model: not edited; imported (default opset 13 or later, functions inlined).
        outputs: names of any values of the main graph; None: the graph's outputs.

    Raises:
        UnsupportedOp: an operator has no kernel.
        DataError: a name in `outputs` is not a value of the main graph.
    """

    def __init__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> None:
        self.signature = _signature(model)
        copy = model.clone()
        use_integer_layers(copy)
        use_block_products(copy)
        self.outputs = tuple(
            outputs if outputs is not None else (port.name for port in self.signature.outputs)
        )
        _check_outputs(copy, self.outputs)
        proto = _skeleton(copy, self.outputs)
        opsets = {"": 21, **copy.graph.opset_imports, REFERENCE_DOMAIN: 1, blocks.DOMAIN: 1}
        try:
            self._graph = _Graph(proto, opsets=opsets, new_ops=list(KERNELS))
        except RuntimeContextError as err:
            raise UnsupportedOp("no-reference-kernel", str(err), "run shape inference first") from err
        self._graph.weights = _Weights(copy.graph.initializers)

    def run(self, inputs: Arrays, hook: Hook | None = None) -> dict[str, Array]:
        """Evaluate on one batch; `hook` sees and may change every node's outputs.

        A model whose inputs have a fixed first size accepts a multiple of it and is run piece by piece.

        Raises:
            DataError: wrong input names, dtypes or shapes.
            ModelError: a node fails on these inputs.
        """
        pieces = _pieces(self.signature, inputs)
        token = _hook.set(hook)
        try:
            parts = [self._run_piece(piece) for piece in pieces]
        finally:
            _hook.reset(token)
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def _run_piece(self, inputs: Arrays) -> dict[str, Array]:
        feeds = check_inputs(self.signature, inputs)
        try:
            with np.errstate(all="ignore"), one_blas_thread():
                results = self._graph.run(list(self.outputs), feeds)
        except ParedError:
            raise
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError) as err:
            raise ModelError(
                "reference-failed",
                f"the reference could not evaluate the model: {err}",
                "check the inputs' shapes",
            ) from err
        return dict(zip(self.outputs, results, strict=True))


def evaluate(model: ir.Model, inputs: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
    """Evaluate `model` once; `outputs` may name any values of the main graph, default its outputs.

    A float value inside a quantized layer is the layer's real result, before it is quantized. For many
    batches make an `Evaluator` instead. Raises what `Evaluator` and its `run` raise.
    """
    return Evaluator(model, outputs).run(inputs)


def _signature(model: ir.Model) -> Signature:
    return Signature(
        tuple(_port(value) for value in model.graph.inputs if value.name not in model.graph.initializers),
        tuple(_port(value) for value in model.graph.outputs),
    )


def _port(value: ir.Value) -> Port:
    dims = (
        ()
        if value.shape is None
        else tuple(d if isinstance(d, int) else str(d.value or "") for d in value.shape)
    )
    return Port(value.name or "", value.dtype.name if value.dtype is not None else "", dims)


def _check_outputs(model: ir.Model, names: Sequence[str]) -> None:
    known = {value.name for node in model.graph for value in node.outputs}
    known |= {value.name for value in model.graph.inputs} | set(model.graph.initializers)
    for name in names:
        if name not in known:
            raise DataError(
                "unknown-value",
                f"the model has no value {name!r}",
                nearest(name, sorted(k for k in known if k)),
            )


def _skeleton(model: ir.Model, outputs: Sequence[str]) -> onnx.GraphProto:
    """Return the main graph without initializers, reduced to what `outputs` need."""
    needed, kept = set(outputs), []
    for node in reversed(model.graph):
        if any(value.name in needed for value in node.outputs):
            proto = ir.serde.serialize_node(node)
            kept.append(proto)
            needed.update(proto.input)
            needed.update(_captured(proto))
    graph = onnx.GraphProto(name=model.graph.name or "main")
    graph.node.extend(reversed(kept))
    graph.input.extend(ir.serde.serialize_value(value) for value in model.graph.inputs)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return graph


def _pieces(signature: Signature, inputs: Arrays) -> list[Arrays]:
    """Split inputs that hold several times the fixed first size of every port."""
    sizes = {port.name: port.shape[0] if port.shape else None for port in signature.inputs}
    counts = set()
    for name, size in sizes.items():
        array = np.asarray(inputs.get(name, 0))
        if not isinstance(size, int) or array.ndim == 0 or size < 1 or array.shape[0] % size:
            return [inputs]
        counts.add(array.shape[0] // size)
    if len(counts) != 1 or counts <= {0, 1}:
        return [inputs]
    return [
        {
            name: np.asarray(inputs[name])[i * size : (i + 1) * size]
            for name, size in sizes.items()
            if isinstance(size, int)
        }
        for i in range(counts.pop())
    ]
