"""The pass `reconstruct`: weights that are left are fitted to the original's layer outputs by least squares.

For each output row with weights on the support S, and inputs x as they are in the compressed model by now,
`min E|y - w x - b|^2 + damping * mean(diag G) * |w - w0|^2` over w on S and b, with y the original's output:
`(G_SS + d I) (w - w0) = C_S - (G w0)_S`, `G = Cov[x]`, `C = Cov[x, y]` (second moments where there is no
bias). Zeros stay zeros. Layers are fitted in order of depth, each on the inputs that the fitted ones
before it make, so errors are not only kept small but made up for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.errors import PipelineError
from ...compiler.ir import walk
from ...compiler.ort import make_session, run_session
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from ..quantize.bias_correct import add_to_bias, refuse_bias
from ..quantize.moments import Gathered, within_budget
from ..quantize.pairs import bias_of
from .repair import need_original, need_samples
from .statistics import parents_of, refuse_statistics, show, tapped
from .weights import Weight, find_weights, store

Floats = npt.NDArray[np.floating]

_NOISE = float(np.finfo(np.float32).eps)
"""Relative error of the second moments, whose products are taken in float32."""

MAX_COLUMNS = 4096
"""Longest input: the systems of its rows take `k^3 / 3` operations each."""


@dataclass(frozen=True)
class Reconstruct:
    """Fit the weights that earlier passes left to the original's layer outputs on calibration data.

    Lossy, edits all graphs; needs calibration data and a lossy pass before it. Works on float weights of
    Conv, Gemm and MatMul: pruned ones, factors of low rank, layers behind compressed ones. Has to stand
    before `quantize` (there: `rounding=gptq`).

    Attributes:
        damping: pull towards the weights as they are, relative to the mean power of the inputs.
        samples: calibration samples used at most.
    """

    name: ClassVar[str] = "reconstruct"
    effect: ClassVar[Effect] = Effect.LOSSY
    damping: float = 0.01
    samples: int = 512

    def __post_init__(self) -> None:
        if not 0.0 < self.damping < 10.0 or self.samples < 1:
            raise PipelineError(
                "repair-option",
                f"reconstruct: damping must be above 0 and below 10, samples positive, got {self.damping:g} "
                f"and {self.samples}",
            )

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place; raises `DataError` or `PipelineError` when something is missing."""
        stats = PassStats()
        original = need_original(ctx, "reconstruct")
        samples = need_samples(ctx, "reconstruct").head(self.samples)
        layers = list(_layers(model, original, ctx, stats))
        errors = np.zeros(2)
        fewest = 0
        for level in levels_of(model, layers):
            for layer, sums in paired_sums(model, original, level, samples, ctx):
                ctx.check_cancelled()
                old = layer.weight.matrix()
                new, bias, before, after = _fit(old, sums, layer.fits_bias, self.damping)
                errors += before, after
                fewest = max(fewest, int(np.ceil(old.shape[2] * len(samples) / max(sums.count, 1))))
                if np.array_equal(new, old):
                    continue
                store(model, layer.weight, new)
                if layer.fits_bias:
                    node = layer.weight.uses[0].node
                    present = bias_of(node)
                    add_to_bias(model, node, bias - (0.0 if present is None else present))
                stats.changed += 1
        if fewest > len(samples):
            stats.notes.append(
                f"reconstruct: {len(samples)} calibration samples are few, about {fewest} determine the "
                "weights; the damping decides the rest"
            )
        stats.details |= {"layers": stats.changed, "damping": self.damping}
        if errors[0] > 0:
            stats.details["error_left"] = round(float(errors[1] / errors[0]), 4)
        return stats


@dataclass(frozen=True)
class FittedLayer:
    """A weight, the value of the original that its node's output should be, and whether its bias may move."""

    weight: Weight
    target: str
    fits_bias: bool


def _layers(model: ir.Model, original: ir.Model, ctx: Context, stats: PassStats) -> Iterator[FittedLayer]:
    """Yield the layers that can be fitted, those before the first difference left out."""
    targets = {value.name: value for value in walk.all_values(original)}
    parents = parents_of(model)
    changed = _downstream(model, original)
    for weight in find_weights(model, stats.refused, ctx.exclude):
        node = weight.uses[0].node
        if node not in changed:
            continue
        reason = refuse_fit(weight, targets.get(node.outputs[0].name)) or refuse_statistics(weight, parents)
        if reason:
            stats.refused.append(Refusal(weight.name, reason))
        else:
            yield FittedLayer(weight, str(node.outputs[0].name), refuse_bias(node) is None)


