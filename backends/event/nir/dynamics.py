"""Neurons of NIR as recurrences of one step, by forward Euler; all kinds are one form.

    i' = keep_i * i + gain_i * x                 (Cuba kinds; else the drive is x)
    v' = keep_v * v + gain_v * drive + rest
    z = v' > threshold;  v' = v_reset where z    (firing kinds; else v' leaves)

keep = 1 - dt / tau, gain_v = dt / tau * r, rest = dt / tau * v_leak, gain_i = dt / tau_syn * w_in; for I and
IF keep_v = 1 and gain_v = dt * r. Coefficients are computed in float64 and rounded to float32 once; the
recurrences in float32, one rounding per product and sum, from left to right. Equations:
https://neuroir.org/docs/primitives.html
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .records import Node

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Neuron:
    """Coefficients, float32, of the neurons' shape or one for all; None where a kind has no such part."""

    keep_v: Floats
    gain_v: Floats
    rest: Floats
    keep_i: Floats | None = None
    gain_i: Floats | None = None
    threshold: Floats | None = None
    v_reset: Floats | None = None

    @property
    def states(self) -> int:
        """Return how many arrays it keeps: voltage, and current of Cuba kinds."""
        return 1 if self.keep_i is None else 2


def neuron_of(node: Node, dt: float) -> Neuron:
    """Return the recurrence of a node of a neuron's kind."""
    r = _wide(node, "r")
    threshold = _narrow(node, "v_threshold")
    reset = None if threshold is None else _narrow(node, "v_reset")
    if threshold is not None and reset is None:
        reset = np.zeros_like(threshold)
    if node.kind in ("I", "IF"):
        one = np.ones((), np.float32)
        return Neuron(one, _float(dt * r), np.zeros((), np.float32), threshold=threshold, v_reset=reset)
    step = dt / _wide(node, "tau_mem" if node.kind.startswith("Cuba") else "tau")
    keep, gain, rest = _float(1 - step), _float(step * r), _float(step * _wide(node, "v_leak"))
    if not node.kind.startswith("Cuba"):
        return Neuron(keep, gain, rest, threshold=threshold, v_reset=reset)
    synapse = dt / _wide(node, "tau_syn")
    w_in = _wide(node, "w_in") if "w_in" in node.values else np.ones(())
    return Neuron(keep, gain, rest, _float(1 - synapse), _float(synapse * w_in), threshold, reset)


def advance(neuron: Neuron, x: Floats, states: tuple[Floats, ...]) -> tuple[Floats, tuple[Floats, ...]]:
    """Take one step: what leaves, and the new states (voltage, then current)."""
    v, drive = states[0], x
    current: tuple[Floats, ...] = ()
    if neuron.keep_i is not None and neuron.gain_i is not None:
        drive = neuron.keep_i * states[1] + neuron.gain_i * x
        current = (drive,)
    v = neuron.keep_v * v + neuron.gain_v * drive + neuron.rest
    if neuron.threshold is None or neuron.v_reset is None:
        return v, (v, *current)
    fired = v > neuron.threshold
    return fired.astype(np.float32), (np.where(fired, neuron.v_reset, v), *current)


def _wide(node: Node, name: str) -> npt.NDArray[np.float64]:
    return np.asarray(node.array(name), np.float64)


def _float(values: npt.NDArray[np.generic]) -> Floats:
    return np.asarray(values, np.float32)


def _narrow(node: Node, name: str) -> Floats | None:
    return _float(node.array(name)) if name in node.values else None
