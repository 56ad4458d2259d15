"""Engine `mixed`, compile time: finds the division of a model that is fastest here, or refuses.

Each native region is timed against onnxruntime on the same region, then whole plans against each other and
against onnxruntime alone, always through the calls that run later, so that what crosses a border is paid for.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ....compiler.backend import REGIONS, Payload, RegionRecord
from ....compiler.errors import UnsupportedOp
from ....compiler.ir.export import weight_bytes
from ....compiler.ir.text import fingerprint
from ....compiler.machine import find_machine
from ....compiler.ort_run import PAYLOAD, OrtExecutable
from ....compiler.partition import Region
from ....compiler.pass_api import Context
from ....compiler.records import Json, to_json
from ....compiler.target import Target
from .. import ort_engine
from ..native.compile import usable_isa
from ..native.timing import Decisions, Key, Run, clock_for, deciding, fastest
from .divide import NATIVE, ORT, Division, divide
from .draft import Draft
from .engine import PLAN, plan_text
from .extract import region_model
from .parts import Workshop, part_of
from .samples import Samples

REPORT = "regions.json"

# Weights of ort regions are stored twice, in the region and in the whole graph.
_MOST_WEIGHT_BYTES = 256 << 20
_SECONDS_PER_PLAN = 0.1


@dataclass(frozen=True)
class Candidate:
    """A plan: regions that it runs in `native`, the rest being merged into `ort`."""

    name: str
    division: Division


def lower(model: ir.Model, target: Target, ctx: Context) -> Payload:
    """Divide and compile a model; `model` is not edited.

    The attachment `regions.json` lists the plans that were tried with their regions, where every node of the
    chosen one runs, and why not in `native`.

    Raises:
        MissingTool, TargetError: as for engine `native`.
        UnsupportedOp: `mixed-none`: no region is worth it; `mixed-whole`: engine `native` takes all of it;
            `mixed-slower`: onnxruntime alone is as fast, and the user did not name this engine; and what
            `native` says to open sizes.
    """
    isa = usable_isa(target)
    _check_size(model)
    draft = Draft(model)
    shop = Workshop(draft, isa, ctx.threads)
    with deciding(Decisions(isa, ctx.decisions)) as decisions:
        division = divide(draft, isa)
        _check_division(division)
        division = _buildable(draft, shop, division)
        _check_division(division)
        if ctx.decisions is None and isa.missing_on(find_machine()):
            raise UnsupportedOp(
                "mixed-elsewhere",
                "mixed: plans are chosen by time, and this CPU cannot run the target's code",
            )
        samples = Samples(draft, shop.signature.inputs, ctx)
        samples.expect(division.native)
        plans = _plans(shop, division, samples)
        chosen = _fastest_plan(shop, plans, samples, decisions, ctx.engine_named)
    return _payload(model, shop, plans, chosen, decisions)


def _check_size(model: ir.Model) -> None:
    size = weight_bytes(model)
    if size > _MOST_WEIGHT_BYTES:
        raise UnsupportedOp(
            "mixed-large",
            f"mixed: weights of {size} bytes would be stored twice; it takes {_MOST_WEIGHT_BYTES}",
        )


def _buildable(draft: Draft, shop: Workshop, division: Division) -> Division:
    """Return the division without the regions that turn out to be refused when they are lowered."""
    refused: dict[str, str] = {p.node: p.reason for p in division.placements if p.reason}
    while True:
        more: dict[str, str] = {}
        for region in division.native:
            try:
                shop.check(region)
            except UnsupportedOp as refusal:
                more |= {node.name or "": refusal.message for node in region.nodes}
        if not more:
            return division
        refused |= more
        division = divide(draft, shop.isa, refused)


def _check_division(division: Division) -> None:
    if not division.native:
        reasons = list(dict.fromkeys(p.reason for p in division.placements))
        raise UnsupportedOp(
            "mixed-none", f"mixed: no region for native: {'; '.join(reasons[:5])}", "use the engine ort"
        )
    if len(division.regions) == len(division.native):
        raise UnsupportedOp("mixed-whole", "mixed: native takes the whole model", "use the engine native")


# --- plans ------------------------------------------------------------------------------------------


def _plans(shop: Workshop, division: Division, samples: Samples) -> list[Candidate]:
    """Return the plans worth timing: all of `native`'s regions, those that win alone, and single ones."""
    wins = {region: _wins(shop, region, samples) for region in division.native}
    names = {region: f"native {index}" for index, region in enumerate(division.native)}
    kept = [[*division.native], [r for r in division.native if wins[r]]]
    kept += [[region] for region in division.native if wins[region]]
    found: dict[frozenset[Region], Candidate] = {}
    for regions in kept:
        if regions and frozenset(regions) not in found:
            name = " + ".join(names[region] for region in regions)
            found[frozenset(regions)] = Candidate(name, _without(shop, division, regions))
    return list(found.values())


