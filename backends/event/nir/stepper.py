"""Runs NIR graphs step by step in NumPy: float32 values, sums of products in float64 rounded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ....compiler.errors import UnsupportedOp
from .dynamics import Floats, Neuron, advance, neuron_of
from .lava import LavaNeuron
from .plan import Plan, Step
from .records import LAVA, Node
from .sizes import flat_axes, pool_window, windows

Compute = Callable[[Floats], Floats]

_NEURONS = frozenset({"I", "IF", "LI", "LIF", "CubaLI", "CubaLIF"})


class Stepper:
    """A network with its state; arrays have the batch first."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._neurons: dict[str, Neuron] = {}
        self._computes: dict[str, Compute] = {}
        for step in plan.steps:
            if step.node.kind in _NEURONS:
                self._neurons[step.name] = neuron_of(step.node, plan.dt)
            elif step.node.kind not in (LAVA, "Delay"):
                self._computes[step.name] = _compute(step)
        self._late = {name for step in plan.steps for name in step.late}
        self.reset(0)

    def reset(self, samples: int) -> None:
        """Go to rest: all states and all spikes on their way are zero."""
        self._samples = samples
        self._values: dict[str, Floats] = {}
        self._states: dict[str, tuple[Floats, ...]] = {}
        self._lava: dict[str, LavaNeuron] = {}
        self._queues: dict[str, Floats] = {}
        shapes = {step.name: step.shape_out for step in self.plan.steps}
        self._before = {name: self._zeros(shapes[name]) for name in self._late}
        for step in self.plan.steps:
            if step.name in self._neurons:
                zeros = self._zeros(step.shape_out)
                self._states[step.name] = (zeros,) * self._neurons[step.name].states
            elif step.node.kind == LAVA:
                self._lava[step.name] = LavaNeuron(step.node, (samples, *step.shape_out))
            elif step.node.kind == "Delay":
                depth = int(delays(step.node, self.plan.dt).max(initial=0))
                self._queues[step.name] = np.zeros((depth + 1, samples, *step.shape_out), np.float32)

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
        if name in self._neurons:
            y, self._states[name] = advance(self._neurons[name], x, self._states[name])
            return y
        if name in self._lava:
            return self._lava[name].advance(x)
        if name in self._queues:
            return self._delay(step, x)
        return self._computes[name](x)

    def _delay(self, step: Step, x: Floats) -> Floats:
        """Move a queue by one step and take each element from as far back as its delay says."""
        queue = np.concatenate([x[None], self._queues[step.name][:-1]])
        self._queues[step.name] = queue
        back = np.broadcast_to(delays(step.node, self.plan.dt), step.shape_out)
        index = np.broadcast_to(back, (1, *x.shape))
        return np.asarray(np.take_along_axis(queue, index, axis=0)[0], np.float32)

    def _zeros(self, shape: tuple[int, ...]) -> Floats:
        return np.zeros((self._samples, *shape), np.float32)


def delays(node: Node, dt: float) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return delays in steps.

    Raises:
        UnsupportedOp: `nir-delay`: negative, or beyond what a queue should hold.
    """
    steps = np.rint(np.asarray(node.array("delay"), np.float64) / dt)
    if steps.min() < 0 or steps.max() > 100_000:
        raise UnsupportedOp(
            "nir-delay", f"delays of {steps.min():g} to {steps.max():g} steps of {dt} s", "set metadata `dt`"
        )
    return steps.astype(np.int64)


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
