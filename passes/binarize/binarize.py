"""The pass `binarize`: which layers, how their bases are fitted, what is written and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.errors import DataError, PipelineError
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from ..prune.reconstruct import FittedLayer, Sums, levels_of, paired_sums, refuse_fit
from ..prune.statistics import parents_of, refuse_statistics
from ..prune.weights import Weight, find_weights
from ..quantize.bias_correct import add_to_bias, refuse_bias
from ..quantize.pairs import bias_of
from .activations import Width, least_noise, narrow_input, widen_input
from .bases import Bases, alternating, in_bytes, residual
from .emit import write_bases, write_bytes
from .ends import end_layers
from .outputs import fit

Floats = npt.NDArray[np.floating]

REPORT = "binarize.json"
MAX_COLUMNS = 4608
"""Longest input for second moments, as for GPTQ: time grows with the cube of it."""

_BYTE_STEPS = 127


@dataclass(frozen=True)
class Binarize:
    """Weights as sums of binary or ternary bases with a scale per output, without training.

    Lossy, edits the main graph: Conv, Gemm and MatMul read sums of QONNX `BipolarQuant` (ternary: `Quant`
    of 2 bits). XNOR-Net's BWN (arXiv 1603.05279) is `bases=1 fit=residual`. Has to stand before `quantize`,
    which gives the rest 8 bits. A layer whose bases and scales would take more space than 8 bits is refused.

    Attributes:
        bases: how many, 1 to 4 (ternary: 1 or 2).
        ternary: codes -1, 0, 1 instead of -1, 1.
        fit: `residual`: one basis after the other; `als`: scales and codes in turns, by the error of the
            weights; `data`: by the error of the layer's outputs on calibration data, on the inputs that the
            binarized layers before it make, biases too; `auto`: data where there are samples, else als.
        ends: the first and last layers: `int8` weights per channel, `keep` as they are, or `binary` like all.
        format: `bases`, or `int8`: the sum as integers of 8 bits (scales rounded to steps of 1/127 of their
            sum), for layers whose activations `quantize` makes integers.
        activations: what binarized layers read: `float`; `binary`: signs around a threshold per channel
            (XNOR-Net); `2bit`: four values, or three where inputs have both signs. Needs data and
            `format=bases`; runs as popcounts in the engine `native`.
        act_sqnr: layers whose outputs no weights could bring closer than this, in dB, on such inputs keep
            float ones.
        damping: pull towards the weights as they are, relative to the mean power of the inputs.
        samples: calibration samples used at most.
    """

    name: ClassVar[str] = "binarize"
    effect: ClassVar[Effect] = Effect.LOSSY

    bases: int = 1
    ternary: bool = False
    fit: Literal["auto", "residual", "als", "data"] = "auto"
    ends: Literal["int8", "keep", "binary"] = "int8"
    format: Literal["bases", "int8"] = "bases"
    activations: Width = "float"
    act_sqnr: float = 10.0
    damping: float = 0.01
    samples: int = 512

    def __post_init__(self) -> None:
        most = 2 if self.ternary else 4
        if not 1 <= self.bases <= most:
            kind = "ternary bases" if self.ternary else "bases"
            raise PipelineError("binarize-option", f"binarize: {kind} must be 1..{most}, got {self.bases}")
        if not 0.0 < self.damping < 10.0 or self.samples < 1:
            raise PipelineError(
                "binarize-option",
                f"binarize: damping must be above 0 and below 10, samples positive, got {self.damping:g} "
                f"and {self.samples}",
            )
        if self.activations != "float" and (self.fit in ("residual", "als") or self.format == "int8"):
            raise PipelineError(
                "binarize-option",
                f"binarize: activations={self.activations} needs fit=data and format=bases, got "
                f"fit={self.fit} and format={self.format}",
            )

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place.

        Raises:
            DataError: `fit=data` without calibration samples.
        """
        stats, report = PassStats(), _Report(self)
        weights = find_weights(model, stats.refused, ctx.exclude)
        first_last = end_layers(model, weights) if self.ends != "binary" else frozenset()
        middle = [weight for weight in weights if weight not in first_last]
        chosen = [weight for weight in middle if not self._refuses(weight, model, stats)]
        if not chosen:
            return stats
        original = model.clone()
        for weight in (w for w in weights if w in first_last):
            self._end(model, weight, stats)
        for weight, bases in self._fitted(model, original, chosen, ctx, stats):
            report.add(weight, bases)
            self._write(model, weight, bases)
            stats.changed += 1
        report.finish(stats)
        return stats

    def _refuses(self, weight: Weight, model: ir.Model, stats: PassStats) -> bool:
        reason = _refuse_layer(weight, model) or self._refuse_size(weight)
        if reason is not None:
            stats.refused.append(Refusal(weight.name, reason))
        return reason is not None

    def _refuse_size(self, weight: Weight) -> str | None:
        """Compare with int8 and a scale per output."""
        rows, columns = _rows(weight), weight.view.columns
        own, bytes_ = self.stored_bytes(rows, columns), rows * (columns + 4)
        if own < bytes_:
            return None
        return (
            f"{columns} weights per output: {own} bytes with {self.bases} bases and scales, {bytes_} in int8"
        )

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of codes and float32 scales of one weight."""
        bits = self.bases * (2 if self.ternary else 1)
        return rows * (-(-columns * bits // 8) + 4 * self.bases)

    def _end(self, model: ir.Model, weight: Weight, stats: PassStats) -> None:
        """Store a first or last layer in 8 bits per output, or leave it."""
        how = "8 bits" if self.ends == "int8" else "as it is"
        reason = _refuse_layer(weight, model) or f"first or last layer: {how} (ends=binary takes it too)"
        stats.refused.append(Refusal(weight.name, reason))
        if self.ends == "int8" and _refuse_layer(weight, model) is None:
            stats.changed += 1
            matrix = weight.matrix()
            scale = np.maximum(np.abs(matrix).max(axis=2), 1e-12) / _BYTE_STEPS
            integers = np.rint(matrix / scale[:, :, None]).astype(np.int8)
            write_bytes(model, weight, integers, scale.reshape(-1))

    def _write(self, model: ir.Model, weight: Weight, groups: Sequence[Bases]) -> None:
        if self.format == "bases":
            write_bases(model, weight, groups, self.ternary)
            return
        integers, scales = zip(*(in_bytes(part) for part in groups), strict=True)
        write_bytes(model, weight, np.stack(integers), np.concatenate(scales))

    # --- fitting ---

    def _fitted(
        self,
        model: ir.Model,
        original: ir.Model,
        weights: Sequence[Weight],
        ctx: Context,
        stats: PassStats,
    ) -> Iterator[tuple[Weight, list[Bases]]]:
        """Yield weights with bases, to be written at once: deeper ones are fitted to what they make."""
        samples = self._samples(ctx)
        parents = parents_of(model)
        observed: list[FittedLayer] = []
        for weight in weights:
            node = weight.uses[0].node
            reason = _refuse_observing(weight) or refuse_statistics(weight, parents)
            if samples is None or reason is not None:
                if samples is not None:
                    stats.notes.append(f"binarize: {weight.name} is fitted by its weights alone: {reason}")
                yield weight, [self._by_weights(rows) for rows in weight.matrix()]
            else:
                observed.append(FittedLayer(weight, str(node.outputs[0].name), refuse_bias(node) is None))
        if samples is not None and observed:
            yield from self._by_data(model, original, observed, samples, ctx, stats)

    def _by_weights(self, rows: Floats) -> Bases:
        method = residual if self.fit == "residual" else alternating
        return method(rows, self.bases, self.ternary).positive()

    def _by_data(
        self,
        model: ir.Model,
        original: ir.Model,
        layers: Sequence[FittedLayer],
        samples: Samples,
        ctx: Context,
        stats: PassStats,
    ) -> Iterator[tuple[Weight, list[Bases]]]:
        fewest = 0
        for level in levels_of(model, layers):
            if self.activations != "float":
                self._narrow(model, original, level, samples, ctx, stats)
            for layer, sums in paired_sums(model, original, level, samples, ctx):
                ctx.check_cancelled()
                groups, bias = self._fit_layer(layer, sums)
                fewest = max(fewest, int(np.ceil(sums.columns * len(samples) / max(sums.count, 1))))
                if layer.fits_bias:
                    node = layer.weight.uses[0].node
                    present = bias_of(node)
                    add_to_bias(model, node, bias - (0.0 if present is None else present.reshape(-1)))
                yield layer.weight, groups
        if fewest > len(samples):
            stats.notes.append(
                f"binarize: {len(samples)} calibration samples are few, about {fewest} determine the "
                "weights; the damping decides the rest"
            )

    def _narrow(
        self,
        model: ir.Model,
        original: ir.Model,
        level: Sequence[FittedLayer],
        samples: Samples,
        ctx: Context,
        stats: PassStats,
    ) -> None:
        """Give layers inputs of few bits, and those float ones again whose outputs these would spoil."""
        before = {
            layer: narrow_input(model, layer, sums, self.activations, samples, ctx)
            for layer, sums in paired_sums(model, original, level, samples, ctx)
        }
        for layer, sums in paired_sums(model, original, level, samples, ctx):
            best = least_noise(sums, self.damping)
            if best < self.act_sqnr:
                widen_input(layer, before[layer])
                reason = f"inputs stay float: {self.activations} ones leave {best:.1f} dB at best"
                stats.refused.append(Refusal(layer.weight.name, f"{reason}, act_sqnr={self.act_sqnr:g}"))
            else:
                stats.details["inputs_narrowed"] = int(stats.details.get("inputs_narrowed", 0)) + 1

    def _fit_layer(self, layer: FittedLayer, sums: Sums) -> tuple[list[Bases], Floats]:
        """Return bases per group and the bias `[out]` that goes with them."""
        old, groups, bias = layer.weight.matrix(), list[Bases](), list[Floats]()
        for g in range(len(old)):
            gram, cross, mean_x, mean_y = moments(sums, g, centred=layer.fits_bias)
            damped = gram + self._ridge(gram) * np.eye(len(gram))
            # The rows that would be best if all were allowed; the error of others is a distance to them.
            target = np.linalg.solve(damped, cross + self._ridge(gram) * old[g].T).T
            groups.append(fit(target, damped, self.bases, self.ternary).positive())
            bias.append(mean_y - groups[-1].matrix() @ mean_x)
        return groups, np.concatenate(bias)

    def _ridge(self, gram: Floats) -> float:
        return self.damping * max(float(np.diag(gram).mean()), 1e-30)

    def _samples(self, ctx: Context) -> Samples | None:
        """Return the samples to fit to, None to fit the weights."""
        given = ctx.calibration if ctx.calibration is not None and len(ctx.calibration) else None
        if (self.fit == "data" or self.activations != "float") and given is None:
            what = "fit=data" if self.fit == "data" else f"activations={self.activations}"
            raise DataError(
                "calibration-missing",
                f"binarize: {what} looks at the layers' outputs, and no calibration data were given",
                "give --calib-data, or use fit=als",
            )
        return given.head(self.samples) if given is not None and self.fit in ("auto", "data") else None


def moments(sums: Sums, g: int, *, centred: bool) -> tuple[Floats, Floats, Floats, Floats]:
    """Return `E[xx']`, `E[xy']`, `E[x]`, `E[y]` of a group, the first two of centred values if asked for."""
    n = max(sums.count, 1)
    gram, cross = sums.xx[g] / n, sums.xy[g] / n
    mean_x, mean_y = sums.x[g] / n, sums.y[g] / n
    if centred:
        gram, cross = gram - np.outer(mean_x, mean_x), cross - np.outer(mean_x, mean_y)
    return gram, cross, mean_x, mean_y


def _rows(weight: Weight) -> int:
    return int(np.prod(weight.view.shape)) // weight.view.columns


def _refuse_layer(weight: Weight, model: ir.Model) -> str | None:
    """Say why a weight cannot become bases, or None."""
    node = weight.uses[0].node
    if weight.view.layout in ("cell", "deconvolution"):
        return f"{node.op_type} has no kernel for binary weights: quantize-recurrent and quantize take it"
    if any(use.node.graph is not model.graph for use in weight.uses):
        return "inside a body of control flow"
    if weight.value.dtype != ir.DataType.FLOAT:
        return f"weight {weight.value.name!r} is {weight.value.dtype}, binarize needs float32"
    return None


def _refuse_observing(weight: Weight) -> str | None:
    """Say why a layer's outputs cannot be fitted, or None."""
    if weight.view.columns > MAX_COLUMNS:
        return f"{weight.view.columns} inputs are too many for second moments (at most {MAX_COLUMNS})"
    return refuse_fit(weight, weight.uses[0].node.outputs[0])


