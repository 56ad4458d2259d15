"""Dequantizers move from the end of the kernel that makes a value to the kernels that read it.

TVM's fusion leaves a DequantizeLinear with whatever made the integers, so that a residual branch, or what is
pooled next, crosses memory in float32: four times the bytes. A dequantizer computes every element alone, so
where it is computed changes no bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import TYPE_CHECKING, cast

from .views import is_view

if TYPE_CHECKING:
    import tvm
    from tvm import ir as tvm_ir
    from tvm import relax, tirx

# Name of what the emitter makes of DequantizeLinear (emit/quantized.py).
DEQUANTIZE = "dequantize"
# Of TVM's patterns of operators: products and the like; from opaque ones on nobody looks inside.
_ANCHOR, _OPAQUE = 4, 7
# A window or a softmax reads an element several times, a product hundreds of times.
_MOST_READS = 16


@dataclass
class _Operator:
    """A call of a function, whichever kernel it is in.

    Attributes:
        result: what the call is bound to.
        function: what is called.
        args: variables and constants of `main`, or results of operators before.
    """

    result: relax.Var
    function: tvm_ir.GlobalVar
    args: list[relax.Expr]


@dataclass
class _Kernel:
    """A binding of `main`.

    Attributes:
        result: what it gives.
        value: as it was.
        operators: in running order; none where they are not plain calls.
        edited: whether they are others than those of `value`.
    """

    result: relax.Var
    value: relax.Expr
    operators: list[_Operator]
    edited: bool = False


def dequantize_late(module: tvm.IRModule) -> tvm.IRModule:
    """Return a module of fused groups in which no kernel ends in a dequantizer that its readers can have."""
    from tvm import relax

    kernels = [_kernel(module, b) for block in module["main"].body.blocks for b in block.bindings]
    readers: dict[relax.Var, list[_Kernel]] = {}
    for kernel in kernels:
        for variable in relax.analysis.free_vars(kernel.value):
            readers.setdefault(variable, []).append(kernel)
    for kernel in kernels:
        _move(module, kernel, readers.get(kernel.result, []))
    return _rebuilt(module, kernels) if any(kernel.edited for kernel in kernels) else module


def _kernel(module: tvm.IRModule, binding: relax.Binding) -> _Kernel:
    """Return a binding with its operators in terms of `main`."""
    from tvm import relax

    result, value = binding.var, binding.value
    if _is_plain(value):
        return _Kernel(result, value, [_operator(result, value, {})])
    function = _group(module, value)
    inner = [] if function is None else [b for block in function.body.blocks for b in block.bindings]
    if function is None or not all(_is_plain(b.value) for b in inner):
        return _Kernel(result, value, [])
    known: dict[relax.Var, relax.Expr] = dict(zip(function.params, value.args, strict=True))
    operators = []
    for b in inner:
        known[b.var] = result if b.same_as(inner[-1]) else relax.DataflowVar(b.var.name, b.var.ty)
        operators.append(_operator(known[b.var], b.value, known))
    return _Kernel(result, value, operators)


def _is_plain(value: relax.Expr) -> bool:
    """Say whether an expression calls a function on tensors and gives one tensor."""
    from tvm import relax

    called = isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir"
    return called and len(value.args) == 2 and isinstance(value.ty, relax.TensorType)


def _group(module: tvm.IRModule, value: relax.Expr) -> relax.Function | None:
    """Return the group that an expression calls."""
    import tvm
    from tvm import relax

    if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.GlobalVar):
        return None
    return cast("relax.Function", module[value.op])


def _operator(result: relax.Expr, call: relax.Call, known: Mapping[relax.Var, relax.Expr]) -> _Operator:
    function, operands = call.args
    return _Operator(cast("relax.Var", result), function, [known.get(arg, arg) for arg in operands.fields])


def _move(module: tvm.IRModule, kernel: _Kernel, readers: Sequence[_Kernel]) -> None:
    """Move the dequantizer at a kernel's end into its readers, if all of them take it."""
    from tvm import relax

    if not readers or not kernel.operators or not _narrows(kernel.operators):
        return
    last = kernel.operators[-1]
    if not all(_takes(module, reader, last.result) for reader in readers):
        return
    kernel.result, kernel.edited = cast("relax.Var", last.args[0]), True
    kernel.operators.pop()
    for reader in readers:
        own = relax.DataflowVar(last.result.name, last.result.ty)
        for operator in reader.operators:
            operator.args = [own if arg.same_as(last.result) else arg for arg in operator.args]
        reader.operators.insert(0, _Operator(own, last.function, list(last.args)))
        reader.edited = True


