"""How far an honest engine's results may be from the reference: a bound derived per model, not guessed.

Monte Carlo arithmetic (Parker 1997; Denis, de Oliveira Castro and Petit 2016): the reference runs several
times with every operator's result moved by a random error of the size of its own worst rounding error, and
every quantizer's input moved so that near ties fall either way. How far the outputs spread is how far
another order of summation, another polynomial or a fused multiply-add may move them. Nothing here looks at
any engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.backend import Array, Arrays
from ...compiler.errors import DataError
from ...compiler.ir.walk import bodies
from .base import active_jitter, is_float
from .evaluator import Evaluator
from .noise import Noise, Norms, unit_roundoff

# Disturbed runs per sample.
RUNS = 6
# The largest deviation seen is multiplied by this: samples not seen here may spread further.
SAFETY = 4.0
# Differences of so many units of the largest value are always accepted: no engine promises less.
FLOOR_ULPS = 16.0


@dataclass(frozen=True)
class Bound:
    """What difference to the reference is accepted: `|got - want| <= atol + rtol_of_max * max|want|`.

    Attributes:
        atol: absolute part, in units of the output.
        rtol_of_max: part relative to the largest finite magnitude of the wanted array.
        how: how it was found.
    """

    atol: float
    rtol_of_max: float
    how: str

    def limit(self, want: Array) -> float:
        """Return the largest accepted difference to `want`."""
        finite = np.abs(want.astype(np.float64)[np.isfinite(want.astype(np.float64))])
        return self.atol + self.rtol_of_max * float(finite.max(initial=0))

    def accepts(self, got: Array, want: Array) -> bool:
        """Say whether every value is within the bound; NaN and infinities must be equal."""
        if got.shape != want.shape:
            return False
        return largest_difference(got, want) <= self.limit(want)


def largest_difference(got: Array, want: Array) -> float:
    """Return the largest absolute difference; equal infinities and NaN differ by 0, others by infinity."""
    a, b = got.astype(np.float64), want.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(a - b))
    return float(np.where(np.isnan(gap), np.inf, gap).max(initial=0))


def derive_bound(model: ir.Model, samples: Sequence[Arrays], seed: int) -> dict[str, Bound]:
    """Derive a bound per graph output from disturbed runs of the reference; see `reference_with_bound`."""
    return reference_with_bound(model, samples, seed)[1]


def reference_with_bound(
    model: ir.Model, samples: Sequence[Arrays], seed: int
) -> tuple[list[dict[str, Array]], dict[str, Bound]]:
    """Return the reference outputs of every sample, and a bound per graph output from disturbed runs.

    Float outputs: `SAFETY` times the largest deviation in any sample and run, plus `FLOOR_ULPS` units of the
    largest value. Integer and bool outputs (indices, classes, quantized values): the largest deviation
    itself, so exactly equal unless a disturbed run came out differently, which is a near tie.

    Raises:
        DataError: no samples.
        UnsupportedOp, ModelError: as the reference.
    """
    if not samples:
        raise DataError("no-samples", "a bound needs at least one sample", "pass some inputs of the model")
    evaluator, norms = Evaluator(model), Norms(constant_values(model))
    spread = dict.fromkeys(evaluator.outputs, 0.0)
    wanted = [evaluator.run(sample) for sample in samples]
    for index, sample in enumerate(samples):
        for run in range(RUNS):
            noise = Noise(np.random.default_rng([seed, index, run]), norms)
            noisy = _disturbed(evaluator, sample, noise)
            for name, want in wanted[index].items():
                spread[name] = max(spread[name], _deviation(noisy[name], want))
    last = wanted[-1]
    return wanted, {name: _bound(spread[name], last[name], len(samples)) for name in evaluator.outputs}


def _disturbed(evaluator: Evaluator, sample: Arrays, noise: Noise) -> dict[str, Array]:
    token = active_jitter.set(noise.jitter)
    try:
        return evaluator.run(sample, noise.disturb)
    finally:
        active_jitter.reset(token)


def constant_values(model: ir.Model) -> frozenset[str]:
    """Return the names of the main graph's values that do not depend on its inputs."""
    constant: set[ir.Value] = {v for v in model.graph.initializers.values() if not v.is_graph_input()}
    for node in model.graph:
        inputs = (value for value in node.inputs if value is not None)
        if not bodies(node) and all(value in constant for value in inputs):
            constant.update(node.outputs)
    return frozenset(value.name for value in constant if value.name)


def _deviation(got: Array, want: Array) -> float:
    """Return the largest deviation; outputs whose shape depends on near ties have none that is bounded."""
    return largest_difference(got, want) if got.shape == want.shape else np.inf


def _bound(spread: float, want: Array, samples: int) -> Bound:
    source = f"Monte Carlo arithmetic, {RUNS} runs on each of {samples} samples"
    if not is_float(want):
        return Bound(spread, 0.0, f"{source}; largest deviation of an integer output")
    relative = 2 * FLOOR_ULPS * unit_roundoff(want)
    how = f"{source}; {SAFETY:g} times the largest deviation, plus {FLOOR_ULPS:g} ulps of the largest value"
    return Bound(SAFETY * spread, relative, how)
