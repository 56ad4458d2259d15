"""What a run costs in operations, as NeuroBench counts them, and in modelled energy, layer by layer.

Effective operations have a weight and an input that are both not zero; they are MACs, or ACs where inputs are
0 or 1. Dense ones are all, zeros included. Membrane updates are neurons that any effective operation reached.
Biases count nowhere. Definitions: https://arxiv.org/abs/2304.04640

Energy is always modelled. `op_count` is effective operations by an energy each. `op_and_memory` adds a
weight byte read per operation and, for events, the 32-bit potential read and written; dense execution reads
the input byte instead and keeps its sum in a register. The energy of an access grows with the memory that
holds the layer's weights, 32 bits at a time: https://arxiv.org/abs/2210.13107
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...compiler.records import Json
from ...compiler.target import EnergyConstant
from .graph import Connection, Conv, Dense, EventGraph, Integers, Layer, MaxPool
from .simulate import Counts, add

_MAC, _AC = "mac_int8", "ac_int8"
_MEMORIES = ((8 << 10, "sram_8k"), (32 << 10, "sram_32k"), (1 << 20, "sram_1m"))


@dataclass(frozen=True)
class Operations:
    """What a layer did, over all samples.

    Attributes:
        dense: products of all weights and inputs.
        macs, acs: effective operations; one of them is 0.
        events: active inputs that came in.
        updates: neurons that an event reached.
        weight_bytes: of the layer.
    """

    dense: int
    macs: int
    acs: int
    events: int
    updates: int
    weight_bytes: int


def operations(graph: EventGraph, layer: Layer, counts: Counts) -> Operations:
    """Count a layer's operations from the settled counts of its sources."""
    effective, dense, updated = 0, 0, None
    events = weight_bytes = 0
    binary = True
    for connection in layer.connections:
        if isinstance(connection.synapses, MaxPool):
            continue
        source = counts[connection.source]
        active = (source != 0).astype(np.int64)
        reached = _reached(layer, _present(connection), active)
        effective += int(reached.sum())
        dense += int(_reached(layer, _full(connection), np.ones_like(active)).sum())
        updated = reached > 0 if updated is None else updated | (reached > 0)
        events += int(active.sum())
        binary = binary and graph.range(connection.source) == (0, 1)
        if isinstance(connection.synapses, Dense | Conv):
            weight_bytes += connection.synapses.weights.size
    updates = 0 if updated is None else int(updated.sum())
    macs, acs = (0, effective) if binary else (effective, 0)
    return Operations(dense, macs, acs, events, updates, weight_bytes)


def _reached(layer: Layer, connection: Connection, active: Integers) -> Integers:
    total = np.zeros((len(active), *layer.shape), np.int64)
    add(total, connection, active)
    return total


def _present(connection: Connection) -> Connection:
    """Return the connection with 1 for every weight that is not 0."""
    synapses = connection.synapses
    if isinstance(synapses, Dense | Conv):
        synapses = replace(synapses, weights=(synapses.weights != 0).astype(np.int32))
    return replace(connection, synapses=synapses, values=None)


def _full(connection: Connection) -> Connection:
    """Return the connection with 1 for every weight."""
    synapses = connection.synapses
    if isinstance(synapses, Dense | Conv):
        synapses = replace(synapses, weights=np.ones_like(synapses.weights))
    return replace(connection, synapses=synapses, values=None)


def ledger(
    graph: EventGraph, counts: Counts, constants: Mapping[str, EnergyConstant]
) -> list[dict[str, Json]]:
    """Return one entry per layer: operations per sample, and energy where a target has the constants."""
    samples = max(1, len(next(iter(counts.values()))))
    entries = []
    for layer in graph.layers:
        found = operations(graph, layer, counts)
        entry: dict[str, Json] = {
            "name": layer.name,
            "dense_macs": found.dense / samples,
            "effective_macs": found.macs / samples,
            "effective_acs": found.acs / samples,
            "events": found.events / samples,
            "membrane_updates": found.updates / samples,
        }
        entry["energy"] = _energy(found, samples, constants)
        entries.append(entry)
    return entries


def _energy(found: Operations, samples: int, constants: Mapping[str, EnergyConstant]) -> Json:
    """Return modelled energies per sample in nanojoules, beside those of dense execution."""
    memory = next((name for size, name in _MEMORIES if found.weight_bytes <= size), _MEMORIES[-1][1])
    needed = (_MAC, _AC, memory)
    if any(name not in constants for name in needed):
        return {"kind": "unavailable", "why": "the target has no constants for " + ", ".join(needed)}
    mac, ac, access = (constants[name].picojoules for name in needed)
    events = found.macs * mac + found.acs * ac
    operations_done = found.macs + found.acs
    moved = operations_done * (access / 4 + 2 * access)
    dense = found.dense * mac
    nano = 1e-3 / samples
    return {
        "kind": "modelled",
        "unit": "nJ per sample",
        "op_count": events * nano,
        "op_and_memory": (events + moved) * nano,
        "dense_op_count": dense * nano,
        "dense_op_and_memory": (dense + found.dense * access / 2) * nano,
        "constants": {
            name: f"{constants[name].picojoules} pJ, {constants[name].node_nm} nm, {constants[name].source}"
            for name in needed
        },
    }
