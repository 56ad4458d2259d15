"""Writes the TIR of a quantized matrix product of few rows; `gemm_int8.py` says how. Needs TVM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt, Var

from .conv_int8_emit import store
from .emit import allocate, module, parameter, register
from .gemm_int8 import GemmInt8Spec
from .int8_emit import LANES, bind, dot, f32, i32, i64, loop, put, quad, rounded, tasks, vector

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa


def build_gemv(spec: GemmInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`, one group of outputs per task."""
    nv, parts, pitch = spec.group, spec.parts, spec.vectors * LANES
    x = parameter("x", "uint8", [spec.rows * spec.x_pitch])
    weights = parameter("weights", "int8", [spec.vectors * spec.steps * 64])
    bias, factor = parameter("bias", "int32", [pitch]), parameter("factor", "float32", [pitch])
    offset = parameter("offset", "float32", [pitch])
    y = parameter("y", "uint8" if spec.real is None else "float32", [spec.rows * pitch])
    sums = [[[register(f"sum{r}_{p}_{v}", "int32", LANES) for v in range(nv)] for p in range(parts)]
            for r in range(spec.rows)]  # fmt: skip
    each = spec.steps // parts

    def step(task: Var, k: Var) -> list[Stmt]:
        body: list[Stmt] = []
        for p in range(parts):
            at = k + i64(p * each)
            first = (task * i64(spec.steps) + at) * i64(nv * 64)
            data = []
            for r in range(spec.rows):
                name, statement = bind("data", quad(x, i64(r * spec.x_pitch) + at * i64(4)))
                data.append(name)
                body.append(statement)
            for v in range(nv):
                lanes, statement = bind("weight", vector(weights, first + i64(v * 64), 64))
                body.append(statement)
                for r in range(spec.rows):
                    held = sums[r][p][v]
                    body.append(put(held, dot(isa, vector(held, 0), data[r], lanes), 0))
        return body

    def scaled(r: int, v: int, first: Expr) -> Expr:
        total = vector(sums[r][0][v], 0)
        for p in range(1, parts):
            total = total + vector(sums[r][p][v], 0)
        return tirx.Cast("float32x16", total) * vector(factor, first + i64(v * LANES))

    def group(task: Var) -> list[Stmt]:
        first = task * i64(nv * LANES)
        body: list[Stmt] = []
        for r in range(spec.rows):
            for p in range(parts):
                starts = [vector(bias, first + i64(v * LANES)) if p == 0 else i32(0) for v in range(nv)]
                body += [put(sums[r][p][v], starts[v], 0) for v in range(nv)]
        body.append(loop("k", each, lambda k: step(task, k)))
        for r in range(spec.rows):
            values = [scaled(r, v, first) for v in range(nv)]
            if spec.real is not None:
                body += _reals(spec.real, y, offset, values, first, r * pitch)
                continue
            steps = [rounded(isa, value, small=spec.small) for value in values]
            limits = (spec.zero, spec.low, spec.high)
            whole = nv // 4 * 4
            for part, ordered in ((range(whole), True), (range(whole, nv), False)):
                pieces = [(v * LANES, steps[v]) for v in part]
                body += store(isa, y, pieces, first + i64(r * pitch), limits, ordered)
        return body

    def body(begin: Var, end: Var) -> list[Stmt]:
        every = [held for row in sums for part in row for held in part]
        return [*allocate(every), tasks(begin, end, group)]

    constants = [weights, bias, factor, *([offset] if spec.real is not None else [])]
    return module([x, *constants, y], body)


def _reals(
    limits: tuple[float, float], y: Buffer, offset: Buffer, values: Sequence[Expr], first: Expr, row: int
) -> list[Stmt]:
    """Return the stores of float results."""
    body: list[Stmt] = []
    for v, value in enumerate(values):
        real = value + vector(offset, first + i64(v * LANES))
        real = tirx.Max(real, f32(limits[0])) if limits[0] > -math.inf else real
        real = tirx.Min(real, f32(limits[1])) if limits[1] < math.inf else real
        body.append(put(y, real, first + i64(row + v * LANES)))
    return body
