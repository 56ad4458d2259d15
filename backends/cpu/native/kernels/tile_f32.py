"""Register tiles of float32 sums, and loops over the rows of windows, as TIR. Needs TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt, Var

from .after_f32 import After
from .emit import Index, load, loop, parameter, register, sequence, splat, store
from .math_f32 import finish, lit
from .window import LANES, Piece, Window


@dataclass(frozen=True)
class Tile:
    """Accumulators of `rows` x `columns` vectors."""

    cells: tuple[tuple[Buffer, ...], ...]

    @classmethod
    def of(cls, rows: int, columns: int) -> Tile:
        """Make the accumulators of a tile; they still have to be allocated."""
        return cls(
            tuple(
                tuple(register(f"acc{i}_{j}", "float32", LANES) for j in range(columns)) for i in range(rows)
            )
        )

    @property
    def buffers(self) -> list[Buffer]:
        """All accumulators."""
        return [cell for row in self.cells for cell in row]

    def fill(self, size: int, value: Callable[[int], Expr]) -> list[Stmt]:
        """Set the first `size` rows to `value(column)`."""
        return [self._put(cell, value(j)) for row in self.cells[:size] for j, cell in enumerate(row)]

    def add(self, i: int, j: int, left: Expr, right: Expr) -> Stmt:
        """Add a product to one accumulator."""
        cell = self.cells[i][j]
        return self._put(cell, left * right + load(cell, 0, lanes=LANES))

    def products(
        self, rows: Sequence[int], left: Callable[[int], Expr], right: Callable[[int], Expr]
    ) -> list[Stmt]:
        """Add the outer product of the scalars `left(row)` and the vectors `right(column)`."""
        return [
            self.add(i, j, splat(left(i), LANES), right(j)) for i in rows for j in range(len(self.cells[0]))
        ]

    def update(self, i: int, j: int, change: Callable[[Expr], Expr]) -> Stmt:
        """Replace one accumulator by `change` of itself."""
        cell = self.cells[i][j]
        return self._put(cell, change(load(cell, 0, lanes=LANES)))

    def value(self, i: int, j: int) -> Expr:
        """Return one accumulator."""
        return load(self.cells[i][j], 0, lanes=LANES)

    @staticmethod
    def _put(cell: Buffer, value: Expr) -> Stmt:
        return store(cell, value, 0, lanes=LANES)


@dataclass(frozen=True)
class Output:
    """Where results go: [N, H, W, Cp] buffers of the output and, maybe, bias and residual."""

    to: Buffer
    after: After
    bias: Buffer | None = None
    residual: Buffer | None = None

    def start(self, channel: Expr) -> Expr:
        """Return what a sum starts from."""
        return lit(0.0, LANES) if self.bias is None else load(self.bias, channel, lanes=LANES)

    def put(self, value: Expr, *place: Index) -> Stmt:
        """Store a finished sum at [n, y, x, channel]."""
        other = None if self.residual is None else load(self.residual, *place, lanes=LANES)
        return store(self.to, finish(value, self.after, other, LANES), *place, lanes=LANES)


def optional(wanted: bool, name: str, shape: Sequence[int]) -> Buffer | None:
    """Return a float32 parameter if it is wanted."""
    return parameter(name, "float32", shape) if wanted else None


def present(*buffers: Buffer | None) -> list[Buffer]:
    """Return the buffers that are there."""
    return [buffer for buffer in buffers if buffer is not None]


def kernel_rows(window: Window, y: Expr, body: Callable[[Expr, Expr], Sequence[Stmt]]) -> list[Stmt]:
    """Loop over the kernel rows of output row `y` that read data; `body(kernel row, input row)`."""
    kernel, stride, dilation, top = window.kernel[0], window.strides[0], window.dilations[0], window.pads[0]
    if kernel == 1 and window.rows_inside:
        return list(body(tirx.const(0, "int32"), y * stride))
    first, count = row_bounds(window, y)
    return [loop("r", first, count, lambda r: body(r, y * stride - top + r * dilation))]


def row_bounds(window: Window, y: Expr) -> tuple[Index, Index]:
    """Return the first kernel row of output row `y` that reads data, and how many do."""
    kernel, dilation = window.kernel[0], window.dilations[0]
    if window.rows_inside:
        return 0, kernel
    above = tirx.const(window.pads[0], "int32") - y * window.strides[0]
    first = tirx.max(tirx.floordiv(above + (dilation - 1), dilation), 0)
    behind = tirx.min(tirx.floordiv(above + (window.height - 1), dilation) + 1, kernel)
    return first, behind - first


def tiles(found: Sequence[Piece], body: Callable[[Expr, Piece], Sequence[Stmt]]) -> list[Stmt]:
    """Run `body(first column, piece)` for every tile of a row."""
    statements: list[Stmt] = []
    for piece in found:
        if piece.count == 1:
            statements += body(tirx.const(piece.start, "int32"), piece)
        else:
            statements.append(_tile_loop(piece, body))
    return statements


def _tile_loop(piece: Piece, body: Callable[[Expr, Piece], Sequence[Stmt]]) -> Stmt:
    return loop("x", 0, piece.count, lambda x: body(x * piece.size + piece.start, piece))


def taps(
    window: Window,
    x: Expr,
    piece: Piece,
    body: Callable[[Expr, Sequence[int], Callable[[int], Expr]], Sequence[Stmt]],
) -> list[Stmt]:
    """Run `body(tap, columns of the tile, input column of a tile column)` for the taps of a kernel row."""
    stride, dilation, left = window.strides[1], window.dilations[1], window.pads[1]

    def column(tap: Index) -> Callable[[int], Expr]:
        return lambda i: (x + i) * stride + (tap * dilation - left)

    if piece.taps is None and window.kernel[1] > 1:
        every = range(piece.size)
        return [loop("s", 0, window.kernel[1], lambda s: body(s, every, column(s)))]
    return unrolled_taps(window, x, piece, body)


def unrolled_taps(
    window: Window,
    x: Expr,
    piece: Piece,
    body: Callable[[Expr, Sequence[int], Callable[[int], Expr]], Sequence[Stmt]],
) -> list[Stmt]:
    """Do the same as `taps` without a loop."""
    stride, dilation, left = window.strides[1], window.dilations[1], window.pads[1]

    def column(tap: int) -> Callable[[int], Expr]:
        return lambda i: (x + i) * stride + (tap * dilation - left)

    inside = piece.taps or (tuple(range(piece.size)),) * window.kernel[1]
    statements: list[Stmt] = []
    for s, columns in enumerate(inside):
        if columns:
            statements += body(tirx.const(s, "int32"), columns, column(s))
    return statements


def either(condition: Expr, yes: Sequence[Stmt], no: Sequence[Stmt]) -> Stmt:
    """Return a branch."""
    return tirx.IfThenElse(condition, sequence(yes), sequence(no))


def split_task(task: Var, inner: int) -> tuple[Expr, Expr]:
    """Return quotient and remainder of a task number that is not negative."""
    if inner == 1:
        return task, tirx.const(0, "int32")
    return tirx.truncdiv(task, inner), tirx.truncmod(task, inner)


def branch(conditions: Sequence[Expr], yes: Sequence[Stmt], no: Sequence[Stmt] = ()) -> Stmt:
    """Return a branch on all of `conditions`."""
    return tirx.IfThenElse(tirx.all(*conditions), sequence(yes), sequence(no) if no else None)
