"""Divides a model into regions for `native` and for `ort`: asks `native` again until it takes all of its own.

Whether a kernel takes a node depends on its neighbours (layouts, fused quantizers), so each region is asked
as the model that it would become. What is refused goes to `ort`, with the reason, and the rest is grouped
anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ....compiler.ir.stats import macs_of
from ....compiler.partition import Placement, Region, group
from ..native.isa import Isa
from ..native.lower import supported
from .draft import Draft
from .extract import region_model

NATIVE, ORT = "native", "ort"

# A border costs two calls from Python and a further session; regions that take less time than this are not
# worth one. The estimate (us) is that of onnxruntime on one core: per node, per multiplication, per byte.
LEAST_US = 15.0
_US_PER_NODE, _US_PER_MAC, _US_PER_BYTE = 2.0, 1 / 50_000, 1 / 20_000

# Further regions go to ort; every one of them is compiled and timed.
_MOST_REGIONS = 6


@dataclass(frozen=True)
class Division:
    """A division of all nodes: regions in running order; nodes of `ort` have the reason."""

    regions: tuple[Region, ...]
    placements: tuple[Placement, ...]

    @property
    def native(self) -> tuple[Region, ...]:
        """Return the regions of engine `native`."""
        return tuple(region for region in self.regions if region.backend == NATIVE)


def divide(
    draft: Draft, isa: Isa, refused: Mapping[str, str] | None = None, least_us: float = LEAST_US
) -> Division:
    """Return the division with as much as is worth it in `native`.

    Args:
        draft: the model.
        isa: what native code may use.
        refused: nodes that go to `ort` in any case, with the reason.
        least_us: regions that take less time, by estimate, go to `ort`.
    """
    reasons = _whole_layers(draft, dict(refused or {}))
    division, settled = _grouped(draft, reasons), False
    while not settled:
        more = _all_refusals(draft, division, isa) or _not_worth_it(draft, division, least_us)
        reasons = _whole_layers(draft, {**more, **reasons})
        division, settled = _grouped(draft, reasons), not more
    return division


def _whole_layers(draft: Draft, reasons: dict[str, str]) -> dict[str, str]:
    """Refuse the rest of a quantized layer with any node of it."""
    changed, layers = True, [[node.name or "" for node in layer] for layer in draft.layers()]
    while changed:
        changed = False
        for layer in layers:
            first = next((name for name in layer if name in reasons), None)
            others = [name for name in layer if name not in reasons] if first is not None else []
            for name in others:
                reasons[name], changed = f"one quantized layer with {first!r}", True
    return reasons


def _grouped(draft: Draft, reasons: Mapping[str, str]) -> Division:
    places = [ORT if (node.name or "") in reasons else NATIVE for node in draft.nodes]
    regions = tuple(group(draft.model, draft.nodes, places, draft.needs))
    placements = (
        Placement(node.name or "", node.op_type, place, reasons.get(node.name or "", ""))
        for node, place in zip(draft.nodes, places, strict=True)
    )
    return Division(regions, tuple(placements))


def _all_refusals(draft: Draft, division: Division, isa: Isa) -> dict[str, str]:
    found: dict[str, str] = {}
    for region in division.native:
        found |= dict(_border_refusals(draft, region)) or dict(_refusals(draft, region, isa))
    return found


def _border_refusals(draft: Draft, region: Region) -> Iterator[tuple[str, str]]:
    """Yield the nodes at borders whose size depends on something else than the number of samples."""
    given = {*region.inputs, *region.outputs}
    for node in region.nodes:
        for value in (*draft.needs(node), *node.outputs):
            if value.name in given and draft.border(value) is None:
                yield node.name or "", f"{value.name!r} has no fixed size per sample"


def _refusals(draft: Draft, region: Region, isa: Isa) -> Iterator[tuple[str, str]]:
    """Yield what `native` refuses of a region: nodes by name, or all of it when the reason names none."""
    names = {node.name or "" for node in region.nodes}
    makers = {value.name: node.name or "" for node in region.nodes for value in node.outputs}
    for name, reason in supported(region_model(draft, region), isa):
        found = name if name in names else makers.get(name)
        yield from ((one, reason) for one in ([found] if found is not None else sorted(names)))


def _not_worth_it(draft: Draft, division: Division, least_us: float) -> dict[str, str]:
    if len(division.native) == len(division.regions):
        return {}
    sizes = {region: _estimate(draft, region) for region in division.native}
    small = [region for region, us in sizes.items() if us < least_us]
    # One at a time would be better still, but each changes what the others are grouped with.
    further = sorted(set(sizes) - set(small), key=lambda region: -sizes[region])[_MOST_REGIONS:]
    too_small = f"its region is estimated to take less than {least_us:.0f} us, about what a border costs"
    many = f"more than {_MOST_REGIONS} regions; this one is among the smaller ones"
    return {**_named(small, too_small), **_named(further, many)}


def _named(regions: Sequence[Region], reason: str) -> dict[str, str]:
    return {node.name or "": reason for region in regions for node in region.nodes}


def _estimate(draft: Draft, region: Region) -> float:
    """Return roughly the time of onnxruntime in us."""
    macs = sum(macs_of(node) or 0 for node in region.nodes)
    outputs = (value for node in region.nodes for value in node.outputs)
    touched = sum(_bytes(draft, value) for value in outputs)
    return len(region.nodes) * _US_PER_NODE + macs * _US_PER_MAC + touched * _US_PER_BYTE


def _bytes(draft: Draft, value: ir.Value) -> float:
    count = 1
    for size in draft.shapes.get(value.name or "", ()):
        count *= size
    return count * (value.dtype.itemsize if value.dtype is not None else 4)
