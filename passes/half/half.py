"""The pass `half`: float32 values become float16 or bfloat16 where that is safe; the rest says why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from ...compiler.errors import PipelineError
from ...compiler.exclusion import excluded_by
from ...compiler.ir.walk import all_nodes
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from .convert import Converter
from .plan import CONSTANT, UNSEEN, Plan, make_plan
from .ranges import peaks, refuse_overflow
from .weights import DTYPES, LARGEST, Constants, Rounded

_KINDS = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
# A share of weights with fewer digits that is worth a word.
_MANY = 0.01


@dataclass(frozen=True)
class Half:
    """Compute in half floats: values and weights of float32 become float16 or bfloat16.

    Lossy, edits all graphs. Weights are rounded to nearest even, casts stand where types meet. In float32
    stay: powers, exponentials, sums and norms, whose results can leave the range; angles and coordinates;
    recurrent layers; quantized layers; what has no half form in ONNX; nodes with constants that would become
    infinite or 0; what only lies between these; with float16, bodies of If, Loop and Scan. With calibration
    data the float32 model is run first, and values beyond 65504 (float16) are an error that names them.

    Attributes:
        type: `float16` (11 digits, up to 65504) or `bfloat16` (8 digits, the range of float32).
        io: type of the model's float inputs and outputs: `float32`, or `half`.
        keep: what stays in float32 as well: operators, nodes or values, by name or regular expression,
            separated by commas.
    """

    name: ClassVar[str] = "half"
    effect: ClassVar[Effect] = Effect.LOSSY

    type: Literal["float16", "bfloat16"] = "float16"
    io: Literal["float32", "half"] = "float32"
    keep: str = ""

    def __post_init__(self) -> None:
        if self.type == "bfloat16" and self.io == "half":
            raise PipelineError(
                "half-io",
                "half: inputs and outputs in bfloat16, which NumPy arrays cannot carry",
                "leave io out",
            )

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Convert what is safe; see the class.

        Raises:
            ModelError: `half-overflow`: values leave the range of float16 on the calibration data.
            DataError: `calibration-not-finite`.
        """
        stats = PassStats()
        keep = tuple(p for p in self.keep.split(",") if p)
        constants = Constants(DTYPES[self.type])
        plan = make_plan(model, _KINDS[self.type], constants, keep, ctx.exclude)
        stats.refused = _refusals(plan)
        stats.notes += [*_idle(model, keep), *_unseen(plan)]
        if not plan.forms:
            return stats
        if self.type == "float16":
            self._check_ranges(model, plan, ctx, stats)
        converter = Converter(model, plan, self.io == "half")
        converter.run()
        stats.changed = len(plan.forms)
        stats.details |= {
            "nodes_half": len(plan.forms), "nodes_float32": len(stats.refused), "casts": converter.casts
        }  # fmt: skip
        self._count_lost(converter.rounded, stats)
        return stats

    def _check_ranges(self, model: ir.Model, plan: Plan, ctx: Context, stats: PassStats) -> None:
        if ctx.calibration is None:
            stats.notes.append(
                "float16: no calibration data, so that nobody looked whether values stay below 65504"
            )
            return
        found = peaks(model, plan.turned(model), ctx.calibration, ctx)
        refuse_overflow(found, LARGEST[self.type], self.type)
        if found:
            value, peak = max(found.items(), key=lambda pair: pair[1])
            stats.details |= {"largest": peak, "largest_value": str(value.name)}

    def _count_lost(self, used: Sequence[Rounded], stats: PassStats) -> None:
        """Tell how many weights became 0 or have fewer digits than others."""
        total = sum(r.nonzero for r in used)
        flushed, subnormal = sum(r.flushed for r in used), sum(r.subnormal for r in used)
        stats.details |= {"weights_to_zero": flushed, "weights_subnormal": subnormal}
        if flushed or subnormal > _MANY * total:
            stats.notes.append(
                f"{self.type}: of {total} weights that are not 0, {flushed} became 0 and {subnormal} are "
                "below the smallest normal number, with fewer digits"
            )


def _refusals(plan: Plan) -> list[Refusal]:
    """Return what a reader wants to know of; constants and casts go without saying."""
    told = [(node, why) for node, why in plan.kept.items() if node.op_type not in ("Constant", "Cast")]
    return [Refusal(str(node.name), why) for node, why in told if why != CONSTANT]


def _unseen(plan: Plan) -> list[str]:
    count = sum(why == UNSEEN for why in plan.kept.values())
    if not count:
        return []
    return [
        f"float16: {count} operator(s) in bodies of If, Loop and Scan stay in float32: nobody looks whether "
        "values there stay below 65504; bf16 converts them"
    ]


def _idle(model: ir.Model, keep: Sequence[str]) -> list[str]:
    if not keep:
        return []
    names = {
        n for node in all_nodes(model) for n in (node.op_type, node.name, *(v.name for v in node.outputs))
    }
    idle = [p for p in keep if not any(excluded_by(str(name), [p]) for name in names)]
    return [f"half: keep={p} names no operator, node or value" for p in idle]
