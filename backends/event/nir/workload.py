"""What a run of a NIR graph costs, counted as NeuroBench does: https://arxiv.org/abs/2304.04640."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ....compiler.ops.neurons import PARAMETERS
from .plan import Plan, Step
from .records import Node
from .stepper import Floats, Stepper

_CONNECTIONS = ("Affine", "Linear", "Conv1d", "Conv2d")


@dataclass(frozen=True)
class Workload:
    """Per sample, all steps together.

    Attributes:
        effective_macs: products of a weight and an input that are both not zero.
        effective_acs: the same at nodes whose inputs are all -1, 0 or 1.
        dense: products of all weights and inputs; biases count nowhere.
        activation_sparsity: share of zeros in what neurons send.
    """

    effective_macs: float
    effective_acs: float
    dense: float
    activation_sparsity: float


def workload(plan: Plan, x: Floats) -> Workload:
    """Run sequences [samples, steps, *shape] and count."""
    stepper = Stepper(plan)
    counters: dict[str, tuple[Stepper, Stepper]] = {}
    for step in plan.steps:
        if step.node.kind in _CONNECTIONS:
            counters[step.name] = _counter(plan, step, False), _counter(plan, step, True)
    stepper.reset(len(x))
    macs = acs = dense = 0.0
    zeros = sent = 0
    for t in range(x.shape[1]):
        stepper.advance(x[:, t])
        values = stepper.values()
        for step in plan.steps:
            if step.node.kind in PARAMETERS:
                zeros += int(np.count_nonzero(values[step.name] == 0))
                sent += values[step.name].size
            if step.name not in counters:
                continue
            arrived = np.sum([values[name] for name in step.sources], axis=0)
            effective, full = counters[step.name]
            found = _total(effective, (arrived != 0).astype(np.float32))
            dense += _total(full, np.ones_like(arrived))
            if np.isin(arrived, (-1, 0, 1)).all():
                acs += found
            else:
                macs += found
    samples = max(1, len(x))
    return Workload(macs / samples, acs / samples, dense / samples, zeros / max(1, sent))


def _total(counter: Stepper, x: Floats) -> float:
    return float(counter.run(x[:, None]).sum(dtype=np.float64))


def _counter(plan: Plan, step: Step, every: bool) -> Stepper:
    """Return the node alone with ones for its weights (but zeros), so that its outputs count operations."""
    weight = step.node.array("weight")
    ones = np.ones_like(weight, np.float32) if every else (weight != 0).astype(np.float32)
    values = dict(step.node.values) | {"weight": ones}
    if "bias" in values:
        values["bias"] = np.zeros(len(weight), np.float32)
    alone = replace(step, node=Node(step.node.kind, values), sources=("x",), late=())
    return Stepper(replace(plan, steps=(alone,), source="x", leaving=(step.name,), shape_in=step.shape_in))
