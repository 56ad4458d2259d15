"""Arithmetic of spiking neurons, one step at a time: what `Neuron` computes, to the bit.

Kinds of NIR are forward Euler with a step of dt seconds, all of one form:

    i' = keep_i * i + gain_i * x                 (Cuba kinds; else the drive is x)
    v' = keep_v * v + gain_v * drive + rest
    z = v' > v_threshold;  v' = v_reset where z  (firing kinds; else v' leaves)

keep = 1 - dt / tau, gain_v = dt / tau * r, rest = dt / tau * v_leak, gain_i = dt / tau_syn * w_in; for I and
IF keep_v = 1 and gain_v = dt * r. Coefficients are computed in float64 and rounded to float32 once; the
recurrences in float32, one rounding per product and sum, from left to right. https://neuroir.org/docs

`lava.CUBA` is the neuron of lava's `.net` files, in integers (https://github.com/lava-nc/lava, LIF):

    i' = wrap(decay(i, iDecay) + 64 * x),   v' = limit(decay(v, vDecay) + i')
    z = v' >= 64 * vThMant;  v' = 0 where z;   decay(s, d) = sign(s) * floor(|s| * (4096 - d) / 4096)

`Delay` keeps what came in; element by element it gives what came round(delay / dt) steps before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Parameters = Mapping[str, npt.NDArray[np.generic]]
State = npt.NDArray[np.generic]

LAVA: Final = "lava.CUBA"
DELAY: Final = "Delay"

_LEAKY: Final = ("r", "v_leak")
_FIRING: Final = ("v_threshold", "v_reset")

# Parameters by kind, in the order of the operator's inputs.
PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "I": ("r",),
    "IF": ("r", *_FIRING),
    "LI": ("tau", *_LEAKY),
    "LIF": ("tau", *_LEAKY, *_FIRING),
    "CubaLI": ("tau_syn", "tau_mem", *_LEAKY, "w_in"),
    "CubaLIF": ("tau_syn", "tau_mem", *_LEAKY, *_FIRING, "w_in"),
    LAVA: ("iDecay", "vDecay", "vThMant"),
    DELAY: ("delay",),
}

UNITY: Final = 4096
WEIGHT_UNIT: Final = 64
# Loihi's 24 bits: currents wrap, voltages saturate.
LIMIT: Final = 2**23

_MOST_DELAY: Final = 100_000


def state_count(kind: str) -> int:
    """Return how many arrays a kind keeps: voltage, then current where it has one."""
    return 2 if kind.startswith("Cuba") or kind == LAVA else 1


@dataclass(frozen=True, eq=False)
class Recurrence:
    """Coefficients of a kind of NIR, of the neurons' shape or one for all; None where it has no such part."""

    keep_v: Floats
    gain_v: Floats
    rest: Floats
    keep_i: Floats | None = None
    gain_i: Floats | None = None
    threshold: Floats | None = None
    v_reset: Floats | None = None


def recurrence(kind: str, given: Parameters, dt: float) -> Recurrence:
    """Return the coefficients of a neuron of a kind of NIR."""
    wide = {name: np.asarray(given[name], np.float64) for name in PARAMETERS[kind]}
    firing = _FIRING if "v_threshold" in wide else ()
    threshold, reset = (_float(wide[name]) for name in firing) if firing else (None, None)
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    if kind in ("I", "IF"):
        return Recurrence(one, _float(dt * wide["r"]), zero, threshold=threshold, v_reset=reset)
    step = dt / wide["tau_mem" if "tau_mem" in wide else "tau"]
    keep, gain, rest = _float(1 - step), _float(step * wide["r"]), _float(step * wide["v_leak"])
    if "tau_syn" not in wide:
        return Recurrence(keep, gain, rest, threshold=threshold, v_reset=reset)
    synapse = dt / wide["tau_syn"]
    current = _float(1 - synapse), _float(synapse * wide["w_in"])
    return Recurrence(keep, gain, rest, *current, threshold, reset)


def advance(neuron: Recurrence, x: Floats, *states: Floats) -> tuple[Floats, ...]:
    """Take one step of a kind of NIR: what leaves, then the new states."""
    v, drive = states[0], x
    current: tuple[Floats, ...] = ()
    if neuron.keep_i is not None and neuron.gain_i is not None:
        drive = neuron.keep_i * states[1] + neuron.gain_i * x
        current = (drive,)
    v = neuron.keep_v * v + neuron.gain_v * drive + neuron.rest
    if neuron.threshold is None or neuron.v_reset is None:
        return (v, v, *current)
    fired = v > neuron.threshold
    return (fired.astype(np.float32), np.where(fired, neuron.v_reset, v), *current)


def advance_lava(given: Parameters, x: Floats, v: Integers, i: Integers) -> tuple[Floats, Integers, Integers]:
    """Take one step of lava's neuron; x is whole."""
    i_decay, v_decay, mantissa = (np.asarray(given[name], np.int64) for name in PARAMETERS[LAVA])
    arrived = np.rint(x).astype(np.int64) * WEIGHT_UNIT
    i = (_decayed(i, i_decay) + arrived + LIMIT) % (2 * LIMIT) - LIMIT
    v = np.clip(_decayed(v, v_decay) + i, 1 - LIMIT, LIMIT - 1)
    fired = v >= mantissa * WEIGHT_UNIT
    return fired.astype(np.float32), np.where(fired, 0, v), i


def _decayed(values: Integers, decay: Integers) -> Integers:
    return np.asarray(np.sign(values) * (np.abs(values) * (UNITY - decay) // UNITY), np.int64)


def delay_steps(delay: npt.NDArray[np.generic], dt: float) -> Integers:
    """Return delays in steps.

    Raises:
        ValueError: negative, or more than a queue should hold.
    """
    steps = np.rint(np.asarray(delay, np.float64) / dt)
    if steps.min(initial=0) < 0 or steps.max(initial=0) > _MOST_DELAY:
        raise ValueError(f"delays of {steps.min():g} to {steps.max():g} steps of {dt:g} s")
    return steps.astype(np.int64)


def advance_delay(steps: Integers, x: Floats, queue: Floats) -> tuple[Floats, Floats]:
    """Move a queue [longest delay + 1, samples, *shape] by one step: what leaves, and the new queue."""
    queue = np.concatenate([x[None], queue[:-1]])
    back = np.broadcast_to(steps, x.shape)[None]
    return np.asarray(np.take_along_axis(queue, back, axis=0)[0], np.float32), queue


def step(kind: str, dt: float, given: Parameters, x: Floats, states: tuple[State, ...]) -> tuple[State, ...]:
    """Take one step of any kind: what leaves, then the new states."""
    if kind == LAVA:
        return advance_lava(given, x, states[0].astype(np.int64), states[1].astype(np.int64))
    floats = tuple(state.astype(np.float32, copy=False) for state in states)
    if kind == DELAY:
        return advance_delay(delay_steps(given["delay"], dt), x, floats[0])
    return advance(recurrence(kind, given, dt), x, *floats)


def _float(values: npt.NDArray[np.generic]) -> Floats:
    return np.asarray(values, np.float32)
