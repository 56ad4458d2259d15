"""Runs NIR graphs step by step in NumPy: float32 values, sums of products in float64 rounded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from ....compiler.backend import Array
from ....compiler.errors import UnsupportedOp
from ....compiler.ops import neurons
from .plan import Plan, Step
from .records import Node
from .sizes import flat_axes, pool_window, windows

Floats = neurons.Floats
Compute = Callable[[Floats], Floats]

Advance = Callable[..., tuple[neurons.State, ...]]


class Stepper:
    """A network with its state; arrays have the batch first."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._neurons: dict[str, Advance] = {}
        self._computes: dict[str, Compute] = {}
        for step in plan.steps:
            if step.node.kind in neurons.PARAMETERS:
                self._neurons[step.name] = _advance(step, plan.dt)
            else:
                self._computes[step.name] = _compute(step)
        self._late = {name for step in plan.steps for name in step.late}
        self.reset(0)

    def reset(self, samples: int) -> None:
        """Go to rest: all states and all spikes on their way are zero."""
        self._samples = samples
        self._values: dict[str, Floats] = {}
        self._states: dict[str, tuple[neurons.State, ...]] = {}
        shapes = {step.name: step.shape_out for step in self.plan.steps}
        self._before = {name: self._zeros(shapes[name]) for name in self._late}
        for step in self.plan.steps:
            if step.name in self._neurons:
                self._states[step.name] = rest(step, self.plan.dt, samples)

    def run(self, x: Floats, *, keep: bool = False) -> Floats:
        """Run sequences [samples, steps, *shape] from rest; with `keep`, from where the last run ended."""
        if not keep or len(x) != self._samples:
            self.reset(len(x))
        outputs = [self.advance(np.ascontiguousarray(x[:, t])) for t in range(x.shape[1])]
        if not outputs:
            return np.zeros((len(x), 0, *self.plan.shape_out), np.float32)
        return np.stack(outputs, axis=1)

    def advance(self, x: Floats) -> Floats:
        """Take one step; x: float32 [samples, *shape]."""
        self._values = {self.plan.source: np.asarray(x, np.float32)}
        for step in self.plan.steps:
            arrived = _sum(
                [self._values[name] for name in step.sources] + [self._before[n] for n in step.late]
            )
            if arrived is None:
                arrived = self._zeros(step.shape_in)
            self._values[step.name] = self._one(step, arrived)
        self._before = {name: self._values[name] for name in self._late}
        result = _sum([self._values[name] for name in self.plan.leaving])
        assert result is not None, "the plan has something that leaves"
        return result

    def values(self) -> Mapping[str, Floats]:
        """Return what every node sent in the last step."""
        return self._values

    def _one(self, step: Step, x: Floats) -> Floats:
        name = step.name
        if name not in self._neurons:
            return self._computes[name](x)
        y, *states = self._neurons[name](x, *self._states[name])
        self._states[name] = tuple(states)
        return np.asarray(y, np.float32)

    def _zeros(self, shape: tuple[int, ...]) -> Floats:
        return np.zeros((self._samples, *shape), np.float32)


def rest(step: Step, dt: float, samples: int) -> tuple[neurons.State, ...]:
    """Return the states of a neuron at rest."""
    shape: tuple[int, ...] = (samples, *step.shape_out)
    if step.node.kind == neurons.DELAY:
        return (np.zeros((queue_length(step, dt), *shape), np.float32),)
    kind = np.int64 if step.node.kind == neurons.LAVA else np.float32
    return (np.zeros(shape, kind),) * neurons.state_count(step.node.kind)


def queue_length(step: Step, dt: float) -> int:
    """Return how many steps a Delay keeps.

    Raises:
        UnsupportedOp: `nir-delay`: negative, or beyond what a queue should hold.
    """
    try:
        return int(neurons.delay_steps(step.node.array("delay"), dt).max()) + 1
    except ValueError as err:
        raise UnsupportedOp("nir-delay", f"node {step.name!r}: {err}", "set metadata `dt`") from err


