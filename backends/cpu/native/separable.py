"""Joins depthwise steps with the pointwise ones that alone read them, where the fused kernel is to win."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from .isa import Isa
from .kernels import separable_int8
from .kernels.conv_int8 import ConvInt8Spec
from .kernels.depthwise_int8 import DepthwiseInt8Spec
from .kernels.separable_int8 import SeparableInt8Spec
from .program import Program, Step


def join_separable(program: Program, isa: Isa) -> Program:
    """Return a program that computes the same; images between joined steps are gone."""
    reads = Counter(name for step in program.steps for name in step.inputs)
    makers = {step.outputs[0]: step for step in program.steps if step.family == "depthwise_int8"}
    steps: list[Step] = []
    gone: set[str] = set()
    for step in program.steps:
        first = makers.get(step.inputs[0]) if step.family == "conv_int8" else None
        joined = _joined(first, step, isa) if first is not None and reads[step.inputs[0]] == 1 else None
        if first is not None and joined is not None:
            steps.remove(first)
            gone.add(first.outputs[0])
        steps.append(joined or step)
    buffers = tuple(buffer for buffer in program.buffers if buffer.name not in gone)
    return replace(program, steps=tuple(steps), buffers=buffers) if gone else program


def _joined(first: Step, second: Step, isa: Isa) -> Step | None:
    if not isinstance(first.spec, DepthwiseInt8Spec) or not isinstance(second.spec, ConvInt8Spec):
        return None
    spec = SeparableInt8Spec(first.spec, second.spec)
    if not separable_int8.supports(spec, isa).ok or not separable_int8.pays(spec):
        return None
    return Step(
        "separable_int8", spec, (*first.inputs, *second.inputs[1:]), first.constants + second.constants,
        second.outputs, first.covers + second.covers,
    )  # fmt: skip