def refuse_fit(weight: Weight, target: ir.Value | None) -> str | None:
    """Say why a layer's outputs cannot be fitted to `target`, the original's, or None."""
    node = weight.uses[0].node
    if weight.view.layout in ("cell", "deconvolution"):
        return f"{node.op_type} has no output to fit per row"
    if len(weight.uses) > 1:
        return f"weight {weight.value.name!r} is shared, and its readers make different outputs"
    if weight.view.columns > MAX_COLUMNS:
        return f"{weight.view.columns} inputs are too many for least squares (at most {MAX_COLUMNS})"
    if target is None:
        return f"the original has no value {node.outputs[0].name!r}"
    if target.shape is not None and target.shape.rank() != len(node.outputs[0].shape or ()):
        return f"the original's {target.name!r} has another shape"
    if node.op_type == "Gemm" and any(
        key in node.attributes and node.attributes[key].as_float() != 1.0 for key in ("alpha", "beta")
    ):
        return "Gemm with alpha or beta"
    return refuse_bias(node) if node.op_type != "MatMul" else None


def _downstream(model: ir.Model, original: ir.Model) -> set[ir.Node]:
    """Nodes whose weights differ from the original's, and all behind them."""
    before = {value.name: walk.constant_tensor(value) for value in walk.all_values(original)}
    moved: set[ir.Value] = set()
    found: set[ir.Node] = set()
    for node in walk.all_nodes(model):
        inputs = [value for value in node.inputs if value is not None]
        inside = [nested for body in walk.bodies(node) for nested in walk.all_nodes(body)]
        inputs += [value for nested in inside for value in nested.inputs if value is not None]
        if node in found or any(_differs(value, before) or value in moved for value in inputs):
            found.update((node, *inside))
            moved.update(node.outputs)
    return found


def _differs(value: ir.Value, before: dict[str | None, ir.TensorProtocol | None]) -> bool:
    tensor = walk.constant_tensor(value)
    if tensor is None:
        return False
    other = before.get(value.name)
    return other is None or (other is not tensor and not np.array_equal(other.numpy(), tensor.numpy()))


def levels_of(model: ir.Model, layers: Sequence[FittedLayer]) -> list[list[FittedLayer]]:
    """Layers by the number of layers before them, on the longest way."""
    of = {layer.weight.uses[0].node: layer for layer in layers}
    depths: dict[ir.Value, int] = {}
    levels: dict[int, list[FittedLayer]] = {}
    for node in walk.all_nodes(model):
        depth = max((depths.get(v, 0) for v in node.inputs if v is not None), default=0)
        if node in of:
            levels.setdefault(depth, []).append(of[node])
        inside = sum(n in of for body in walk.bodies(node) for n in walk.all_nodes(body))
        for output in node.outputs:
            depths[output] = depth + (1 if node in of else inside)
    return [levels[depth] for depth in sorted(levels)]


@dataclass
class Sums:
    """Moments of inputs `x` `[groups, n, k]` and wanted outputs `y` `[groups, n, rows]`."""

    groups: int
    columns: int
    rows: int
    count: int = 0
    x: Floats = field(init=False)
    y: Floats = field(init=False)
    xx: Floats = field(init=False)
    xy: Floats = field(init=False)
    yy: Floats = field(init=False)
    _waiting: Gathered = field(init=False, repr=False, default_factory=Gathered)

    def __post_init__(self) -> None:
        g, k, r = self.groups, self.columns, self.rows
        self.x, self.y, self.yy = np.zeros((g, k)), np.zeros((g, r)), np.zeros((g, r))
        self.xx, self.xy = np.zeros((g, k, k)), np.zeros((g, k, r))

    def add(self, x: Floats, y: Floats) -> None:
        """Add inputs and outputs; products in float32, sums in float64."""
        assert x.shape[:2] == y.shape[:2], (x.shape, y.shape)
        self.x += x.sum(axis=1, dtype=np.float64)
        self.y += y.sum(axis=1, dtype=np.float64)
        self.yy += np.square(y).sum(axis=1, dtype=np.float64)
        self.count += x.shape[1]
        self._multiply(self._waiting.add(x, y))

    def close(self) -> None:
        """Add what was held back: `xx` and `xy` are complete from here on."""
        self._multiply(self._waiting.rest())

    def _multiply(self, gathered: tuple[Floats, ...] | None) -> None:
        if gathered is not None:
            x, y = gathered
            self.xx += np.matmul(x.transpose(0, 2, 1), x)
            self.xy += np.matmul(x.transpose(0, 2, 1), y)


