"""LSTM, GRU and RNN with every attribute of the specification, computed in float64, rounded at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...compiler.errors import UnsupportedOp
from .base import Array, Kernel, wide

Activation = Callable[[Array], Array]
Step = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


_ACTIVATIONS: Mapping[str, Callable[[Array, float, float], Array]] = {
    "Sigmoid": lambda x, a, b: _sigmoid(x),
    "Tanh": lambda x, a, b: np.tanh(x),
    "Relu": lambda x, a, b: np.maximum(x, 0),
    "LeakyRelu": lambda x, a, b: np.where(x < 0, a * x, x),
    "ThresholdedRelu": lambda x, a, b: np.where(x > a, x, 0),
    "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "ScaledTanh": lambda x, a, b: np.asarray(a * np.tanh(b * x)),
    "Elu": lambda x, a, b: np.where(x < 0, a * np.expm1(x), x),
    "Softsign": lambda x, a, b: np.asarray(x / (1 + np.abs(x))),
    "Softplus": lambda x, a, b: np.logaddexp(0, x),
    "Affine": lambda x, a, b: np.asarray(a * x + b),
}
_ALPHA = {
    "LeakyRelu": 0.01,
    "ThresholdedRelu": 1.0,
    "HardSigmoid": 0.2,
    "ScaledTanh": 1.0,
    "Elu": 1.0,
    "Affine": 1.0,
}
_BETA = {"HardSigmoid": 0.5, "ScaledTanh": 1.0}


class _Recurrent(Kernel):
    """Shared frame: directions, layout, sequence lengths; a subclass gives the step of one direction."""

    gates: int
    states: int
    default_activations: Sequence[str]
    # set by the base class from the node
    activations: list[str] | None
    activation_alpha: list[float] | None
    activation_beta: list[float] | None
    clip: float | None
    direction: str

    def _activations(self, direction: int) -> list[Activation]:
        count = len(self.default_activations)
        names = (self.activations or list(self.default_activations) * 2)[
            direction * count : (direction + 1) * count
        ]
        alpha, beta = list(self.activation_alpha or []), list(self.activation_beta or [])
        return [self._activation(name, alpha, beta) for name in names]

    def _activation(self, name: str, alpha: list[float], beta: list[float]) -> Activation:
        named = {key.lower(): key for key in _ACTIVATIONS}
        key = named.get(name.lower())
        if key is None:
            raise UnsupportedOp(
                "activation",
                f"node {self.onnx_node.name!r}: activation {name!r} is unknown",
                f"valid: {sorted(_ACTIVATIONS)}",
            )
        a = float(alpha.pop(0)) if key in _ALPHA and alpha else _ALPHA.get(key, 0.0)
        b = float(beta.pop(0)) if key in _BETA and beta else _BETA.get(key, 0.0)
        clip, function = self.clip, _ACTIVATIONS[key]
        return lambda x: function(np.clip(x, -clip, clip) if clip else x, a, b)

    def _step(self, weights: tuple[Array, ...], functions: list[Activation]) -> Step:
        raise NotImplementedError

    def _run(self, x, w, r, b=None, lengths=None, *rest, **_):  # type: ignore[no-untyped-def]
        batch_first = bool(getattr(self, "layout", 0))
        first = [
            item.swapaxes(0, 1) if batch_first and item is not None else item
            for item in (x, *rest[: self.states])
        ]
        sequence, initial = wide(first[0]), first[1:]
        directions, hidden = w.shape[0], r.shape[-1]
        outputs, finals = [], []
        for d in range(directions):
            bias = np.zeros(2 * self.gates * hidden) if b is None else wide(b[d])
            peepholes = [wide(p[d]) for p in rest[self.states :] if p is not None] or [np.zeros(3 * hidden)]
            step = self._step((wide(w[d]), wide(r[d]), bias, *peepholes), self._activations(d))
            start = tuple(
                wide(initial[i][d])
                if i < len(initial) and initial[i] is not None
                else np.zeros((sequence.shape[1], hidden))
                for i in range(self.states)
            )
            backward = d == 1 or self.direction == "reverse"
            ys, state = _walk(sequence, start, step, backward, lengths)
            outputs.append(ys)
            finals.append(state)
        y = np.stack(outputs, axis=1)
        ends = [np.stack([state[i] for state in finals]) for i in range(self.states)]
        if batch_first:
            y, ends = y.transpose(2, 0, 1, 3), [end.swapaxes(0, 1) for end in ends]
        return tuple(item.astype(x.dtype) for item in (y, *ends))


def _walk(
    x: Array, state: tuple[Array, ...], step: Step, backward: bool, lengths: Array | None
) -> tuple[Array, tuple[Array, ...]]:
    """Run one direction over x [time, batch, features]; steps past a sample's length change nothing."""
    ys = np.zeros((x.shape[0], *state[0].shape))
    for time in range(x.shape[0] - 1, -1, -1) if backward else range(x.shape[0]):
        after = step(x[time], state)
        if lengths is None:
            state, ys[time] = after, after[0]
            continue
        alive = (time < lengths)[:, None]
        state = tuple(np.where(alive, new, old) for new, old in zip(after, state, strict=True))
        ys[time] = np.where(alive, after[0], 0)
    return ys, state


