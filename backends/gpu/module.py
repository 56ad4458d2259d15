"""From a model to device functions and the calls between them, through TVM's Relax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.errors import UnsupportedOp
from .program import Step, Tensor
from .views import is_view

if TYPE_CHECKING:
    import tvm
    from tvm import relax, tirx


@dataclass(frozen=True)
class Calls:
    """A model as calls of functions.

    Attributes:
        functions: name -> unscheduled function.
        steps: calls, in running order.
        tensors: every buffer by name.
        constants: buffer name -> array.
        inputs, outputs: buffer names in the model's order.
    """

    functions: Mapping[str, tirx.PrimFunc]
    steps: tuple[Step, ...]
    tensors: Mapping[str, Tensor]
    constants: Mapping[str, npt.NDArray[np.generic]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def relax_module(model: ir.Model) -> tvm.IRModule:
    """Emit a model and fuse its operators; `model` is not edited.

    Raises:
        UnsupportedOp: `gpu-unsupported`, naming the node, or `gpu-shape`.
    """
    import tvm
    from onnx_ir.passes.common import RemoveUnusedNodesPass
    from tvm import relax

    from ...compiler.ops import expand_custom_ops
    from ..reference.regions import use_integer_layers
    from .emit.attention import use_attention
    from .emit.lowbit import use_lowbit_products
    from .emit.lowbit_binary import use_binary_layers
    from .emit.lowbit_blocks import use_blocks
    from .emit.lowbit_sparse import use_sparse_products
    from .emit.real_products import use_real_products
    from .emit.rules import RULES
    from .emit.walk import emit_model
    from .narrow import dequantize_late
    from .signed import keep_signed

    draft = model.clone()
    use_integer_layers(draft)
    use_attention(draft)
    use_binary_layers(draft)
    use_blocks(draft)
    use_real_products(draft)
    use_lowbit_products(draft)
    use_sparse_products(draft)
    expand_custom_ops(draft)
    RemoveUnusedNodesPass()(draft)
    keep_signed(draft)
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
    ]
    grouped = dequantize_late(tvm.transform.Sequential(passes)(emit_model(draft, RULES)))
    fuse = [relax.transform.FuseTIR(), relax.transform.DeadCodeElimination()]
    return tvm.transform.Sequential(fuse)(grouped)


def calls_of(module: tvm.IRModule) -> Calls:
    """Read the calls off a fused module's `main`.

    Raises:
        UnsupportedOp: `gpu-unsupported`: an output is constant, so no kernel writes it.
    """
    from tvm import tirx

    main = module["main"]
    reader = _Reader(_views(module), _returned(main))
    inputs = tuple(reader.bind(parameter) for parameter in main.params)
    for block in main.body.blocks:
        for binding in block.bindings:
            reader.read(binding)
    called = {step.function for step in reader.steps}
    functions = {
        g.name_hint: f
        for g, f in module.functions.items()
        if isinstance(f, tirx.PrimFunc) and g.name_hint in called
    }
    outputs = tuple(reader.names(main.body.body))
    for position, name in enumerate(outputs):
        if name in reader.constants:
            raise UnsupportedOp(
                "gpu-unsupported",
                f"gpu: output {position} does not depend on any input",
                "use --fallback cpu, or take it out of the model",
            )
    return Calls(functions, tuple(reader.steps), reader.tensors, reader.constants, inputs, outputs)


def _views(module: tvm.IRModule) -> frozenset[str]:
    """Return the functions that leave every element where it is: their results are their inputs' memory."""
    from tvm import tirx

    return frozenset(
        g.name_hint for g, f in module.functions.items() if isinstance(f, tirx.PrimFunc) and is_view(f)
    )


def _returned(main: relax.Function) -> frozenset[relax.Var]:
    """Return the variables that a function returns, alone or in a tuple."""
    from tvm import relax

    tuples = [main.body.body]
    tuples += [binding.value for block in main.body.blocks for binding in block.bindings]
    fields = [field for value in tuples if isinstance(value, relax.Tuple) for field in value.fields]
    return frozenset(v for v in (main.body.body, *fields) if isinstance(v, relax.Var))


class _Reader:
    """Collects steps and buffers, binding by binding.

    Args:
        views: functions that only name memory anew.
        returned: what the model returns; it has memory of its own, with an output's shape.
    """

    def __init__(self, views: frozenset[str], returned: frozenset[relax.Var]) -> None:
        self._views, self._returned = views, returned
        self.steps: list[Step] = []
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, npt.NDArray[np.generic]] = {}
        self._bound: dict[object, tuple[str, ...]] = {}

    def bind(self, variable: relax.Var) -> str:
        name = self._new(variable.ty)
        self._bound[variable] = (name,)
        return name

    def _new(self, kind: relax.TensorType) -> str:
        name = f"b{len(self.tensors)}"
        self.tensors[name] = Tensor(name, tuple(int(size) for size in kind.shape), str(kind.dtype))
        return name

    def names(self, expr: relax.Expr) -> tuple[str, ...]:
        """Return the buffers behind an expression."""
        import tvm
        from tvm import relax

        if isinstance(expr, relax.Tuple):
            return tuple(name for item in expr.fields for name in self.names(item))
        if isinstance(expr, relax.TupleGetItem):
            return (self.names(expr.tuple_value)[expr.index],)
        if isinstance(expr, tvm.ir.GenericConst):
            return (self._constant(expr),)
        return self._bound[expr]

    def _constant(self, expr: tvm.ir.GenericConst) -> str:
        name = self._new(expr.ty)
        self.constants[name] = expr.value.numpy()
        return name

    def read(self, binding: relax.VarBinding) -> None:
        """Take a call over as a step; anything else only names buffers anew."""
        from tvm import relax

        value = binding.value
        if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
            fields = (
                binding.var.ty.fields if isinstance(binding.var.ty, relax.TupleType) else [binding.var.ty]
            )
            outputs = tuple(self._new(field) for field in fields)
            inputs = tuple(name for item in value.args[1].fields for name in self.names(item))
            if value.args[0].name_hint in self._views and binding.var not in self._returned:
                self._bound[binding.var] = inputs
                return
            self.steps.append(Step(value.args[0].name_hint, inputs, outputs))
            self._bound[binding.var] = outputs
        else:
            self._bound[binding.var] = self.names(value)
