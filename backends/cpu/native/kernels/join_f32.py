"""Joins tensors along an axis, or puts one into a larger one of a constant: Concat and Pad of any rank.

    out = fill everywhere, then out[part] = source of the part, for every part

Parts are copies between strided operands (`strided.py`), 16 elements at a time where both are contiguous;
quantized parts are requantized. Bound by memory. One task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .....compiler.backend import Verdict
from .strided import Operand, bytes_of

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Buffer, Stmt

    from ..isa import Isa


@dataclass(frozen=True)
class Part:
    """One copy: `target` is a part of the output."""

    sizes: tuple[int, ...]
    source: Operand
    target: Operand


@dataclass(frozen=True)
class JoinF32Spec:
    """Static copies; parameters: a source per part, output.

    Attributes:
        parts: the copies; all targets are operands of the same buffer.
        fill: what the whole buffer is set to before, in elements of its dtype; None: nothing.
    """

    parts: tuple[Part, ...]
    fill: float | None = None

    def tasks(self) -> int:
        """Length of the parallel loop."""
        return 1

    def bytes(self) -> int:
        """Bytes read and written."""
        return sum(bytes_of(p.sizes, p.source) + bytes_of(p.sizes, p.target) for p in self.parts)


def supports(spec: JoinF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    for part in spec.parts:
        if not part.source.inside(part.sizes) or not part.target.inside(part.sizes):
            return Verdict.no("a part that leaves its buffer")
    return Verdict.yes() if spec.parts else Verdict.no("nothing to join")


def pack(spec: JoinF32Spec) -> list[np.ndarray]:
    """Return no constants."""
    return []


def build(spec: JoinF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel: sources, out, `begin`, `end`."""
    from tvm import tirx

    from .emit import module, sequence
    from .strided_tir import parameter

    sources = [parameter(f"in{i}", part.source) for i, part in enumerate(spec.parts)]
    out = parameter("out", spec.parts[0].target)
    fill = [] if spec.fill is None else _filled(spec, out)
    copies = [
        stmt for part, source in zip(spec.parts, sources, strict=True) for stmt in _copied(part, source, out)
    ]
    return module(
        [*sources, out], lambda begin, end: [tirx.IfThenElse(begin < end, sequence([*fill, *copies]), None)]
    )


def _filled(spec: JoinF32Spec, out: Buffer) -> list[Stmt]:
    from tvm import tirx

    from . import emit
    from .strided_tir import row

    target = spec.parts[0].target
    assert spec.fill is not None, "the caller asks for a fill"
    bytes_ = target.dtype != "float32"
    one = emit.const(int(spec.fill), target.dtype) if bytes_ else tirx.FloatImm("float32", spec.fill)

    def put(c: Expr, lanes: int) -> tuple[list[Stmt], Stmt]:
        return [], emit.store(out, emit.splat(one, lanes) if lanes > 1 else one, c, lanes=lanes)

    return row(target.size, put)


def _copied(part: Part, source: Buffer, out: Buffer) -> list[Stmt]:
    from .strided_tir import load, nest, place, row, store

    same = (part.source.dtype, part.source.quant) == (part.target.dtype, part.target.quant)

    def line(outer: list[Expr]) -> list[Stmt]:
        def put(c: Expr, lanes: int) -> tuple[list[Stmt], Stmt]:
            ends = [place(side, [*outer, c]) for side in (part.source, part.target)]
            if same:
                return [], _raw(part, source, out, ends, lanes)
            value = load(source, part.source, ends[0], lanes)
            return [], store(out, part.target, value, ends[1], lanes)

        return row(part.sizes[-1] if part.sizes else 1, put)

    return nest(part.sizes[:-1], line)


def _raw(part: Part, source: Buffer, out: Buffer, ends: list[Expr], lanes: int) -> Stmt:
    """Return a copy of elements as they are."""
    from tvm import tirx

    from . import emit
    from .int8_emit import i64

    if lanes == 1:
        return tirx.BufferStore(out, tirx.BufferLoad(source, [ends[0]]), [ends[1]])
    index = ends[0] if part.source.last == 0 else tirx.Ramp(ends[0], i64(part.source.last), lanes)
    value = tirx.BufferLoad(source, [index])
    wide = emit.splat(value, lanes) if part.source.last == 0 else value
    return tirx.BufferStore(out, wide, [tirx.Ramp(ends[1], i64(part.target.last), lanes)])
