"""An event-based GRU (arXiv 2206.06178, on SpiNNaker 2 in 2312.09084), in whole numbers.

    u = sigmoid(Wu x + Vu y' + bu)      r = sigmoid(Wr x + Vr y' + br)      z = tanh(Wz x + Vz (r y') + bz)
    c = u z + (1 - u) c' - theta [y' != 0]                                  y = c where c >= theta, else 0

with y', c' of the step before. Only neurons over their threshold send anything, so that a step costs the
columns of W whose input changed (its sums are kept) and the columns of V whose neuron fired.

Weights are int8 with a scale per row; x, y, c and the gates have FRACTION bits behind the point. A sum is an
integer, whatever the order of its terms, and all that follows is a function of it: skipping is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...compiler.errors import DataError
from .graph import Integers, Reals

FRACTION = 12
ONE = 1 << FRACTION
# Inputs beyond this many units would let sums leave 64 bits.
_MOST = 1 << 30

Int8s = npt.NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class EgruWeights:
    """A layer's parameters; gates in the order u, r, z.

    Attributes:
        inputs: int8 [3, neurons, inputs].
        recurrent: int8 [3, neurons, neurons].
        scales: float64 [3, neurons], of both.
        bias: float64 [3, neurons].
        theta: int64 [neurons], thresholds with FRACTION bits behind the point, above 0.
    """

    inputs: Int8s
    recurrent: Int8s
    scales: Reals
    bias: Reals
    theta: Integers

    @classmethod
    def quantized(cls, inputs: Reals, recurrent: Reals, bias: Reals, theta: Reals) -> EgruWeights:
        """Quantize real weights, [3, neurons, ...] each, to 8 bits with a scale per row.

        Raises:
            DataError: `egru-shape`, `egru-threshold`.
        """
        neurons = bias.shape[-1]
        shapes = inputs.shape[:2], recurrent.shape, bias.shape, theta.shape
        if shapes != ((3, neurons), (3, neurons, neurons), (3, neurons), (neurons,)):
            raise DataError(
                "egru-shape", f"weights of shapes {shapes} make no layer", "give u, r and z by neuron"
            )
        least = np.rint(theta * ONE).astype(np.int64)
        if bool(np.any(least < 1)):
            raise DataError(
                "egru-threshold",
                f"a threshold of {theta.min()}",
                f"give at least {1 / ONE}: a silent neuron sends 0",
            )
        both = np.concatenate([inputs, recurrent], axis=2)
        scales = np.maximum(np.abs(both).max(axis=2), 1e-30) / 127
        rounded = np.rint(both / scales[:, :, None]).astype(np.int8)
        split = inputs.shape[2]
        return cls(rounded[..., :split], rounded[..., split:], scales, np.asarray(bias, np.float64), least)


@dataclass(frozen=True)
class EgruWork:
    """What steps cost.

    Attributes:
        steps: how many.
        changes: inputs that were not as in the step before.
        events: neurons that fired.
        operations: products of a weight with a change or an event.
        dense: products of dense execution.
    """

    steps: int = 0
    changes: int = 0
    events: int = 0
    operations: int = 0
    dense: int = 0

    @property
    def skipped(self) -> float:
        """Return the share of dense products that were not done."""
        return 1 - self.operations / self.dense if self.dense else 0.0


class Egru:
    """A running layer; its state stays between calls."""

    def __init__(self, weights: EgruWeights) -> None:
        self.weights = weights
        self.work = EgruWork()
        # Column by column, as events come: [inputs, 3, neurons], int64 so that products do not wrap.
        self._inputs = np.ascontiguousarray(weights.inputs.transpose(2, 0, 1)).astype(np.int64)
        self._recurrent = np.ascontiguousarray(weights.recurrent.transpose(2, 0, 1)).astype(np.int64)
        self.reset()

    def reset(self) -> None:
        """Return to rest."""
        neurons = len(self.weights.theta)
        self._x = np.zeros(len(self._inputs), np.int64)
        self._sums = np.zeros((3, neurons), np.int64)
        self._c, self._y = np.zeros(neurons, np.int64), np.zeros(neurons, np.int64)

    @property
    def state(self) -> Integers:
        """Return c, int64 [neurons], FRACTION bits behind the point."""
        return self._c.copy()

    def step(self, frame: Reals) -> Integers:
        """Take the next frame [inputs]; returns y, int64 [neurons], 0 where nothing is sent.

        Raises:
            DataError: `egru-input`, a wrong shape or values beyond +-2^18; the state is as before.
        """
        x = fixed(frame, len(self._inputs))
        changed, fired = np.flatnonzero(x != self._x), np.flatnonzero(self._y)
        self._sums += np.tensordot((x - self._x)[changed], self._inputs[changed], axes=1)
        gates = self._sums[:2] + np.tensordot(self._y[fired], self._recurrent[fired, :2], axes=1)
        u, r = sigmoid(gates, self.weights)
        passed = _scaled(r[fired] * self._y[fired])
        last = self._sums[2] + np.tensordot(passed, self._recurrent[fired, 2], axes=1)
        self._x = x
        self._c, self._y = update(self.weights, u, tanh(last, self.weights), self._c, self._y)
        self._count(len(changed), len(fired))
        return self._y.copy()

    def _count(self, changes: int, fired: int) -> None:
        done, wide = self.work, 3 * len(self._y)
        self.work = EgruWork(
            done.steps + 1,
            done.changes + changes,
            done.events + int(np.count_nonzero(self._y)),
            done.operations + (changes + fired) * wide,
            done.dense + (len(self._x) + len(self._y)) * wide,
        )


def fixed(frame: Reals, inputs: int) -> Integers:
    """Return a frame with FRACTION bits behind the point."""
    real = np.asarray(frame, np.float64)
    if real.shape != (inputs,) or not np.all(np.abs(real) * ONE < _MOST):
        raise DataError(
            "egru-input", f"a frame of shape {real.shape}", f"give {inputs} numbers within +-{_MOST // ONE}"
        )
    return np.rint(real * ONE).astype(np.int64)


def dense(weights: EgruWeights, frames: Reals) -> tuple[Integers, Integers]:
    """Return y and c after every frame [steps, inputs], every product done: what skipping is checked with."""
    neurons = len(weights.theta)
    c, y = np.zeros(neurons, np.int64), np.zeros(neurons, np.int64)
    inputs, recurrent = weights.inputs.astype(np.int64), weights.recurrent.astype(np.int64)
    outputs, states = [], []
    for frame in frames:
        x = fixed(frame, inputs.shape[2])
        u, r = sigmoid(inputs[:2] @ x + recurrent[:2] @ y, weights)
        z = tanh(inputs[2] @ x + recurrent[2] @ _scaled(r * y), weights)
        c, y = update(weights, u, z, c, y)
        outputs.append(y)
        states.append(c)
    return np.array(outputs), np.array(states)


def sigmoid(sums: Integers, weights: EgruWeights) -> Integers:
    """Return u and r of their sums [2, neurons]."""
    real = sums * (weights.scales[:2] / ONE) + weights.bias[:2]
    return np.rint((0.5 + 0.5 * np.tanh(real / 2)) * ONE).astype(np.int64)


def tanh(sums: Integers, weights: EgruWeights) -> Integers:
    """Return z of its sums [neurons]."""
    real: Reals = np.tanh(sums * (weights.scales[2] / ONE) + weights.bias[2])
    return np.rint(real * ONE).astype(np.int64)


def update(
    weights: EgruWeights, u: Integers, z: Integers, c: Integers, y: Integers
) -> tuple[Integers, Integers]:
    """Return c and y after a step."""
    now = _scaled(u * z + (ONE - u) * c) - np.where(y != 0, weights.theta, 0)
    return now, np.where(now >= weights.theta, now, 0)


def _scaled(product: Integers) -> Integers:
    """Return a product of two numbers with FRACTION bits as one, rounded half up."""
    return (product + (ONE >> 1)) >> FRACTION
