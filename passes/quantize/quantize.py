"""The pass `quantize`: decide, calibrate, write; every decision and refusal goes into the report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.errors import DataError, PipelineError
from ...compiler.pass_api import Context, Effect, PassStats
from .bias_correct import correct_biases
from .calibrate import observe
from .datafree import estimated_ranges, keep_ranged
from .fallback import guard_inputs, input_layers
from .improve import Improvements, improve
from .materialize import apply_plan
from .plan import QuantPlan
from .policy import decide, shared_scales
from .ranges import choose_method
from .rules import Policy
from .scales import Range, WeightRange, assign
from .shrink import shrink_weights

# The finished graph is run once per depth; means settle long before ranges do.
_MEASURED_SAMPLES = 64


@dataclass(frozen=True)
class Quantize:
    """Quantize weights and activations after training.

    Lossy, edits the main graph (bodies of control flow: `quantize-recurrent`). Integers of 8 bits become
    QuantizeLinear/DequantizeLinear, other widths QONNX Quant. Static activations need calibration data.

    Attributes:
        bits: width of weights, 1 to 16.
        act_bits: width of activations, 2 to 16.
        act: `static` ranges from calibration data, `dynamic` ranges at run time (per tensor with 8 bits, per
            block of activations with `weights=block`), `none`: weights only.
        weights: one scale per `tensor`, output `channel`, or `block` of `block_size` inputs; `auto`: per
            channel, but per tensor where that makes a small file smaller and costs no accuracy.
        block_size: see `weights`.
        signed: signed integers for activations.
        symmetric: zero point in the middle for activations.
        weight_symmetric: zero point 0 for weights.
        scale: `float`, or `pow2` for powers of two.
        range: how ranges follow from calibration: `minmax`, `moving` average, `percentile`, `entropy`,
            `mse`, or `auto`: the one with the best output SQNR on held-out calibration samples.
        percentile: for `range=percentile`, in %.
        weight_range: `minmax`, or `mse` to clip weights where that lowers their squared error.
        rounding: of weights: `nearest`, or `adaround`, `gptq` by reconstruction of layer outputs.
        bias_correct: move the mean error of every layer's output into its bias: `true` what the layer's
            own weights cause, by one pass over the data; `measured` all of it, by comparing the finished
            graph with the float model depth by depth.
        tables: quantize constant tables that Gather reads.
        inputs: activations of the layers that read the model's inputs: `float`, `int8` like all others, or
            `auto`: float where that raises the output SQNR by 2 dB (judged up to 1 GMAC).
        io: `int8` quantizes from the graph inputs on where only data movement lies before the first layer.
    """

    name: ClassVar[str] = "quantize"
    effect: ClassVar[Effect] = Effect.LOSSY

    bits: int = 8
    act_bits: int = 8
    act: Literal["static", "dynamic", "none"] = "static"
    weights: Literal["auto", "tensor", "channel", "block"] = "auto"
    block_size: int = 32
    signed: bool = False
    symmetric: bool = False
    weight_symmetric: bool = True
    scale: Literal["float", "pow2"] = "float"
    range: Literal["minmax", "moving", "percentile", "entropy", "mse", "auto"] = "percentile"
    percentile: float = 99.999
    weight_range: WeightRange = "minmax"
    rounding: Literal["nearest", "adaround", "gptq"] = "nearest"
    bias_correct: bool | Literal["measured"] = False
    tables: bool = True
    inputs: Literal["auto", "int8", "float"] = "auto"
    io: Literal["float", "int8"] = "float"

    def __post_init__(self) -> None:
        _between("bits", self.bits, 1, 16)
        _between("act_bits", self.act_bits, 2, 16)
        if not 50.0 < self.percentile <= 100.0:
            raise PipelineError("quantize-option", f"percentile must be in (50, 100], got {self.percentile}")
        if self.weights == "block" and (self.bits not in (2, 4, 8) or self.block_size < 2):
            raise PipelineError(
                "quantize-option",
                f"weights=block needs bits 2, 4 or 8 and block_size >= 2, got {self.bits} and "
                f"{self.block_size}",
            )
        if self.act == "dynamic" and (self.bits, self.act_bits, self.weights) not in _DYNAMIC:
            raise PipelineError(
                "quantize-option",
                "act=dynamic needs act_bits=8, and bits=8 with weights=tensor or channel, or bits=4 or 2 "
                "with weights=block",
                "other widths have static ranges or float activations",
            )
        if self.act == "dynamic" and self.weights == "block" and self.block_size not in (32, 64, 128, 256):
            raise PipelineError(
                "quantize-option",
                f"act=dynamic has blocks of 32, 64, 128 or 256, got {self.block_size}",
            )
        if not self.weight_symmetric and self.scale == "pow2":
            raise PipelineError("quantize-option", "scale=pow2 has symmetric weights by definition")

    def policy(self) -> Policy:
        """Return what the rules need to know."""
        return Policy(
            bits=self.bits,
            act_bits=self.act_bits,
            act=self.act,
            weights="channel" if self.weights == "auto" else self.weights,
            block_size=self.block_size,
            signed=self.signed,
            symmetric=self.symmetric,
            weight_symmetric=self.weight_symmetric,
            pow2=self.scale == "pow2",
            tables=self.tables,
            io=self.io,
        )

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place.

        Raises:
            DataError: static activations without calibration samples, or activations that are not finite.
        """
        name_nodes(model.graph)
        plan, stats = self.plan(model, ctx)
        if not plan.decisions:
            return stats
        found = Improvements({}, {})
        original = model.clone() if self.bias_correct == "measured" else None
        if self.rounding != "nearest" or self.bias_correct is True:
            found = improve(model, plan, _samples(ctx), self.rounding, self.bias_correct is True, ctx, stats)
        stats.changed = apply_plan(model, plan, integers=found.integers, bias_shift=found.bias_shift)
        if original is not None:
            done = correct_biases(original, model, _samples(ctx).head(_MEASURED_SAMPLES), ctx)
            stats.refused += done.refused
            stats.details |= done.details
        return stats

    def plan(self, model: ir.Model, ctx: Context) -> tuple[QuantPlan, PassStats]:
        """Return the calibrated plan for `model` and the account of it; `model` is not edited."""
        start = time.process_time()
        plan = decide(model.graph, self.policy(), ctx.exclude)
        shared = shared_scales(model.graph, plan)
        estimated = estimated_ranges(ctx) if ctx.calibration is None else None
        if estimated is not None:
            plan = keep_ranged(plan, estimated, shared)
        stats = PassStats(refused=list(plan.refusals))
        values = {name for name, d in plan.activations().items() if not d.dynamic and name not in shared}
        method, ranges = self.range, dict[str, Range]()
        samples = _samples(ctx) if values and estimated is None else None
        if estimated is not None:
            ranges = {value: Range(*estimated[value]) for value in values}
        elif samples is not None:
            if method == "auto":
                method, ranges = choose_method(model, plan, values, shared, samples, ctx, self.percentile)
            else:
                spec = self.policy().activation()
                ranges = observe(
                    model, values, samples, method, spec=spec, percentile=self.percentile, ctx=ctx
                )
        plan = assign(plan, model.graph, ranges, shared, self.weight_range)
        if self.inputs == "float":
            plan = plan.weights_only(input_layers(model.graph, plan))
        elif samples is not None and self.inputs == "auto" and self.io == "float":
            plan = guard_inputs(model, plan, samples, ctx, stats)
        if samples is not None and self.weights == "auto" and self.bits == 8:
            plan = shrink_weights(model, plan, samples, ctx, stats, self.weight_range)
        stats.details |= _details(plan, len(values)) | {
            "ranges": str(method) if estimated is None else "estimated"
        }
        stats.details["cpu_seconds"] = round(time.process_time() - start, 3)
        stats.attachments["quant_plan.json"] = plan.to_json()
        return plan, stats


