"""What `reports/fpga.json` says about a project."""

from __future__ import annotations

from collections.abc import Mapping

from ....compiler.records import Json
from .plan import Plan, Step
from .reuse import Reuse
from .settings import Settings
from .vendor import Vendor


def report_of(plan: Plan, reuse: Mapping[str, Reuse], settings: Settings, vendor: Vendor) -> dict[str, Json]:
    """Return choices, one entry per hls4ml layer, and the vendor's figures or why there are none."""
    total = sum(one.multipliers for one in reuse.values())
    return {
        "engine": "hls4ml",
        "tool": settings.road.backend,
        "part": settings.part or "hls4ml's default",
        "clock_ns": settings.clock_ns,
        "io": settings.io,
        "multipliers_at_once": total,
        "multipliers_origin": "counted; how many become DSP blocks the vendor's tool decides",
        "layers": [_layer(step, reuse.get(step.name)) for step in plan.steps],
        "implementation": vendor.to_json(),
        "energy": None,
        "energy_why_null": "no measurement and no published constant for this part",
    }


def _layer(step: Step, reuse: Reuse | None) -> Json:
    types: dict[str, Json] = {name: form.text for name, form in step.types.items()}
    found: dict[str, Json] = {
        "name": step.name, "kind": step.kind, "node": step.source, "inputs": list(step.inputs),
        "precision": {**types, "result": step.output.text},
    }  # fmt: skip
    if reuse is not None:
        found |= {
            "strategy": reuse.strategy, "reuse_factor": reuse.factor, "products": reuse.products,
            "multipliers_at_once": reuse.multipliers,
        }  # fmt: skip
    return found