def _wins(shop: Workshop, region: Region, samples: Samples) -> bool:
    """Say whether `native` runs a region faster than onnxruntime; either pays for its calls."""
    key = Key("region", f"{_digest(shop, region)} {shop.threads} thread(s)")

    def ready(engine: str) -> Run:
        executable = shop.load(region, engine)
        return lambda: executable.run(samples.of(region))

    options = {ORT: lambda: ready(ORT), NATIVE: lambda: ready(NATIVE)}
    return fastest(key, options, clock_for(shop.threads)) == NATIVE


def _without(shop: Workshop, division: Division, kept: Sequence[Region]) -> Division:
    """Return the division with native regions that are not kept in `ort`."""
    out = [region for region in division.native if region not in kept]
    if not out:
        return division
    refused = {p.node: p.reason for p in division.placements if p.reason}
    refused |= {node.name or "": "measured: not worth its border" for region in out for node in region.nodes}
    return _buildable(shop.draft, shop, divide(shop.draft, shop.isa, refused))


def _fastest_plan(
    shop: Workshop, plans: Sequence[Candidate], samples: Samples, decisions: Decisions, insist: bool
) -> Candidate:
    """Return the fastest plan; unless one is insisted on, refuse when onnxruntime alone is as fast."""
    key = Key("plan", f"{fingerprint(shop.draft.model)} {shop.threads} thread(s)")
    alone = f"{ORT} alone"

    def ready(plan: Candidate) -> Run:
        executable = shop.assemble(plan.division.regions)
        return lambda: executable.run(samples.inputs)

    options: dict[str, Callable[[], Run]] = {alone: lambda: _alone(shop, samples)}
    options |= {plan.name: functools.partial(ready, plan) for plan in plans}
    name = fastest(key, options, clock_for(shop.threads), _SECONDS_PER_PLAN)
    if name == alone:
        times = decisions.times.get(key.text, {})
        if not insist:
            listing = ", ".join(f"{option}: {seconds * 1e6:.4g} us" for option, seconds in times.items())
            raise UnsupportedOp("mixed-slower", f"mixed: no plan beats onnxruntime alone ({listing})")
        name = decisions.made[key.text] = _best(times, plans)
    return next(plan for plan in plans if plan.name == name)


def _best(times: Mapping[str, float], plans: Sequence[Candidate]) -> str:
    names = [plan.name for plan in plans]
    return min(names, key=lambda name: times.get(name, 0.0))


def _alone(shop: Workshop, samples: Samples) -> Run:
    executable = OrtExecutable(ort_engine.lower(shop.draft.model).read(PAYLOAD), shop.threads)
    return lambda: executable.run(samples.inputs)


def _digest(shop: Workshop, region: Region) -> str:
    return fingerprint(region_model(shop.draft, region))


# --- payload ----------------------------------------------------------------------------------------


def _payload(
    model: ir.Model, shop: Workshop, plans: Sequence[Candidate], chosen: Candidate, decisions: Decisions
) -> Payload:
    graph = ort_engine.lower(model)
    files: dict[str, bytes | Path] = dict(graph.files)
    attachments = dict(graph.attachments)
    parts = []
    for index, region in enumerate(chosen.division.regions):
        built = shop.build(region, region.backend)
        name = f"model_{index}{built.path.suffix}"
        files[name] = built.path.read_bytes()
        parts.append(part_of(region, built, name))
        if built.names:
            attachments[f"names_{index}.json"] = built.names
    files[PLAN] = plan_text(shop.signature, parts).encode()
    attachments |= {REPORT: _report(shop, plans, chosen), **decisions.attachments()}
    options: dict[str, str | int] = {"isa": shop.isa.text, REGIONS: len(parts)}
    regions = tuple(_region_record(region, chosen.division) for region in chosen.division.regions)
    payload = Payload("mixed", files, options, attachments, decisions.timed(), regions, decisions.notes())
    # A large graph lies in a temporary folder that goes with its own payload.
    weakref.finalize(payload, lambda kept: None, graph)
    return payload


def _region_record(region: Region, division: Division) -> RegionRecord:
    why = {placement.node: placement.reason for placement in division.placements}
    names = tuple(node.name or "" for node in region.nodes)
    return RegionRecord(region.backend, names, tuple(dict.fromkeys(why[name] for name in names if why[name])))


def _report(shop: Workshop, plans: Sequence[Candidate], chosen: Candidate) -> str:
    """Return what `regions.json` says: the plans, and of the chosen one every node and native step."""
    nodes = [dataclasses.asdict(placement) for placement in chosen.division.placements]
    steps = [shop.build(region, region.backend).report for region in chosen.division.regions]
    record: Json = {
        "chosen": chosen.name,
        "plans": {plan.name: [_region(region) for region in plan.division.regions] for plan in plans},
        "nodes": to_json(nodes),
        "native": steps,
    }
    return json.dumps(record, indent=1) + "\n"


def _region(region: Region) -> Json:
    return {
        "engine": region.backend,
        "nodes": [node.name or "" for node in region.nodes],
        "inputs": [*region.inputs],
        "outputs": [*region.outputs],
    }