class LSTM(_Recurrent):
    """ONNX LSTM; gate order i, o, f, c."""

    gates, states = 4, 2
    input_forget: int
    default_activations = ("Sigmoid", "Tanh", "Tanh")

    def _step(self, weights: tuple[Array, ...], functions: list[Activation]) -> Step:
        w, r, bias, peephole = weights
        f, g, h = functions
        offset = np.asarray(bias[: len(bias) // 2] + bias[len(bias) // 2 :])
        p_i, p_o, p_f = np.split(peephole, 3)
        coupled = bool(self.input_forget)

        def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            hidden, cell = state
            i, o, forget, c = np.split(x @ w.T + hidden @ r.T + offset, 4, axis=-1)
            i = f(i + p_i * cell)
            forget = np.asarray(1 - i) if coupled else f(forget + p_f * cell)
            cell = forget * cell + i * g(c)
            return np.asarray(f(o + p_o * cell) * h(cell)), cell

        return step


class GRU(_Recurrent):
    """ONNX GRU; gate order z, r, h."""

    gates, states = 3, 1
    linear_before_reset: int
    default_activations = ("Sigmoid", "Tanh")

    def _step(self, weights: tuple[Array, ...], functions: list[Activation]) -> Step:
        w, r, bias, _ = weights
        f, g = functions
        size = r.shape[-1]
        wb, rb = np.split(bias, 2)
        before = bool(self.linear_before_reset)

        def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            hidden = state[0]
            inputs = x @ w.T + wb
            recurrent = hidden @ r[: 2 * size].T + rb[: 2 * size]
            z = f(inputs[:, :size] + recurrent[:, :size])
            reset = f(inputs[:, size : 2 * size] + recurrent[:, size:])
            if before:
                candidate = reset * (hidden @ r[2 * size :].T + rb[2 * size :])
            else:
                candidate = (reset * hidden) @ r[2 * size :].T + rb[2 * size :]
            h = g(np.asarray(inputs[:, 2 * size :] + candidate))
            return (np.asarray((1 - z) * h + z * hidden),)

        return step


class RNN(_Recurrent):
    """ONNX RNN."""

    gates, states = 1, 1
    default_activations = ("Tanh",)

    def _step(self, weights: tuple[Array, ...], functions: list[Activation]) -> Step:
        w, r, bias, _ = weights
        offset = np.asarray(bias[: len(bias) // 2] + bias[len(bias) // 2 :])
        return lambda x, state: (functions[0](np.asarray(x @ w.T + state[0] @ r.T + offset)),)