_DYNAMIC = frozenset({(8, 8, "tensor"), (8, 8, "channel"), (8, 8, "auto"), (4, 8, "block"), (2, 8, "block")})


def _between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise PipelineError("quantize-option", f"{name} must be {low}..{high}, got {value}")


def _samples(ctx: Context) -> Samples:
    if ctx.calibration is None or len(ctx.calibration) == 0:
        raise DataError(
            "calibration-missing",
            "static quantization needs representative inputs, and none were given",
            "pass calibration data, put estimate-ranges first, or choose act=dynamic or act=none",
        )
    return ctx.calibration


def _details(plan: QuantPlan, observed: int) -> dict[str, int | float | str]:
    roles = [decision.role for decision in plan.decisions.values()]
    return {
        "nodes_quantized": len(plan.nodes()),
        "weights_quantized": roles.count("weight") + roles.count("table"),
        "activations_quantized": len(plan.activations()),
        "ranges_observed": observed,
    }


def name_nodes(graph: ir.Graph) -> None:
    """Give every node without a name, or with one that is taken, a name of its own: plans refer to it."""
    seen: set[str] = set()
    for node in graph:
        if not node.name or node.name in seen:
            base = f"{node.op_type}_{node.outputs[0].name if node.outputs else ''}"
            node.name = base if base not in seen else f"{base}_{len(seen)}"
        seen.add(node.name)
