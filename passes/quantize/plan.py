"""The decisions of a quantization, outside the graph: what gets which format, what stays float."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ...compiler.errors import PipelineError
from ...compiler.ir.quant import QuantSpec, Rounding, Scheme
from ...compiler.pass_api import Refusal
from ...compiler.records import Json, to_json

Role: TypeAlias = Literal["activation", "weight", "bias", "table"]
FORMAT = "pared-quant-plan-1"


@dataclass(frozen=True, order=True)
class Site:
    """One operand of one node.

    Attributes:
        node: the node's name.
        port: `in0`, `in1`, ... for an operand, `out0`, ... for a result, `add` for the constant operand of
            the Add behind it (the bias of a MatMul).
    """

    node: str
    port: str

    @classmethod
    def read(cls, node: str, index: int) -> Site:
        """Return the site of operand `index`."""
        return cls(node, f"in{index}")

    @classmethod
    def added(cls, node: str) -> Site:
        """Return the site of what an Add right behind the node adds to its result."""
        return cls(node, "add")

    @classmethod
    def write(cls, node: str, index: int = 0) -> Site:
        """Return the site of result `index`."""
        return cls(node, f"out{index}")


@dataclass(frozen=True)
class Decision:
    """How the value at a site is represented.

    Attributes:
        value: name of the value in the float graph.
        role: `activation`, `weight` (constant operand), `bias` (int32, scale = input scale * weight scale)
            or `table` (constant that is gathered from, dequantized after the Gather).
        spec: integer format.
        scale: one entry, or one per channel of `spec.axis`; every entry is exact in float32. None: not
            calibrated yet, a bias, a dynamic activation, or block-wise (derived from the weight itself).
        zero_point: as many entries as `scale`.
        dynamic: the range is taken at run time from the value itself.
    """

    value: str
    role: Role
    spec: QuantSpec
    scale: tuple[float, ...] | None = None
    zero_point: tuple[int, ...] | None = None
    dynamic: bool = False

    def __post_init__(self) -> None:
        if (self.scale is None) != (self.zero_point is None):
            raise ValueError(f"{self.value!r}: scale and zero point come together")
        scale, zero = self.scale or (), self.zero_point or ()
        if len(scale) != len(zero) or self.scale == ():
            raise ValueError(f"{self.value!r}: {len(scale)} scales, {len(zero)} zero points")
        if any(not s > 0 or not np.isfinite(s) for s in scale):
            raise ValueError(f"{self.value!r}: scales must be positive and finite, got {min(scale)}")

    def scaled(self, scale: npt.ArrayLike, zero_point: npt.ArrayLike) -> Decision:
        """Return this decision with the scale and zero point of a calibration (rounded to float32)."""
        scales = tuple(float(s) for s in np.asarray(scale, np.float32).reshape(-1))
        zeros = tuple(int(z) for z in np.asarray(zero_point, np.int64).reshape(-1))
        return dataclasses.replace(self, scale=scales, zero_point=zeros)


@dataclass(frozen=True)
class QuantPlan:
    """Every decision of one quantization, keyed by site; immutable, JSON, diffable.

    A value gets one quantizer. An `activation` decision at an `in` site makes that operand read the
    quantized value; at an `out` site every consumer reads it.
    """

    decisions: Mapping[Site, Decision] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "decisions", MappingProxyType(dict(self.decisions)))
        activations: dict[str, tuple[Site, Decision]] = {}
        for site, decision in self.decisions.items():
            if decision.role != "activation":
                continue
            first_site, first = activations.setdefault(decision.value, (site, decision))
            if first != decision:
                raise ValueError(f"{decision.value!r} is decided differently at {first_site} and {site}")

    def __len__(self) -> int:
        return len(self.decisions)

    def get(self, site: Site) -> Decision | None:
        """Return the decision at a site, None where the operand stays float."""
        return self.decisions.get(site)

    def nodes(self) -> list[str]:
        """Return the names of the nodes that have a decision, in order of first appearance."""
        return list(dict.fromkeys(site.node for site in self.decisions))

    def weights(self) -> dict[Site, Decision]:
        """Return the decisions on constant operands (weights and tables, not biases)."""
        return {s: d for s, d in self.decisions.items() if d.role in ("weight", "table")}

    def activations(self) -> dict[str, Decision]:
        """Return the decision of every quantized activation, by value name."""
        return {d.value: d for d in self.decisions.values() if d.role == "activation"}

    def without(self, nodes: Collection[str]) -> QuantPlan:
        """Return the plan with these nodes left in float."""
        gone = frozenset(nodes)
        kept = {site: d for site, d in self.decisions.items() if site.node not in gone}
        note = f"left in float: {', '.join(sorted(gone))}"
        return dataclasses.replace(self, decisions=kept, notes=(*self.notes, note)) if gone else self

    def weights_only(self, nodes: Collection[str]) -> QuantPlan:
        """Return the plan with float activations and biases at these nodes; their weights stay integers."""
        chosen = frozenset(nodes)
        kept = {
            site: d
            for site, d in self.decisions.items()
            if site.node not in chosen or d.role in ("weight", "table")
        }
        note = f"weights only: {', '.join(sorted(chosen))}"
        return dataclasses.replace(self, decisions=kept, notes=(*self.notes, note)) if chosen else self

    def updated(self, changes: Mapping[Site, Decision]) -> QuantPlan:
        """Return the plan with some decisions replaced or added."""
        return dataclasses.replace(self, decisions={**self.decisions, **changes})

    def to_json(self) -> str:
        """Return the plan as JSON text, one line per site, so that a line diff shows what changed."""
        sites = [_site_json(site, decision) for site, decision in self.decisions.items()]
        lines = ",\n".join("  " + json.dumps(entry, sort_keys=True) for entry in sites)
        refusals = json.dumps([[r.node, r.reason] for r in self.refusals])
        return (
            f'{{"format": "{FORMAT}",\n"sites": [\n{lines}\n],\n"refusals": {refusals},\n'
            f'"notes": {json.dumps(list(self.notes))}}}\n'
        )

    @classmethod
    def from_json(cls, text: str) -> QuantPlan:
        """Read what `to_json` wrote; raises `PipelineError` on anything else."""
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise ValueError(f"format {raw['format']!r}, this version reads {FORMAT!r}")
            decisions = dict(_site_from(entry) for entry in raw["sites"])
            refusals = tuple(Refusal(node, reason) for node, reason in raw["refusals"])
            return cls(decisions, refusals, tuple(raw["notes"]))
        except (ValueError, KeyError, TypeError) as err:
            raise PipelineError("quant-plan-invalid", f"not a quantization plan: {err}") from err

    def diff(self, other: QuantPlan) -> list[str]:
        """Return one line per site that `other` adds (+), drops (-) or decides differently (~)."""
        return list(_diff(self.decisions, other.decisions))


def _diff(old: Mapping[Site, Decision], new: Mapping[Site, Decision]) -> Iterable[str]:
    for site in sorted(old.keys() | new.keys()):
        before, after = old.get(site), new.get(site)
        if before == after:
            continue
        mark = "+" if before is None else "-" if after is None else "~"
        shown = after or before
        assert shown is not None
        yield f"{mark} {site.node}.{site.port} {shown.value}: {shown.spec.bits} bits"


def _site_json(site: Site, decision: Decision) -> dict[str, Json]:
    fields = cast(dict[str, Json], to_json(decision))
    defaults = {"dynamic": False, "scale": None, "zero_point": None}
    kept = {k: v for k, v in fields.items() if k not in defaults or v != defaults[k]}
    return {"node": site.node, "port": site.port, **kept}


def _site_from(entry: Mapping[str, object]) -> tuple[Site, Decision]:
    rest = dict(entry)
    site = Site(str(rest.pop("node")), str(rest.pop("port")))
    raw = cast(dict[str, object], rest.pop("spec"))
    enums = {"scheme": Scheme(str(raw["scheme"])), "rounding": Rounding(str(raw["rounding"]))}
    spec = QuantSpec(**{**raw, **enums})  # type: ignore[arg-type]
    for key in ("scale", "zero_point"):
        rest[key] = tuple(cast(list[float], rest[key])) if rest.get(key) is not None else None
    return site, Decision(spec=spec, **rest)  # type: ignore[arg-type]