@dataclass
class _Report:
    """What became of every layer."""

    options: Binarize
    rows: list[dict[str, str | int | float]] = field(default_factory=list)

    def add(self, weight: Weight, groups: Sequence[Bases]) -> None:
        """Add a layer; has to come before it is written."""
        matrix = weight.matrix()
        error = np.square(matrix - np.stack([part.matrix() for part in groups])).sum()
        power = max(float(np.square(matrix).sum()), 1e-300)
        rows, columns = matrix.shape[0] * matrix.shape[1], matrix.shape[2]
        self.rows.append(
            {
                "node": weight.name,
                "weight": str(weight.value.name),
                "bases": self.options.bases,
                "elements": matrix.size,
                "stored_bytes": self.options.stored_bytes(rows, columns),
                "int8_bytes": rows * (columns + 4),
                "weight_sqnr_db": round(10 * float(np.log10(power / error)), 2)
                if error > 0 < power
                else 999.0,
            }
        )

    def finish(self, stats: PassStats) -> None:
        """Write details and the attachment."""
        if not self.rows:
            return
        stats.attachments[REPORT] = json.dumps(self.rows, indent=1)
        stats.details |= {
            "layers_binarized": len(self.rows),
            "bits": self.options.bases * (2 if self.options.ternary else 1),
            "stored_bytes": sum(int(row["stored_bytes"]) for row in self.rows),
            "int8_bytes": sum(int(row["int8_bytes"]) for row in self.rows),
        }
