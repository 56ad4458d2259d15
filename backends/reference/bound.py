"""How far an honest engine's results may be from the reference: a bound derived per model, not guessed.

Monte Carlo arithmetic (Parker 1997; Denis, de Oliveira Castro and Petit 2016): the reference runs several
times with every operator's result moved by a random error of the size of its own worst rounding error. How
far the outputs spread is how far another order of summation, another polynomial or a fused multiply-add may
move them. Nothing here looks at any engine.

The stated bound leaves every quantizer's decision as it is: a tie that falls the other way is a rare event of
one sample and must not widen the bound of all. A sample beyond it is judged anew by `Deriver.judge_again`,
where quantizers decide on the disturbed values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.backend import Array, Arrays
from ...compiler.differences import largest_difference
from ...compiler.errors import DataError
from ...compiler.ir.walk import bodies
from .base import active_jitter, is_float
from .evaluator import Evaluator
from .noise import Noise, Norms, unit_roundoff
from .ties import Decisions, choices

# Disturbed runs per sample.
RUNS = 6
# Runs with free quantizers that a sample beyond the stated bound gets at most, and how many at a time.
RUNS_AGAIN = 32
_AT_A_TIME = 4
# The largest deviation seen is multiplied by this: samples not seen here may spread further.
SAFETY = 4.0
# Differences of so many units of the largest value are always accepted: no engine promises less.
FLOOR_ULPS = 16.0
# Kernels with half results compute in float32 and round once: they may fall on the other side of a tie.
FLOOR_ULPS_HALF = 1.0


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
        return largest_difference(got, want) <= self.limit(want)


def derive_bound(model: ir.Model, samples: Sequence[Arrays], seed: int) -> dict[str, Bound]:
    """Derive a bound per graph output from disturbed runs of the reference; see `reference_with_bound`."""
    return reference_with_bound(model, samples, seed)[1]


def reference_with_bound(
    model: ir.Model, samples: Sequence[Arrays], seed: int
) -> tuple[list[dict[str, Array]], dict[str, Bound]]:
    """Return the reference outputs of every sample, and a bound per graph output from disturbed runs.

    Float outputs: `SAFETY` times the largest deviation in any sample and run, plus `FLOOR_ULPS` units of the
    largest value. Outputs that a quantizer made: the largest deviation, so exact unless something else moves
    them. Choices (classes, indices, truth values): exact.

    Raises:
        DataError: no samples.
        UnsupportedOp, ModelError: as the reference.
    """
    return Deriver(model, seed).stated(samples)


@dataclass
class SampleRuns:
    """What is known of one sample: its reference outputs, deviations with held quantizers, free runs."""

    inputs: Arrays
    want: dict[str, Array]
    held: dict[str, float]
    runs: list[dict[str, Array]]


class Deriver:
    """Derives bounds of one model; see the module's text.

    Args:
        model: not edited; imported.
        seed: of the random errors.
    """

    def __init__(self, model: ir.Model, seed: int) -> None:
        self._evaluator, self._norms = Evaluator(model), Norms(constant_values(model))
        self._choices = choices(model)
        self._seed = seed

    def stated(self, samples: Sequence[Arrays]) -> tuple[list[dict[str, Array]], dict[str, Bound]]:
        """Return the reference outputs of every sample and the bound of every output."""
        if not samples:
            raise DataError(
                "no-samples", "a bound needs at least one sample", "pass some inputs of the model"
            )
        found = [self.held(sample, index) for index, sample in enumerate(samples)]
        bounds = {name: self._bound(name, found) for name in self._evaluator.outputs}
        return [sample.want for sample in found], bounds

    def again(self, inputs: Arrays) -> SampleJudge:
        """Return a judge of this very sample; it runs the reference when asked."""
        return SampleJudge(self, inputs)

    def is_choice(self, name: str) -> bool:
        """Say whether an output is an index or a truth value, of which none is near another."""
        return name in self._choices

    def held(self, sample: Arrays, index: int = 0) -> SampleRuns:
        """Run once undisturbed and `RUNS` times disturbed, with every quantizer's decision held."""
        decisions = Decisions(self._norms.constants)
        want = self._evaluator.run(sample, decisions.record)
        spread = dict.fromkeys(self._evaluator.outputs, 0.0)
        for run in range(RUNS):
            noise = Noise(np.random.default_rng([self._seed, index, run]), self._norms)
            noisy = self._evaluator.run(sample, decisions.held(noise.disturb))
            for name in want:
                spread[name] = max(spread[name], largest_difference(noisy[name], want[name]))
        return SampleRuns(sample, want, spread, [])

    def free(self, sample: Arrays, run: int) -> dict[str, Array]:
        """Run with quantizers that decide anew, layers exact and in float by turns."""
        rng = np.random.default_rng([self._seed, run])
        noise = Noise(rng, self._norms, layers_in_float=run % 2 == 1)
        token = active_jitter.set(noise.jitter)
        try:
            return self._evaluator.run(sample, noise.disturb)
        finally:
            active_jitter.reset(token)

    def _bound(self, name: str, found: Sequence[SampleRuns]) -> Bound:
        source = f"Monte Carlo arithmetic, {RUNS} runs on each of {len(found)} samples, quantizers held"
        if self.is_choice(name):
            return Bound(0.0, 0.0, "exact: an index or truth value")
        spread = max(sample.held[name] for sample in found)
        return _bound(spread, found[-1].want[name], source)


