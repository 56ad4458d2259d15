"""What a run costs in operations, as NeuroBench counts them, and in modelled energy, layer by layer.

Effective operations have a weight and an input that are both not zero; they are MACs, or ACs where inputs are
0 or 1. Dense ones are all, zeros included. Membrane updates are neurons that any effective operation reached.
Biases count nowhere. Definitions: https://arxiv.org/abs/2304.04640

Energy is always modelled. `op_count` is operations by an energy each. `op_and_memory` adds what they read and
write, 32 bits at a time; the energy of an access grows with the memory that holds what is accessed
(https://arxiv.org/abs/2210.13107). Side by side stand

- events with payload: an operation reads its weight, reads and writes the 32-bit potential; every event is
  read from a queue once;
- `spikes`: the same where an event has no payload, so that a count is that many accumulations;
- `dense_...`: all products with 8-bit weights and inputs, which are read; the sum stays in a register;
- `rival`: dense, with weights of the layer's own width and inputs of as many bits as the counts need,
  ceil(log2(T + 1)) (https://arxiv.org/abs/2409.08290). A multiplication's energy is scaled by the product of
  both widths, which is our estimate.
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
_ACCESS_BITS = 32
_NANO = 1e-3


@dataclass(frozen=True)
class Operations:
    """What a layer did, over all samples.

    Attributes:
        dense: products of all weights and inputs.
        macs, acs: effective operations; one of them is 0.
        events: active inputs that came in.
        updates: neurons that an event reached.
        weight_bytes: of the layer, of the width that its weights need.
        spikes: accumulations where every count is one spike.
        spike_events: these spikes.
        weight_bits, input_bits: widths of weights and of counts.
        neurons, inputs: how many there are.
    """

    dense: int
    macs: int
    acs: int
    events: int
    updates: int
    weight_bytes: int
    spikes: int
    spike_events: int
    weight_bits: int
    input_bits: int
    neurons: int
    inputs: int


def operations(graph: EventGraph, layer: Layer, counts: Counts) -> Operations:
    """Count a layer's operations from the settled counts of its sources."""
    effective = dense = events = spikes = spike_events = weights = inputs = 0
    updated = None
    added = [c for c in layer.connections if not isinstance(c.synapses, MaxPool)]
    for connection in added:
        source = counts[connection.source]
        size = np.abs(source)
        active = (size != 0).astype(np.int64)
        present = _present(connection)
        reached = _reached(layer, present, active)
        effective += int(reached.sum())
        spikes += int(_reached(layer, present, size).sum())
        dense += int(_reached(layer, _full(connection), np.ones_like(active)).sum())
        updated = reached > 0 if updated is None else updated | (reached > 0)
        events, spike_events = events + int(active.sum()), spike_events + int(size.sum())
        inputs += int(np.prod(source.shape[1:]))
        if isinstance(connection.synapses, Dense | Conv):
            weights += connection.synapses.weights.size
    updates = 0 if updated is None else int(updated.sum())
    binary = all(graph.range(connection.source) == (0, 1) for connection in added)
    macs, acs = (0, effective) if binary else (effective, 0)
    weight_bits = max((_weight_bits(c) for c in added), default=1)
    input_bits = max((_count_bits(*graph.range(c.source)) for c in added), default=1)
    return Operations(
        dense, macs, acs, events, updates, -(-weights * weight_bits // 8), spikes, spike_events, weight_bits,
        input_bits, int(np.prod(layer.shape)), inputs,
    )  # fmt: skip


def _count_bits(low: int, high: int) -> int:
    """Return ceil(log2(T + 1)) for T the largest count, and one more for a sign."""
    return max(1, max(high, -low).bit_length()) + (low < 0)


def _weight_bits(connection: Connection) -> int:
    synapses = connection.synapses
    if not isinstance(synapses, Dense | Conv) or not synapses.weights.size:
        return 1
    low, high = int(synapses.weights.min()), int(synapses.weights.max())
    return max(high.bit_length(), (-low - 1).bit_length()) + 1


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
    return [entry(layer.name, operations(graph, layer, counts), samples, constants) for layer in graph.layers]


def entry(
    name: str, found: Operations, samples: int, constants: Mapping[str, EnergyConstant]
) -> dict[str, Json]:
    """Return a layer's entry; all numbers are per sample."""
    return {
        "name": name,
        "dense_macs": found.dense / samples,
        "effective_macs": found.macs / samples,
        "effective_acs": found.acs / samples,
        "events": found.events / samples,
        "membrane_updates": found.updates / samples,
        "spikes": found.spike_events / samples,
        "spike_acs": found.spikes / samples,
        "energy": _energy(found, samples, constants),
    }


def _energy(found: Operations, samples: int, constants: Mapping[str, EnergyConstant]) -> Json:
    """Return modelled energies per sample in nanojoules, beside those of dense execution."""
    memories = {name: _memory(size) for name, size in _sizes(found).items()}
    needed = (_MAC, _AC, *dict.fromkeys(memories.values()))
    if any(name not in constants for name in needed):
        return {"kind": "unavailable", "why": "the target has no constants for " + ", ".join(needed)}
    mac, ac = constants[_MAC].picojoules, constants[_AC].picojoules
    access = {name: constants[memory].picojoules for name, memory in memories.items()}
    events = found.macs * mac + found.acs * ac
    spikes = found.spikes * ac
    narrow = found.dense * (ac + (mac - ac) * found.weight_bits * found.input_bits / 64)
    per = _NANO / samples
    return {
        "kind": "modelled",
        "unit": "nJ per sample",
        "op_count": events * per,
        "op_and_memory": (events + _moved(found, found.macs + found.acs, found.events, access)) * per,
        "spikes_op_count": spikes * per,
        "spikes_op_and_memory": (spikes + _moved(found, found.spikes, found.spike_events, access)) * per,
        "dense_op_count": found.dense * mac * per,
        "dense_op_and_memory": found.dense * (mac + _read(8, 8, access)) * per,
        "rival_bits": [found.weight_bits, found.input_bits],
        "rival_op_count": narrow * per,
        "rival_op_and_memory": (
            (narrow + found.dense * _read(found.weight_bits, found.input_bits, access)) * per
        ),
        "memories": {**memories},
        "constants": {
            name: f"{constants[name].picojoules} pJ, {constants[name].node_nm} nm, {constants[name].source}"
            for name in needed
        },
    }


def _sizes(found: Operations) -> dict[str, int]:
    """Return the bytes of what a layer keeps; queues hold an event of 32 bits per input."""
    return {"weights": found.weight_bytes, "potentials": found.neurons * 4, "events": found.inputs * 4}


def _memory(size: int) -> str:
    return next((name for limit, name in _MEMORIES if size <= limit), _MEMORIES[-1][1])


def _moved(found: Operations, done: int, events: int, access: Mapping[str, float]) -> float:
    """Return what events move, in picojoules: weights and potentials per operation, each event once."""
    weights = found.weight_bits / _ACCESS_BITS * access["weights"]
    return done * (weights + 2 * access["potentials"]) + events * access["events"]


def _read(weight_bits: int, input_bits: int, access: Mapping[str, float]) -> float:
    """Return what a dense product reads, in picojoules."""
    return (weight_bits * access["weights"] + input_bits * access["events"]) / _ACCESS_BITS
