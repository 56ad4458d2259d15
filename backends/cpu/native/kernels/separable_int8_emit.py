"""Writes the TIR of a depthwise and a pointwise convolution in one; see `separable_int8.py`. Needs TVM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt, Var

from . import conv_int8_emit as pointwise
from . import depthwise_int8_emit as depthwise
from .emit import allocate, module
from .int8_emit import bind, i64, loop, smaller, tasks
from .int8_tiles import SLACK_BYTES
from .separable_int8 import SeparableInt8Spec

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa


def build_separable(spec: SeparableInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    between = tirx.decl_buffer((spec.rows * spec.first.y.row + SLACK_BYTES,), "uint8", "between")
    first = depthwise.depthwise_frame(spec.first, isa, between)
    second = pointwise.conv_frame(spec.second, isa, between)
    residual = [second.residual] if second.residual is not None else []
    own = [first.weights, first.bias, first.factor]
    parameters = [first.x, *residual, *own, second.weights, second.bias, second.factor, second.y]

    def body(begin: Var, end: Var) -> list[Stmt]:
        registers = [between, *first.sums, *second.sums]
        return [*allocate(registers), tasks(begin, end, lambda task: _block(spec, first, second, task))]

    return module(parameters, body)


def _block(spec: SeparableInt8Spec, first: depthwise.Frame, second: pointwise.Frame, task: Var) -> list[Stmt]:
    """Return a block of rows: all of the depthwise convolution, then all of the pointwise one."""
    image, rows = spec.first.y, spec.rows
    per_image = -(-image.height // rows)
    n, one = bind("n", tirx.floordiv(task, i64(per_image)))
    index = tirx.floormod(task, i64(per_image)) * i64(rows)
    top, two = bind("top", smaller(index, image.height - rows))
    base, three = bind("start", n * i64(image.plane) + top * i64(image.row))
    own, frame = replace(first, base=base), replace(second, base=base)
    many, tile, start = rows, second.spec.tile.rows, top
    pixel, four = bind("pixel", (n * i64(image.height) + top) * i64(image.width))
    if spec.flat:
        n_of, many, start = i64(0), rows * image.width, pixel
    else:
        n_of = n
    return [
        one, two, three, four,
        _rows("d", rows, spec.first.tile[0], top, lambda row: depthwise.row_of_tiles(own, n, row)),
        _rows("p", many, tile, start, lambda row: pointwise.row_of_tiles(frame, n_of, row)),
    ]  # fmt: skip


def _rows(name: str, rows: int, tile: int, top: Expr, write: Callable[[Expr], list[Stmt]]) -> Stmt:
    """Return the loop over rows of tiles within a block."""

    def body(index: Var) -> list[Stmt]:
        row, statement = bind("row", top + smaller(index * i64(tile), rows - tile))
        return [statement, *write(row)]

    return loop(name, -(-rows // tile), body)
