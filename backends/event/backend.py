"""The event backend: quantized models as event layers, on this machine's CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...compiler.backend import Executable, Payload, Verdict
from ...compiler.errors import TargetError, nearest
from .modes import EXACT_MODES

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...compiler.pass_api import Context
    from ...compiler.target import Target

# Layers placed on a device that is modelled; the graded kernels run them here.
PLACED = ("placed", "survey")
ENGINES = ("graded", *EXACT_MODES, *PLACED)

_OPS = frozenset(
    [
        *(
            "QuantizeLinear",
            "DequantizeLinear",
            "Quant",
            "Conv",
            "Gemm",
            "MatMul",
            "AveragePool",
            "ReduceMean",
        ),
        *("ReduceMean", "GlobalAveragePool", "MaxPool", "GlobalMaxPool", "Add", "Concat", "Mul"),
        *(
            "BatchNormalization",
            "Relu",
            "Clip",
            "Softmax",
            "Transpose",
            "Flatten",
            "Reshape",
            "Squeeze",
            "Unsqueeze",
            "Identity",
            "Dropout",
        ),
    ]
)


class EventBackend:
    """Runs quantized feed-forward models by events; its engines are modes, see `modes.py`."""

    name: ClassVar[str] = "event"
    beyond_nodes: ClassVar[str] = (
        "that all between the layers is quantized, and on a device its cores, memory and accumulator bits"
    )

    def supports(self, node: ir.Node, target: Target) -> Verdict:
        """Take operators that event layers are made of; what surrounds a node is judged by `lower`."""
        limit = target.allows(node)
        if not limit.ok or node.op_type in _OPS or _is_constant(node):
            return limit
        return Verdict.no(f"no event layer computes {node.op_type}")

    def engines(self, target: Target) -> Sequence[str]:
        """Return the target's engines, preferred first; `survey` must be asked for by name."""
        return [name for name in target.engines if name in ENGINES and name != "survey"]

    def lower(self, model: ir.Model, target: Target, engine: str, ctx: Context) -> Payload:
        """Lower a quantized model; `model` is not edited.

        Raises:
            TargetError: unknown engine; `event-does-not-fit`, the device cannot hold the network.
            UnsupportedOp: `event-unsupported`, the first node that no event layer computes, and why;
                `event-mode`, a layer that the mode does not take.
        """
        from .lower import lower

        _known(engine)
        ctx.check_cancelled()
        if engine in PLACED:
            from .mapping.lower import lower as lower_placed

            return lower_placed(model, target, engine, ctx)
        return lower(model, target, engine, ctx)

    def load(
        self, folder: Path, engine: str, options: Mapping[str, object], threads: int | None
    ) -> Executable:
        """Load a payload from an artifact's folder; one thread runs it whatever `threads` says.

        Raises:
            ArtifactError: the payload is missing or damaged.
            TargetError: this CPU lacks what the code uses.
        """
        from .engine import load

        _known(engine)
        return load(folder, "graded" if engine in PLACED else engine, options)


def _known(engine: str) -> None:
    if engine not in ENGINES:
        raise TargetError(
            "engine-unknown", f"backend event has no engine {engine!r}", nearest(engine, list(ENGINES))
        )


def _is_constant(node: ir.Node) -> bool:
    """Tell whether a node works on parameters only, all of which are folded."""
    from ...compiler.ops.constants import constant_expression

    return node.op_type == "Constant" or all(constant_expression(v) is not None for v in node.outputs)