def paired_sums(
    model: ir.Model, original: ir.Model, layers: Sequence[FittedLayer], samples: Samples, ctx: Context
) -> Iterator[tuple[FittedLayer, Sums]]:
    """Yield layers with moments of their inputs in `model` and their outputs in `original`."""
    for chunk in within_budget(layers, _sums_bytes):
        probe, taps = tapped(model, [layer.weight.uses[0] for layer in chunk])
        twin = original.clone()
        by_name = {value.name: value for value in walk.all_values(twin)}
        shown = show(twin, [by_name[layer.target] for layer in chunk])
        inputs = make_session(probe, extra_outputs=sorted({t.value for t in taps.values()}))
        outputs = make_session(twin, extra_outputs=sorted({name for name, _ in shown}))
        sums = [Sums(w.view.groups, w.view.columns, _rows(w)) for w in (layer.weight for layer in chunk)]
        for done, batch in enumerate(samples.batches(1), start=1):
            ctx.check_cancelled()
            here = run_session(inputs, batch, sorted({t.value for t in taps.values()}))
            there = run_session(outputs, batch, sorted({name for name, _ in shown}))
            for layer, total, (name, _) in zip(chunk, sums, shown, strict=True):
                tap = taps[layer.weight.uses[0]]
                total.add(tap.inputs(here[tap.value], layer.weight), _wanted(layer.weight, there[name]))
            ctx.progress("layer outputs", done, len(samples))
        for total in sums:
            total.close()
        yield from zip(chunk, sums, strict=True)


def _rows(weight: Weight) -> int:
    return int(np.prod(weight.view.shape)) // weight.view.columns // weight.view.groups


def _wanted(weight: Weight, y: npt.NDArray[np.generic]) -> Floats:
    """Arrange a layer's output as `[groups, n, rows]` float32, in the order of its inputs."""
    values: Floats = y.astype(np.float32, copy=False)
    g, rows = weight.view.groups, _rows(weight)
    node = weight.uses[0].node
    if node.op_type == "Conv":
        rank = len(weight.view.shape) - 2
        spatial = values.shape[-rank:]
        split = values.reshape(-1, g, rows, int(np.prod(spatial)))
        return np.ascontiguousarray(split.transpose(1, 0, 3, 2)).reshape(g, -1, rows)
    return values.reshape(1, -1, rows)


def _sums_bytes(layer: FittedLayer) -> int:
    view = layer.weight.view
    return 8 * view.groups * view.columns * (view.columns + _rows(layer.weight))


def _fit(old: Floats, sums: Sums, fits_bias: bool, damping: float) -> tuple[Floats, Floats, float, float]:
    """Return weights `[groups, rows, k]`, the bias `[out]`, and the squared error before and after.

    With `fits_bias` both errors are those left when the bias is the best one.
    """
    n = max(sums.count, 1)
    new = np.empty_like(old)
    bias = np.zeros(old.shape[:2])
    before = after = 0.0
    for g in range(len(old)):
        gram, cross, power = sums.xx[g] / n, sums.xy[g] / n, sums.yy[g] / n
        noise = _NOISE * float(np.diag(gram).mean())
        mean_x, mean_y = sums.x[g] / n, sums.y[g] / n
        if fits_bias:
            gram = gram - np.outer(mean_x, mean_x)
            cross = cross - np.outer(mean_x, mean_y)
            power = power - mean_y**2
        new[g] = _solve(old[g], gram, cross, damping, noise)
        before += _error(old[g], gram, cross, power)
        after += _error(new[g], gram, cross, power)
        bias[g] = mean_y - new[g] @ mean_x
    return new, bias.reshape(-1), before, after


def _error(w: Floats, gram: Floats, cross: Floats, power: Floats) -> float:
    """Sum over rows of `E (y - w x)^2`."""
    return float(np.einsum("rk,kl,rl->", w, gram, w) - 2 * np.sum(w * cross.T) + power.sum())


def _solve(old: Floats, gram: Floats, cross: Floats, damping: float, noise: float) -> Floats:
    """Rows with the same support share a factorisation; `noise` is the error in the elements of `gram`.

    Inputs that vary by no more than that, a constant say, tell nothing: the weights stay.
    """
    new = old.copy()
    spread = float(np.diag(gram).mean())
    if spread <= noise:
        return new
    ridge = damping * spread + noise
    missing = cross.T - old @ gram
    supports: dict[bytes, list[int]] = {}
    for row, kept in enumerate(old != 0):
        supports.setdefault(np.packbits(kept).tobytes(), []).append(row)
    for members in supports.values():
        rows, at = np.array(members), np.flatnonzero(old[members[0]] != 0)
        if len(at):
            system: Floats = gram[np.ix_(at, at)] + ridge * np.eye(len(at))
            new[np.ix_(rows, at)] += np.linalg.solve(system, missing[np.ix_(rows, at)].T).T
    return new