def parameters(node: Node) -> dict[str, Array]:
    """Return the parameters of a neuron, those that a file may leave out included."""
    found = {name: node.array(name) for name in neurons.PARAMETERS[node.kind] if name in node.values}
    if "v_threshold" in found:
        found.setdefault("v_reset", np.zeros_like(found["v_threshold"]))
    if "tau_syn" in found:
        found.setdefault("w_in", np.ones_like(found["tau_syn"]))
    return {name: found[name] for name in neurons.PARAMETERS[node.kind]}


def _advance(step: Step, dt: float) -> Advance:
    kind, given = step.node.kind, parameters(step.node)
    if kind == neurons.LAVA:
        return partial(neurons.advance_lava, given)
    if kind == neurons.DELAY:
        queue_length(step, dt)
        return partial(neurons.advance_delay, neurons.delay_steps(given["delay"], dt))
    return partial(neurons.advance, neurons.recurrence(kind, given, dt))


def _sum(parts: list[Floats]) -> Floats | None:
    total: Floats | None = None
    for part in parts:
        total = part if total is None else total + part
    return total


def _compute(step: Step) -> Compute:
    """Return what a node without state computes."""
    node, where = step.node, f"node {step.name!r}"
    if node.kind in ("Affine", "Linear"):
        return _affine(node)
    if node.kind == "Scale":
        scale = np.asarray(node.array("scale"), np.float32)
        return lambda x: np.asarray(x * scale, np.float32)
    if node.kind == "Threshold":
        threshold = np.asarray(node.array("threshold"), np.float32)
        return lambda x: (x > threshold).astype(np.float32)
    if node.kind == "Flatten":
        flat_axes(node, step.shape_in, where)
        return lambda x: x.reshape(len(x), *step.shape_out)
    if node.kind in ("SumPool2d", "AvgPool2d"):
        return _pool(node, step, where)
    assert node.kind in ("Conv1d", "Conv2d"), f"{node.kind} is in the table of kinds"
    return _convolution(node, step, where)


def _affine(node: Node) -> Compute:
    weight = np.asarray(node.array("weight"), np.float64).T
    bias = np.asarray(node.array("bias"), np.float64) if node.kind == "Affine" else np.zeros(())
    return lambda x: (x.astype(np.float64) @ weight + bias).astype(np.float32)


def _convolution(node: Node, step: Step, where: str) -> Compute:
    weight = np.asarray(node.array("weight"), np.float64)
    rank = weight.ndim - 2
    strides, dilations, pads = windows(node, rank, where)
    groups = int(node.values["groups"])
    kernel = weight.shape[2:]
    split = weight.reshape(groups, weight.shape[0] // groups, -1, int(np.prod(kernel)))
    bias = np.asarray(node.array("bias"), np.float64).reshape(-1, *[1] * rank)

    def compute(x: Floats) -> Floats:
        taps = _taps(x.astype(np.float64), kernel, strides, dilations, pads, step.shape_out[1:])
        total = np.zeros((len(x), groups, split.shape[1], int(np.prod(step.shape_out[1:]))))
        for index, tap in enumerate(taps):
            total += np.matmul(split[..., index], tap.reshape(len(x), groups, split.shape[2], -1))
        return (total.reshape(len(x), *step.shape_out) + bias).astype(np.float32)

    return compute


def _pool(node: Node, step: Step, where: str) -> Compute:
    kernel, strides, pads = pool_window(node, where)
    divisor = float(np.prod(kernel)) if node.kind == "AvgPool2d" else 1.0

    def compute(x: Floats) -> Floats:
        both = tuple((p, p) for p in pads)
        taps = _taps(x.astype(np.float64), kernel, strides, (1, 1), both, step.shape_out[1:])
        return np.asarray(np.sum(taps, axis=0) / divisor, np.float32)

    return compute


def _taps(
    x: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    out: tuple[int, ...],
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """Return what each position of a kernel sees, [samples, channels, *out] each."""
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    seen = []
    for position in np.ndindex(*kernel):
        cut = [
            slice(p * d, p * d + (size - 1) * s + 1, s)
            for p, d, s, size in zip(position, dilations, strides, out, strict=True)
        ]
        seen.append(padded[(slice(None), slice(None), *cut)])
    return seen
