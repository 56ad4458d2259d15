"""Writes TIR by hand, statement by statement: vectors, register tiles and loops exactly as meant.

The binary and low-bit kernels need masks, bit planes and tiles whose edges differ, which schedules of a
tensor expression do not give. Needs TVM; only code that compiles imports this module.

A register tile is one small buffer per accumulator (`register`): TVM places buffers of scope `global` and at
most 1 KiB on the stack, from where LLVM lifts them into registers; scope `local` and larger buffers become
calls of the run time's allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import tvm
from tvm import ir, tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt, Var

Index: TypeAlias = Expr | int


def const(value: int, dtype: str = "int32") -> Expr:
    """Return an integer constant."""
    return tirx.IntImm(dtype, value)


def splat(value: Expr, lanes: int) -> Expr:
    """Return a vector that holds `value` in every lane."""
    return tirx.Broadcast(value, lanes)


def parameter(name: str, dtype: str, shape: Sequence[int]) -> Buffer:
    """Return a buffer that the kernel gets from its caller, 64-byte aligned."""
    return tirx.decl_buffer(tuple(shape), dtype, name)


def register(name: str, dtype: str, lanes: int) -> Buffer:
    """Return a buffer of one vector that ends in registers; at most 1 KiB."""
    return tirx.decl_buffer((lanes,), dtype, name, scope="global")


def allocate(buffers: Sequence[Buffer]) -> list[Stmt]:
    """Return the statements that allocate `buffers` for the rest of the sequence they stand in."""
    return [tirx.AllocBuffer(buffer) for buffer in buffers]


def load(buffer: Buffer, *index: Index, lanes: int = 1) -> Expr:
    """Return one element, or `lanes` elements along the last axis from `index` on."""
    return tirx.BufferLoad(buffer, _indices(index, lanes))


def store(buffer: Buffer, value: Expr, *index: Index, lanes: int = 1) -> Stmt:
    """Return the statement that stores one element, or `lanes` along the last axis from `index` on."""
    return tirx.BufferStore(buffer, value, _indices(index, lanes))


def _indices(index: Sequence[Index], lanes: int) -> list[Expr]:
    exact = [_expression(i) for i in index]
    return [*exact[:-1], tirx.Ramp(exact[-1], const(1), lanes)] if lanes > 1 else exact


def _expression(index: Index) -> Expr:
    return const(index) if isinstance(index, int) else index


def loop(name: str, begin: Index, extent: Index, body: Callable[[Expr], Sequence[Stmt]]) -> Stmt:
    """Return a loop over `begin <= i < begin + extent`; `body` gets i.

    The loop itself starts at 0: TVM 0.27 moves loops there and forgets the bounds of inner loops that
    depend on i.
    """
    variable = Var(name, "int32")
    first, count = (_expression(i) for i in (begin, extent))
    body_of = variable if isinstance(begin, int) and begin == 0 else first + variable
    return tirx.For(variable, const(0), count, tirx.ForKind.SERIAL, sequence(body(body_of)))


def sequence(statements: Sequence[Stmt]) -> Stmt:
    """Return the statements as one; TVM refuses a sequence of none or of a single one."""
    if not statements:
        return tirx.Evaluate(0)
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def reinterpret(dtype: str, value: Expr) -> Expr:
    """Return the bits of `value` as `dtype`; each lane of a comparison is one bit, lane 0 the lowest."""
    # The checking constructor counts eight bits per bool lane; LLVM's bitcast has one.
    return ir.Call(ir.Op.get("tirx.reinterpret"), [value], ret_ty=ir.PrimType(dtype))


def llvm(name: str, dtype: str, *arguments: Expr) -> Expr:
    """Return a call of an LLVM intrinsic without side effects."""
    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)


def prefetch(buffer: Buffer, index: Expr) -> Stmt:
    """Return the statement that asks for the cache line of an element read later; any index will do."""
    address = tirx.address_of(load(buffer, index))
    reading, keep, of_data = const(0), const(2), const(1)
    return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, reading, keep, of_data))


def module(parameters: Sequence[Buffer], body: Callable[[Var, Var], Sequence[Stmt]]) -> tvm.IRModule:
    """Return a module whose function `main` takes `parameters`, then int32 `begin` and `end`."""
    begin, end = Var("begin", "int32"), Var("end", "int32")
    function = tirx.PrimFunc([*parameters, begin, end], sequence(body(begin, end)))
    return tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
