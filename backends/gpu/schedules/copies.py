"""What TVM leaves of the asynchronous copies that a schedule asked for, as `cp.async`.

Inside a group of copies TVM 0.27 turns `shared = data` into `cp.async`, and `shared = data or 0` where 0 is a
float. Choices between integers, pads that hold a zero point, and vectors that it does not see it leaves as
loads that threads wait for. Here each becomes a copy where there is data, a store of the constant elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .gemm_form import element_bytes

if TYPE_CHECKING:
    import tvm
    import tvm_ffi
    from tvm import tirx

_GROUP = "async_commit_queue_scope"
_COPY, _CHOICE = "tirx.s_tir.cp_async_raw", "prim.if_then_else"
# Bytes that cp.async moves.
_BYTES = (4, 8, 16)


def with_copies(module: tvm.IRModule) -> tvm.IRModule:
    """Return a lowered module whose groups of copies wait for nothing; other statements are as they were."""
    import tvm
    import tvm_ffi
    from tvm import tirx

    def group(found: tirx.AttrStmt, mutator: tvm_ffi.StructuralMutator) -> tirx.Stmt:
        if found.attr_key != _GROUP:
            return mutator.default_mutate(found)
        return tvm_ffi.structural_mutate(found, [(tirx.For, _vector), (tirx.BufferStore, _copied)])

    functions = {}
    for name, function in module.functions.items():
        body = tvm_ffi.structural_mutate(function.body, [(tirx.AttrStmt, group)])
        functions[name] = function.with_body(body)
    return tvm.IRModule(functions, attrs=module.attrs)


def _vector(loop: tirx.For, mutator: tvm_ffi.StructuralMutator) -> tirx.Stmt:
    """Return a loop over elements next to each other, all under the same conditions, as a copy."""
    return _as_vector(loop) or mutator.default_mutate(loop)


def _as_vector(loop: tirx.For) -> tirx.Stmt | None:
    """Return what does at once what a loop does element by element; None for other loops."""
    from tvm import tirx

    *names, store = loop.body.seq if isinstance(loop.body, tirx.SeqStmt) else [loop.body]
    fixed = all(isinstance(name, tirx.Bind) and not _uses(name.value, loop.loop_var) for name in names)
    if not fixed or not isinstance(store, tirx.BufferStore):
        return None
    lanes = int(loop.extent)
    value = _widened(store.value, loop.loop_var, lanes)
    index = _ramp(store.indices[0], loop.loop_var, lanes)
    if value is None or index is None:
        return None
    written = _written(tirx.BufferStore(store.buffer, value, [index]), value)
    return tirx.SeqStmt([*names, written]) if names and written is not None else written


def _widened(value: tirx.Expr, variable: tirx.Var, lanes: int) -> tirx.Expr | None:
    """Return what a loop of stores writes, as a vector; None where a condition changes within it."""
    from tvm import ir, tirx

    if isinstance(value, ir.TensorLoad):
        index = _ramp(value.indices[0], variable, lanes)
        return None if index is None else tirx.BufferLoad(value.source, [index])
    if isinstance(value, tirx.IntImm | tirx.FloatImm):
        return tirx.Broadcast(value, lanes)
    if not isinstance(value, ir.Call) or value.op.name != _CHOICE:
        return None
    condition, *both = value.args
    parts = [_widened(part, variable, lanes) for part in both]
    if None in parts or _uses(condition, variable):
        return None
    return tirx.if_then_else(condition, *parts)


def _ramp(index: tirx.Expr, variable: tirx.Var, lanes: int) -> tirx.Expr | None:
    """Return an index as a vector; None where the loop does not walk from element to element."""
    from tvm import tirx

    first = _at_zero(index, variable)
    return None if first is None else tirx.Ramp(first, 1, lanes)


def _at_zero(index: tirx.Expr, variable: tirx.Var) -> tirx.Expr | None:
    """Return `index - variable` where the variable is a term of the sum, and only one."""
    from tvm import tirx

    if variable.same_as(index):
        return tirx.const(0, str(variable.ty))
    if not isinstance(index, tirx.Add | tirx.Sub):
        return None
    if isinstance(index, tirx.Add) and not _uses(index.a, variable):
        rest = _at_zero(index.b, variable)
        return None if rest is None else index.a + rest
    rest = None if _uses(index.b, variable) else _at_zero(index.a, variable)
    if rest is None:
        return None
    return rest + index.b if isinstance(index, tirx.Add) else rest - index.b


def _uses(value: tirx.Expr, variable: tirx.Var) -> bool:
    from tvm.tirx.analysis import undefined_vars

    return any(variable.same_as(used) for used in undefined_vars(value))


def _copied(store: tirx.BufferStore, mutator: tvm_ffi.StructuralMutator) -> tirx.Stmt:
    """Return a store as copies under its conditions, or as it is."""
    return _written(store, store.value) or store


def _written(store: tirx.BufferStore, value: tirx.Expr) -> tirx.Stmt | None:
    """Return what writes `value` in a store's place; None where it is no data, constant or choice of such."""
    from tvm import ir, tirx

    if isinstance(value, ir.TensorLoad):
        return _copy(store, value)
    if isinstance(value, tirx.Broadcast):
        return tirx.BufferStore(store.buffer, value, store.indices)
    if not isinstance(value, ir.Call) or value.op.name != _CHOICE:
        return None
    condition, inside, outside = value.args
    if isinstance(inside, ir.TensorLoad) and _is_zero(outside):
        return _copy(store, inside, condition)
    first, second = _written(store, inside), _written(store, outside)
    return None if first is None or second is None else tirx.IfThenElse(condition, first, second)


def _is_zero(value: tirx.Expr) -> bool:
    from tvm import tirx

    inner = value.value if isinstance(value, tirx.Broadcast) else value
    return isinstance(inner, tirx.IntImm | tirx.FloatImm) and inner.value == 0


def _copy(
    store: tirx.BufferStore, data: tirx.BufferLoad, condition: tirx.Expr | None = None
) -> tirx.Stmt | None:
    """Return the copy of a stretch of memory, zeros where the condition is not met; None of other sizes."""
    from tvm import tirx
    from tvm.ir import Op

    target, source = _stretch(store.indices[0]), _stretch(data.indices[0])
    if target is None or source is None:
        return None
    count = target[1] * element_bytes(str(data.source.dtype))
    if count not in _BYTES:
        return None
    places = (store.buffer.data, target[0], data.source.data, source[0])
    conditions = () if condition is None else (condition,)
    kind = str(store.buffer.dtype)
    return tirx.Evaluate(tirx.call_intrin(kind, Op.get(_COPY), *places, count, *conditions))


def _stretch(index: tirx.Expr) -> tuple[tirx.Expr, int] | None:
    """Return where elements next to each other begin, and how many they are; None where they are not."""
    from tvm import tirx

    if isinstance(index, tirx.Ramp):
        return (index.base, int(index.lanes)) if int(index.stride) == 1 else None
    if isinstance(index, tirx.Add) and isinstance(index.b, tirx.Broadcast):
        found = _stretch(index.a)
        return None if found is None else (found[0] + index.b.value, found[1])
    return None
