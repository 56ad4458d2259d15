"""Compile time: an event graph with its placement, run by this machine's kernels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from ....compiler.backend import Payload
from ....compiler.errors import TargetError
from ..lower import REPORT as EVENTS
from ..lower import lower as lower_events
from ..read import read
from .place import device_of, place
from .records import Layout, Misfit
from .report import Entry, report
from .views import views

if TYPE_CHECKING:
    import onnx_ir as ir

    from ....compiler.pass_api import Context
    from ....compiler.target import Target

REPORT = "mapping.json"
PLACEMENT = "model_placement.json"
_NAMED = 3


def lower(model: ir.Model, target: Target, engine: str, ctx: Context) -> Payload:
    """Lower a quantized model and place it; the attachment `mapping.json` says how full the cores are.

    Engine `placed` refuses what the device cannot hold, `survey` reports it and goes on.

    Raises:
        TargetError: `event-does-not-fit`, by engine `placed`, with the limits; `event-device`.
        UnsupportedOp: `event-unsupported`, as for all event targets.
    """
    device = device_of(target)
    graph = read(model)
    layout = place(graph, target)
    if engine == "placed" and not layout.fits:
        raise _refusal(layout, target)
    payload = lower_events(model, target, "graded", ctx)
    entries = cast(Sequence[Entry] | None, json.loads(payload.attachments[EVENTS]).get("ledger"))
    text = json.dumps(report(views(graph), layout, target, device, entries), indent=1) + "\n"
    parts = json.dumps([placed.to_json() for placed in layout.placed], indent=1) + "\n"
    return replace(
        payload,
        engine=engine,
        files={**payload.files, PLACEMENT: parts.encode()},
        attachments={**payload.attachments, REPORT: text},
        notes=(*payload.notes, *_notes(layout, target)),
    )


def _refusal(layout: Layout, target: Target) -> TargetError:
    first = "; ".join(_sentence(misfit) for misfit in layout.misfits[:_NAMED])
    more = len(layout.misfits) - _NAMED
    return TargetError(
        "event-does-not-fit",
        f"target {target.name}: {first}" + (f"; and {more} more" if more > 0 else ""),
        "--engine survey writes the whole report, and an artifact that runs here",
    )


def _sentence(misfit: Misfit) -> str:
    place = f"layer {misfit.layer!r}: " if misfit.layer else ""
    return f"{place}{misfit.what} (would fit: {misfit.would_fit})"


def _notes(layout: Layout, target: Target) -> tuple[str, ...]:
    runs = f"{target.name} is modelled: reports/mapping.json; the artifact runs on this machine"
    if layout.fits:
        return (f"{layout.cores_needed} of {layout.cores} cores are used", runs)
    told = f"limits exceeded: {len(layout.misfits)}, the first: {_sentence(layout.misfits[0])}"
    return (f"the device does not hold the network; {told}", runs)