def _narrows(operators: Sequence[_Operator]) -> bool:
    """Say whether operators end in a dequantizer of narrower integers, their own or alone in its kernel."""
    from tvm import DataType

    *before, last = operators
    if not last.function.name_hint.startswith(DEQUANTIZE):
        return False
    source = last.args[0]
    own = not before or any(operator.result.same_as(source) for operator in before)
    return own and DataType(source.ty.dtype).bits < DataType(last.result.ty.dtype).bits


def _takes(module: tvm.IRModule, reader: _Kernel, operand: relax.Var) -> bool:
    """Say whether a kernel can dequantize what it reads: it computes something and reads that a few times."""
    inside = [op for op in reader.operators if any(arg.same_as(operand) for arg in op.args)]
    if not inside or all(is_view(module[op.function]) for op in reader.operators):
        return False
    most = _MOST_READS * prod(int(size) for size in operand.ty.shape)
    return all(_reads(module[op.function], len(op.args)) <= most for op in inside)


def _reads(function: tirx.PrimFunc, operands: int) -> float:
    """Return how many elements a function reads of an operand, at most; of a product, no end of them."""
    from .schedules.gemm_form import leaf_blocks

    pattern = int(function.attrs["op_pattern"])
    if pattern >= _OPAQUE or (pattern == _ANCHOR and operands > 1):
        return inf
    return sum(prod(int(axis.dom.extent) for axis in block.iter_vars) for block in leaf_blocks(function))


def _rebuilt(module: tvm.IRModule, kernels: Sequence[_Kernel]) -> tvm.IRModule:
    """Return the module with the kernels as they are now."""
    import tvm
    from tvm import relax

    main = module["main"]
    others = {g: f for g, f in module.functions.items() if g.name_hint != "main"}
    builder = relax.BlockBuilder(tvm.IRModule(others))
    bindings = [
        relax.VarBinding(kernel.result, _value(builder, kernel) if kernel.edited else kernel.value)
        for kernel in kernels
        if kernel.operators or not kernel.edited
    ]
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], main.body.body)
    builder.add_func(relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs), "main")
    # Groups that nobody calls any more would be fused all the same.
    return relax.transform.DeadCodeElimination()(relax.transform.Normalize()(builder.get()))


def _value(builder: relax.BlockBuilder, kernel: _Kernel) -> relax.Expr:
    """Return the call of an edited kernel's operators, several of them as a new group."""
    from tvm import relax

    if len(kernel.operators) == 1:
        return _call(kernel.operators[0], {})
    parameters = _parameters(kernel.operators)
    known: dict[relax.Expr, relax.Expr] = dict(parameters)
    own, name = relax.BlockBuilder(), _name(kernel.operators)
    with own.function(name, list(parameters.values()), {"Primitive": True}, private=True):
        with own.dataflow():
            for operator in kernel.operators[:-1]:
                known[operator.result] = own.emit(_call(operator, known))
            result = own.emit_output(_call(kernel.operators[-1], known))
        own.emit_func_output(result)
    group = builder.add_func(own.get()[name], name)
    return relax.Call(group, list(parameters), ret_ty=kernel.result.ty)


def _parameters(operators: Sequence[_Operator]) -> dict[relax.Expr, relax.Var]:
    """Return a parameter for everything that operators read from outside."""
    from tvm import relax

    inside = {operator.result for operator in operators}
    outside = dict.fromkeys(arg for operator in operators for arg in operator.args if arg not in inside)
    return {arg: relax.Var(f"p{position}", arg.ty) for position, arg in enumerate(outside)}


def _call(operator: _Operator, known: Mapping[relax.Expr, relax.Expr]) -> relax.Call:
    from tvm import relax

    args = relax.Tuple([known.get(arg, arg) for arg in operator.args])
    return relax.call_tir(operator.function, args, operator.result.ty)


def _name(operators: Sequence[_Operator]) -> str:
    """Return a group's name as TVM's fusion makes them."""
    return "_".join(["fused", *(operator.function.name_hint for operator in operators)])
