"""Indices of a Gather, checked: see `take_f32.py`.

out[i] = index[i] + limit where index[i] < 0, else index[i]
status[0] = 1 where some index is not in -limit..limit - 1, else 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .....compiler.backend import Verdict
from .strided import LANES

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Stmt

    from ..isa import Isa


@dataclass(frozen=True)
class IndicesSpec:
    """Static shape; parameters: indices [size], out int32 [count], status int32 [16].

    Attributes:
        count: indices.
        limit: size of the axis they count.
        dtype: `int64` or `int32`.
    """

    count: int
    limit: int
    dtype: str

    def tasks(self) -> int:
        """Length of the parallel loop."""
        return 1

    def bytes(self) -> int:
        """Bytes read and written."""
        return self.count * (4 + np.dtype(self.dtype).itemsize)


def supports(spec: IndicesSpec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    return Verdict.yes() if spec.count > 0 else Verdict.no("no indices")


def pack(spec: IndicesSpec) -> list[np.ndarray]:
    """Return no constants."""
    return []


def build(spec: IndicesSpec, isa: Isa) -> tvm.IRModule:
    """Return the kernel: indices, out, status, `begin`, `end`."""
    from tvm import tirx

    from . import emit
    from .int8_emit import i64, loop

    given = emit.parameter("given", spec.dtype, (spec.count,))
    out = emit.parameter("out", "int32", (spec.count,))
    status = emit.parameter("status", "int32", (LANES,))
    limit = i64(spec.limit)

    def one(i: Expr) -> list[Stmt]:
        index = tirx.Cast("int64", emit.load(given, i))
        bad = tirx.Or(index < i64(0) - limit, index >= limit)
        positive = tirx.Cast("int32", tirx.Select(index < i64(0), index + limit, index))
        return [
            tirx.IfThenElse(bad, emit.store(status, emit.const(1), 0), None),
            emit.store(out, positive, i),
        ]

    body = [emit.store(status, emit.const(0), 0), loop("i", spec.count, one)]
    return emit.module(
        [given, out, status], lambda begin, end: [tirx.IfThenElse(begin < end, emit.sequence(body), None)]
    )
