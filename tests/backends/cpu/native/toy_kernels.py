"""A kernel family for tests of code generation: `out = factor * x + constant`, float32 [rows, 16]."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from pared.backends.cpu.native.kernels import emit
from pared.backends.cpu.native.program import ALIAS, Buffer, Constant, Program, Step


@dataclass(frozen=True)
class ToySpec:
    rows: int
    factor: float

    def tasks(self):
        return self.rows


def build(spec, isa):
    x, out = (emit.parameter(name, "float32", (spec.rows, 16)) for name in ("x", "out"))
    constant = emit.parameter("constant", "float32", (16,))
    factor = emit.splat(emit.tirx.FloatImm("float32", spec.factor), 16)

    def row(i):
        value = emit.load(x, i, 0, lanes=16) * factor + emit.load(constant, 0, lanes=16)
        return [emit.store(out, value, i, 0, lanes=16)]

    return emit.module([x, constant, out], lambda begin, end: [emit.loop("i", begin, end - begin, row)])


FAMILY = SimpleNamespace(build=build)


def chain(rows=4, factors=(2.0, 3.0, 5.0), alias=True):
    """x -> factors[0] x + 1 -> ... in steps of which the middle ones work in place."""
    names = ["x", *(f"h{i}" for i in range(len(factors) - 1)), 'out "q"\n']
    constants = tuple(Constant.of(f"c{i}", np.full(16, i + 1, np.float32)) for i in range(len(factors)))
    buffers = [Buffer(name, "float32", (rows, 16)) for name in names]
    steps = []
    for i, factor in enumerate(factors):
        source = names[i]
        if alias and i == 1:
            buffers.append(Buffer("view", "float32", (rows * 16,)))
            steps.append(Step(ALIAS, None, (source,), (), ("view",)))
            source = "view"
        spec = ToySpec(rows, factor)
        steps.append(Step("toy", spec, (source,), (f"c{i}",), (names[i + 1],), in_place=0 if i else None))
    return Program(tuple(steps), tuple(buffers), constants, ("x",), (names[-1],))


def expected(x, factors=(2.0, 3.0, 5.0)):
    for i, factor in enumerate(factors):
        x = x * np.float32(factor) + np.float32(i + 1)
    return x
