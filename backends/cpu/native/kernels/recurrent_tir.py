"""Writes the kernels of `recurrent_f32`. Needs TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt

from .emit import allocate, const, load, loop, module, parameter, register, splat, store
from .math_f32 import let, lit, sigmoid, tanh
from .recurrent_f32 import WIDE, RecurrentF32Spec
from .tile_f32 import present
from .window import LANES, groups_of, padded, split_groups

LEAST_SUMS = 8
Finish = Callable[[list[Expr], Expr], list[Stmt]]


@dataclass(frozen=True)
class _Place:
    """A step of a row: `row` of the output, `t` written, `before` read, `x` the input's row."""

    direction: Expr
    row: Expr
    t: Expr
    before: Expr
    x: Expr


class RecurrentWriter:
    """One kernel being written."""

    def __init__(self, spec: RecurrentF32Spec) -> None:
        self.spec, self.units = spec, padded(spec.hidden)
        d, gates, rows = spec.directions, spec.gates, spec.directions * spec.batch
        self.x = parameter("x", "float32", spec.x_shape)
        self.h = _optional(spec.initial[0], "h", (rows, padded(spec.result)))
        self.c = _optional(spec.initial[1], "c", (rows, self.units))
        self.weights = parameter("weights", spec.stored, (d, spec.result * gates * self.units))
        self.scales = _optional(spec.stored == "int8", "scales", (d, gates * self.units))
        self.bias = _optional(spec.reset_after, "bias", (d, self.units))
        self.peepholes = _optional(spec.peepholes, "peepholes", (d, 3 * self.units))
        size = spec.hidden * padded(spec.result)
        self.projection = _optional(spec.projects, "projection", (d, size))
        self.out = parameter("out", "float32", spec.out_shape)
        shape = spec.scratch_shape
        self.scratch = None if shape is None else parameter("scratch", "float32", shape)

    def module(self) -> tvm.IRModule:
        """Return the module; parameters as in `RecurrentF32Spec`."""
        given = present(
            self.x, self.h, self.c, self.weights, self.scales, self.bias, self.peepholes, self.projection,
            self.out, self.scratch,
        )  # fmt: skip
        return module(given, lambda begin, end: [loop("d", begin, end - begin, self._direction)])

    def _direction(self, d: Expr) -> list[Stmt]:
        spec = self.spec
        backwards: Expr = d if spec.directions == 2 else const(int(spec.reverse[0]))
        every = [loop("b", 0, spec.batch, lambda b: self._start(d * spec.batch + b))]

        def step(s: Expr) -> list[Stmt]:
            t = s + backwards * (spec.steps - 1 - 2 * s)
            before = tirx.Select(s < 1, const(spec.steps), t - 1 + 2 * backwards)
            return [
                loop(
                    "b",
                    0,
                    spec.batch,
                    lambda b: self._cell(_Place(d, d * spec.batch + b, t, before, t * spec.batch + b)),
                )
            ]

        last = const(spec.steps - 1) - backwards * (spec.steps - 1)
        ends = loop("b", 0, spec.batch, lambda b: self._copy(self.out, last, spec.steps, d * spec.batch + b))
        return [*every, loop("s", 0, spec.steps, step), ends]

    def _start(self, row: Expr) -> list[Stmt]:
        """Set the state of before the first step."""
        spec = self.spec
        statements = self._set(self.h, spec.steps, padded(spec.result), row)
        return statements + (
            self._set(self.c, spec.steps + 1, self.units, row) if spec.kind == "lstm" else []
        )

    def _set(self, given: Buffer | None, to: int, size: int, row: Expr) -> list[Stmt]:
        def vector(v: Expr) -> list[Stmt]:
            value = lit(0.0, LANES) if given is None else load(given, row, v * LANES, lanes=LANES)
            return [store(self.out, value, to, row, v * LANES, lanes=LANES)]

        return [loop("v", 0, size // LANES, vector)]

    def _copy(self, buffer: Buffer, source: Expr, to: int, row: Expr) -> list[Stmt]:
        def vector(v: Expr) -> list[Stmt]:
            value = load(buffer, source, row, v * LANES, lanes=LANES)
            return [store(buffer, value, to, row, v * LANES, lanes=LANES)]

        return [loop("v", 0, padded(self.spec.result) // LANES, vector)]

    # --- cells ----------------------------------------------------------------------------------------

    def _cell(self, at: _Place) -> list[Stmt]:
        return {"lstm": self._lstm, "gru": self._gru, "rnn": self._rnn}[self.spec.kind](at)

    def _lstm(self, at: _Place) -> list[Stmt]:
        spec = self.spec

        def finish(gates: list[Expr], column: Expr) -> list[Stmt]:
            state, new = register("state", "float32", LANES), register("new", "float32", LANES)
            c = load(self.out, spec.steps + 1, at.row, column, lanes=LANES)
            held, made = load(state, 0, lanes=LANES), load(new, 0, lanes=LANES)
            i, o, f, g = gates
            kept = sigmoid_of(self._peep(f, 2, held, at, column)) * held
            added = sigmoid_of(self._peep(i, 0, held, at, column)) * tanh(g, LANES)
            h = sigmoid_of(self._peep(o, 1, made, at, column)) * tanh(made, LANES)
            return [
                *allocate([state, new]),
                store(state, c, 0, lanes=LANES),
                store(new, kept + added, 0, lanes=LANES),
                store(self.out, made, spec.steps + 1, at.row, column, lanes=LANES),
                self._put(h, at, column),
            ]

        statements = self._product(self._first(), self._old(at), at, finish)
        return statements + (self._project(at) if spec.projects else [])

    def _put(self, h: Expr, at: _Place, column: Expr) -> Stmt:
        if self.scratch is not None:
            return store(self.scratch, h, at.direction * 2, column, lanes=LANES)
        return store(self.out, h, at.t, at.row, column, lanes=LANES)

    def _peep(self, gate: Expr, number: int, state: Expr, at: _Place, column: Expr) -> Expr:
        if self.peepholes is None:
            return gate
        return gate + load(self.peepholes, at.direction, column + number * self.units, lanes=LANES) * state

    def _project(self, at: _Place) -> list[Stmt]:
        assert self.projection is not None, "the spec says so"
        assert self.scratch is not None, "the spec says so"
        scratch = self.scratch
        product = _Product(self.projection, 0, (0,), self.spec.hidden, self.spec.result, False)

        def finish(sums: list[Expr], column: Expr) -> list[Stmt]:
            return [store(self.out, sums[0], at.t, at.row, column, lanes=LANES)]

        return self._product(product, lambda k: load(scratch, at.direction * 2, k), at, finish)

    def _gru(self, at: _Place) -> list[Stmt]:
        if self.spec.reset_after:
            return self._product(self._first(), self._old(at), at, self._gru_after(at))
        assert self.scratch is not None, "the spec says so"
        scratch, z_row, r_row = self.scratch, at.direction * 2, at.direction * 2 + 1

        def gates(sums: list[Expr], column: Expr) -> list[Stmt]:
            h = load(self.out, at.before, at.row, column, lanes=LANES)
            z, r = (sigmoid_of(one) for one in sums)
            return [
                store(scratch, z, z_row, column, lanes=LANES),
                store(scratch, r * h, r_row, column, lanes=LANES),
            ]

        def finish(sums: list[Expr], column: Expr) -> list[Stmt]:
            z = load(scratch, z_row, column, lanes=LANES)
            return self._blend(z, tanh(sums[0], LANES), at, column)

        start = self.spec.result * 2 * self.units
        second = _Product(self.weights, start, (2,), self.spec.result, self.spec.hidden, True)
        first = self._product(self._first(), self._old(at), at, gates)
        return first + self._product(second, lambda k: load(scratch, r_row, k), at, finish)

    def _gru_after(self, at: _Place) -> Finish:
        def finish(sums: list[Expr], column: Expr) -> list[Stmt]:
            assert self.bias is not None, "the spec says so"
            z, r, n = sums
            inner = n + load(self.bias, at.direction, column, lanes=LANES)
            x = load(self.x, at.x, self._column(at, 2, column), lanes=LANES)
            cell = register("candidate", "float32", LANES)
            summed = store(cell, x + sigmoid_of(r) * inner, 0, lanes=LANES)
            new = tanh(load(cell, 0, lanes=LANES), LANES)
            return [*allocate([cell]), summed, *self._blend(sigmoid_of(z), new, at, column)]

        return finish

    def _blend(self, z: Expr, n: Expr, at: _Place, column: Expr) -> list[Stmt]:
        # Each load is a statement of its own: TVM's elimination of common subexpressions hoists indices out
        # of the body of a Let and then uses them where they are not defined.
        held = [register(name, "float32", LANES) for name in ("old", "mix", "new")]
        old, mix, new = (load(buffer, 0, lanes=LANES) for buffer in held)
        given = load(self.out, at.before, at.row, column, lanes=LANES), z, n
        return [
            *allocate(held),
            *(store(buffer, value, 0, lanes=LANES) for buffer, value in zip(held, given, strict=True)),
            store(self.out, new + mix * (old - new), at.t, at.row, column, lanes=LANES),
        ]

    def _rnn(self, at: _Place) -> list[Stmt]:
        def finish(sums: list[Expr], column: Expr) -> list[Stmt]:
            h = tirx.max(sums[0], lit(0.0, LANES)) if self.spec.relu else tanh(sums[0], LANES)
            return [store(self.out, h, at.t, at.row, column, lanes=LANES)]

        return self._product(self._first(), self._old(at), at, finish)

    # --- products -------------------------------------------------------------------------------------

    def _first(self) -> _Product:
        gates = tuple(range(self.spec.phases[0]))
        return _Product(self.weights, 0, gates, self.spec.result, self.spec.hidden, True)

    def _old(self, at: _Place) -> Callable[[Expr], Expr]:
        return lambda k: load(self.out, at.before, at.row, k)

    def _column(self, at: _Place, gate: int, column: Expr) -> Expr:
        return (at.direction * self.spec.gates + gate) * self.units + column

    def _product(
        self, what: _Product, left: Callable[[Expr], Expr], at: _Place, finish: Finish
    ) -> list[Stmt]:
        """Return the loop over blocks of columns, and what is left of it."""
        wide, whole, rest = what.blocks
        every = loop("j", 0, whole, lambda j: self._block(what, left, at, finish, j * wide, wide))
        if not rest:
            return [every]
        return [every, *self._block(what, left, at, finish, const(whole * wide), rest)]

    def _block(
        self,
        what: _Product,
        left: Callable[[Expr], Expr],
        at: _Place,
        finish: Finish,
        first: Expr,
        vectors: int,
    ) -> list[Stmt]:
        """Return one block: sums over K, then the gates of each vector."""
        gates, cells = len(what.gates), len(what.gates) * vectors
        splits = max(1, min(-(-LEAST_SUMS // cells), what.depth))
        sums = [register(f"s{i}", "float32", LANES) for i in range(cells * splits)]
        starts = [
            store(cell, self._start_of(what, at, i, first, vectors), 0, lanes=LANES)
            for i, cell in enumerate(sums)
        ]
        origin = first * (gates * what.depth * LANES) + what.offset

        def products(k: Expr, split: int) -> list[Stmt]:
            value = splat(left(k), LANES)
            return [
                _add(sums[split * cells + i], value, self._weight(what, at, origin + (k * cells + i) * LANES))
                for i in range(cells)
            ]

        whole, rest = divmod(what.depth, splits)
        body = loop("k", 0, whole, lambda k: [x for s in range(splits) for x in products(k * splits + s, s)])
        tail = [x for s in range(rest) for x in products(const(whole * splits + s), s)]
        ends = [x for v in range(vectors) for x in self._end(what, at, sums, v, vectors, first, finish)]
        return [*allocate(sums), *starts, body, *tail, *ends]

    def _end(
        self,
        what: _Product,
        at: _Place,
        sums: Sequence[Buffer],
        v: int,
        vectors: int,
        first: Expr,
        finish: Finish,
    ) -> list[Stmt]:
        cells = len(what.gates) * vectors
        column = (first + v) * LANES
        held = [register(f"g{i}", "float32", LANES) for i in range(len(what.gates))]
        totals: list[Stmt] = []
        for index, (gate, cell) in enumerate(zip(what.gates, held, strict=True)):
            total = load(sums[index * vectors + v], 0, lanes=LANES)
            for more in sums[cells + index * vectors + v :: cells]:
                total = total + load(more, 0, lanes=LANES)
            if what.cell and self.scales is not None:
                total = total * load(self.scales, at.direction, column + gate * self.units, lanes=LANES)
                if self._adds_x(gate):
                    total = total + load(self.x, at.x, self._column(at, gate, column), lanes=LANES)
            totals.append(store(cell, total, 0, lanes=LANES))
        return [*allocate(held), *totals, *finish([load(cell, 0, lanes=LANES) for cell in held], column)]

    def _start_of(self, what: _Product, at: _Place, i: int, first: Expr, vectors: int) -> Expr:
        """Return what the sum number `i` starts from: the input's part, where nothing scales the sum."""
        index, v = divmod(i, vectors)
        if index >= len(what.gates) or not what.cell or self.scales is not None:
            return lit(0.0, LANES)
        gate = what.gates[index]
        if not self._adds_x(gate):
            return lit(0.0, LANES)
        return load(self.x, at.x, self._column(at, gate, (first + v) * LANES), lanes=LANES)

    def _adds_x(self, gate: int) -> bool:
        return not (self.spec.reset_after and gate == 2)

    def _weight(self, what: _Product, at: _Place, place: Expr) -> Expr:
        value = load(what.weights, at.direction, place, lanes=LANES)
        if str(what.weights.dtype) == "float32":
            return value
        return tirx.Cast(f"float32x{LANES}", tirx.Cast(f"int32x{LANES}", value))


@dataclass(frozen=True)
class _Product:
    """A row times weights [gates, columns, depth] that lie from `offset` on; `cell`: recurrent weights."""

    weights: Buffer
    offset: int
    gates: tuple[int, ...]
    depth: int
    columns: int
    cell: bool

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Vectors per block, whole blocks, vectors of the last block or 0."""
        return split_groups(groups_of(self.columns), WIDE[len(self.gates)])


def sigmoid_of(x: Expr) -> Expr:
    """Return the sigmoid of a vector."""
    return let(x, lambda v: sigmoid(v, LANES))


def _add(cell: Buffer, left: Expr, right: Expr) -> Stmt:
    return store(cell, left * right + load(cell, 0, lanes=LANES), 0, lanes=LANES)


def _optional(wanted: bool, name: str, shape: tuple[int, ...]) -> Buffer | None:
    return parameter(name, "float32", shape) if wanted else None
