"""Transforms of Winograd's F(4x4, 3x3) on grids of register vectors. Needs TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt

from .emit import allocate, load, register, store
from .math_f32 import lit
from .window import LANES

Grid = list[list[Buffer]]


def grid(name: str, rows: int, columns: int) -> Grid:
    """Return rows x columns registers."""
    return [[register(f"{name}{i}{j}", "float32", LANES) for j in range(columns)] for i in range(rows)]


def allocate_grids(*grids: Grid) -> list[Stmt]:
    """Return the allocations of all registers."""
    return allocate([cell for grid in grids for row in grid for cell in row])


def get(cell: Buffer) -> Expr:
    """Return the value of a register."""
    return load(cell, 0, lanes=LANES)


def setter(grid: Grid, column: int) -> Callable[[int, Expr], Stmt]:
    """Return what stores into a row of a column."""
    return lambda row, value: store(grid[row][column], value, 0, lanes=LANES)


def turn(d: Sequence[Expr], put: Callable[[int, Expr], Stmt]) -> list[Stmt]:
    """Return B^T d, factored so that it takes 14 operations."""
    two, four, minus4, minus5 = (lit(value, LANES) for value in (2.0, 4.0, -4.0, -5.0))
    a, b = d[2] * minus4 + d[4], d[1] * minus4 + d[3]
    c, e = d[4] - d[2], two * (d[3] - d[1])
    ends = (d[2] * minus5 + (four * d[0] + d[4]), d[3] * minus5 + (four * d[1] + d[5]))
    return [put(i, value) for i, value in enumerate((ends[0], a + b, a - b, c + e, c - e, ends[1]))]


def back_values(m: Sequence[Expr]) -> list[Expr]:
    """Return A^T m, four values."""
    two, four, eight = (lit(value, LANES) for value in (2.0, 4.0, 8.0))
    p, q, r, t = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [m[0] + p + r, two * t + q, four * r + p, eight * t + q + m[5]]


def back(m: Sequence[Expr], put: Callable[[int, Expr], Stmt]) -> list[Stmt]:
    """Return the stores of A^T m."""
    return [put(i, value) for i, value in enumerate(back_values(m))]