class SampleJudge:
    """Judges one sample's outputs by a bound of its own, from as many runs as it takes up to `RUNS_AGAIN`."""

    def __init__(self, deriver: Deriver, inputs: Arrays) -> None:
        self._deriver, self._inputs = deriver, inputs
        self._known: SampleRuns | None = None

    def judge(self, name: str, got: Array, want: Array, factor: float = 1.0) -> tuple[float, float]:
        """Return the difference as a share of the sample's own bound, and that bound.

        Args:
            name: of the output.
            got: what the engine gave.
            want: what it is compared with: the reference, or another engine's result.
            factor: how many engines may be off the reference.
        """
        if got.shape != want.shape:
            return np.inf, 0.0
        if self._known is None:
            self._known = self._deriver.held(self._inputs)
        result = self._verdict(self._known, name, got, want, factor)
        while result[0] > 1 and len(self._known.runs) < RUNS_AGAIN:
            count = len(self._known.runs)
            more = range(count, count + _AT_A_TIME)
            self._known.runs += [self._deriver.free(self._inputs, run) for run in more]
            result = self._verdict(self._known, name, got, want, factor)
        return result

    def _verdict(
        self, known: SampleRuns, name: str, got: Array, want: Array, factor: float
    ) -> tuple[float, float]:
        runs = [run[name] for run in known.runs if run[name].shape == want.shape]
        if self._deriver.is_choice(name):
            seen = [known.want[name], want, *runs]
            return (0.0 if _among(got, seen) and _among(want, [known.want[name], *runs]) else np.inf), 0.0
        bound = _bound(known.held[name], known.want[name], "")
        deviations = [largest_difference(run, known.want[name]) for run in runs]
        limit = factor * max([bound.limit(known.want[name]), *deviations])
        difference = largest_difference(got, want)
        if not difference:
            return 0.0, limit
        return difference / limit if limit else np.inf, limit


def _among(got: Array, seen: Sequence[Array]) -> bool:
    """Say whether every value is what one of `seen` has in its place."""
    places = [got == array for array in seen if array.shape == got.shape]
    return bool(np.logical_or.reduce(places).all()) if places else False


def constant_values(model: ir.Model) -> frozenset[str]:
    """Return the names of the main graph's values that do not depend on its inputs."""
    constant: set[ir.Value] = {v for v in model.graph.initializers.values() if not v.is_graph_input()}
    for node in model.graph:
        inputs = (value for value in node.inputs if value is not None)
        if not bodies(node) and all(value in constant for value in inputs):
            constant.update(node.outputs)
    return frozenset(value.name for value in constant if value.name)


def _bound(spread: float, want: Array, source: str) -> Bound:
    if not is_float(want):
        return Bound(spread, 0.0, f"{source}; largest deviation of an integer output")
    unit = unit_roundoff(want)
    floor = FLOOR_ULPS if unit <= 2.0**-24 else FLOOR_ULPS_HALF
    how = f"{source}; {SAFETY:g} times the largest deviation, plus {floor:g} ulps of the largest value"
    return Bound(SAFETY * spread, 2 * floor * unit, how)
