"""The report of a mapping: `reports/mapping.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from ....compiler.device import Device
from ....compiler.records import Json
from ....compiler.target import Target
from .records import Layout
from .views import View

_OPERATION = "synaptic_operation"
_SUMS = (
    "op_count", "op_and_memory", "spikes_op_count", "spikes_op_and_memory", "dense_op_count",
    "dense_op_and_memory", "rival_op_count", "rival_op_and_memory",
)  # fmt: skip

Entry = Mapping[str, Json]


def report(
    network: Sequence[View], layout: Layout, target: Target, device: Device, entries: Sequence[Entry] | None
) -> dict[str, Json]:
    """Return the report; `entries` are those of the ledger, None without calibration data."""
    return {
        "target": target.name,
        "origin": "modelled: nothing was run on the device",
        "fits": layout.fits,
        "cores": {"needed": layout.cores_needed, "available": layout.cores},
        "misfits": [misfit.to_json() for misfit in layout.misfits],
        "layers": [_layer(view, layout) for view in network],
        "parts": [placed.to_json() for placed in layout.placed],
        "differs": [*device.differs, *_uneven(network, device)],
        "notes": list(layout.notes),
        "energy": energy(target, device, entries),
        "sources": dict(device.sources),
        "assumed": dict(device.assumed),
    }


def _layer(view: View, layout: Layout) -> dict[str, Json]:
    parts = [placed for placed in layout.placed if placed.layer == view.name]
    broken = [misfit.limit for misfit in layout.misfits if misfit.layer == view.name]
    return {
        "name": view.name,
        "kind": view.kind,
        "image": list(view.image),
        "neurons": view.neurons,
        "weights": sum(fan.weights for fan in view.fans),
        "weight_bits": max(fan.weight_bits for fan in view.fans),
        "state_bits": view.state_bits,
        "parts": len(parts),
        "cores": [placed.core for placed in parts if placed.core >= 0],
        "fill": round(max((placed.fill for placed in parts), default=0.0), 4),
        "exceeds": list(dict.fromkeys(broken)),
    }


def _uneven(network: Sequence[View], device: Device) -> list[str]:
    """Name the layers that one threshold with reset by subtraction would count otherwise."""
    layers = [view.name for view in network if not view.even]
    if not layers or device.layer.event_bits_max != 0:
        return []
    return [f"thresholds are not equally far apart in {', '.join(layers)}"]


def energy(target: Target, device: Device, entries: Sequence[Entry] | None) -> dict[str, Json]:
    """Return the device's modelled energy per layer, beside general models of events and of dense rivals."""
    if entries is None:
        return {"kind": "unavailable", "value": None, "why": "no calibration data to count operations on"}
    layers = [{"name": entry["name"], **_of_device(target, device, entry)} for entry in entries]
    values = [layer["value"] for layer in layers]
    known = all(isinstance(value, float) for value in values)
    return {
        "kind": "modelled" if known else "unavailable",
        "value": sum(value for value in values if isinstance(value, float)) if known else None,
        "unit": "nJ per sample",
        **{key: value for key, value in layers[0].items() if key in ("why", "source", "node_nm", "includes")},
        "events": "one per count" if device.layer.event_bits_max == 0 else "with payload",
        "layers": cast(Json, layers),
        "general": _totals(entries),
    }


def _of_device(target: Target, device: Device, entry: Entry) -> dict[str, Json]:
    """Return operations by the device's energy each, or why there is none."""
    spikes = device.layer.event_bits_max == 0
    done = _number(entry["spike_acs"]) if spikes else sum(
        _number(entry[key]) for key in ("effective_macs", "effective_acs")
    )  # fmt: skip
    constant = target.energy.get(_OPERATION)
    if constant is None:
        why = target.energy_missing.get(_OPERATION, "the target names no energy per synaptic operation")
        return {"synaptic_operations": done, "value": None, "why": why}
    return {
        "synaptic_operations": done, "value": done * constant.picojoules * 1e-3, "unit": "nJ per sample",
        "picojoules": constant.picojoules, "node_nm": constant.node_nm, "source": constant.source,
        "includes": constant.includes,
    }  # fmt: skip


def _totals(entries: Sequence[Entry]) -> dict[str, Json]:
    """Add up the ledger's models over layers, which all devices share."""
    energies = [cast(Entry, entry["energy"]) for entry in entries]
    if any(found.get("kind") != "modelled" for found in energies):
        return {"kind": "unavailable", "why": "the target lacks the constants of the general models"}
    constants: dict[str, Json] = {}
    for found in energies:
        constants.update(cast(dict[str, Json], found["constants"]))
    sums: dict[str, Json] = {name: sum(_number(found[name]) for found in energies) for name in _SUMS}
    return {"kind": "modelled", "unit": "nJ per sample", **sums, "constants": constants}


def _number(value: Json) -> float:
    assert isinstance(value, int | float), f"a number, not {value!r}"
    return float(value)
