"""The same network spike by spike: modes that end at the same counts, and one that does not.

Exact modes, which end at the graded counts:

- `layer-sync`: a neuron waits until all that feeds it has settled, then fires once per threshold passed.
- `signed-if`: fires +1 above the next threshold and -1 below the last one, at once, until all is quiet.
- `unary`: is as many neurons as it has thresholds, each of which fires once or not at all.
- `binary-t1`: has one threshold and fires once or not at all; only models of 1-bit activations.

`rate` integrates and fires for T steps with one threshold and reset by subtraction; it ends near them.

Equal: for every input, as sums of integers do not depend on the order of events, no accumulator overflows
(bounds are proven by the reader), and every neuron's count is a function of its settled accumulator; a
network without loops always settles. `rate` is declared approximate: a neuron decides before all that feeds
it has arrived. Inputs enter as graded events, once (`rate`: as a constant current).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...compiler.backend import Array
from ...compiler.errors import UnsupportedOp
from .graph import NEVER, Connection, EventGraph, Integers, Ladder, Layer, MaxPool, Reals
from .simulate import Counts, accumulate, add, encode, values_of

EXACT_MODES = ("layer-sync", "signed-if", "unary", "binary-t1")


@dataclass(frozen=True, eq=False)
class Trace:
    """What a run did.

    Attributes:
        counts: of every population at the end, accumulators of readouts.
        spikes: events that each population sent, over all samples; of inputs, their active elements.
        steps: until nothing fired any more.
    """

    counts: Counts
    spikes: dict[str, int]
    steps: int


def run(graph: EventGraph, inputs: Mapping[str, Array], mode: str) -> Trace:
    """Run samples in one of the exact modes.

    Raises:
        UnsupportedOp: `event-mode`, the mode does not take a layer, and why.
    """
    check_mode(graph, mode)
    counts: Counts = {entry.population: encode(entry, inputs[entry.name]) for entry in graph.inputs}
    if mode == "signed-if":
        return _signed(graph, counts)
    spikes = {name: int(np.count_nonzero(found)) for name, found in counts.items()}
    steps = 0
    for layer in graph.layers:
        total = accumulate(graph, layer, counts)
        if layer.ladder is None:
            counts[layer.name] = total
        elif mode == "layer-sync":
            counts[layer.name], taken = _fire_until_done(layer, total)
            steps += taken
        else:
            counts[layer.name] = _unary(layer, total)
            steps += 1
        spikes[layer.name] = 0 if layer.ladder is None else int(np.abs(counts[layer.name]).sum())
    return Trace(counts, spikes, steps)


def check_mode(graph: EventGraph, mode: str) -> None:
    """Refuse a mode that does not take a layer.

    Raises:
        UnsupportedOp: `event-mode`.
    """
    for layer in graph.layers:
        reason = _reason(layer, mode)
        if reason:
            raise UnsupportedOp(
                "event-mode", f"mode {mode}: layer {layer.name!r} {reason}", "use mode graded or layer-sync"
            )


def _reason(layer: Layer, mode: str) -> str:
    ladder = layer.ladder
    levels = 0 if ladder is None else ladder.thresholds.shape[1]
    if mode == "binary-t1" and levels > 1:
        return f"has {levels} thresholds; it takes one (1-bit activations)"
    if mode in ("unary", "binary-t1") and ladder is not None and ladder.low < 0:
        return f"has counts from {ladder.low} on; spikes of one sign need 0 (a Relu)"
    return ""


def _next(layer: Layer, counts: Integers, ahead: int) -> Integers:
    """Return the threshold above the counts (`ahead` 1) or the one they passed last (0)."""
    ladder = layer.ladder
    assert ladder is not None, "a readout has no thresholds"
    edge = np.full((len(ladder.thresholds), 1), np.iinfo(np.int64).max)
    rows = np.concatenate([-edge, ladder.thresholds, edge], axis=1)
    channel = np.arange(layer.channels).reshape(1, -1, *[1] * (counts.ndim - 2))
    return np.asarray(rows[np.minimum(channel, len(rows) - 1), counts - ladder.low + ahead])


def _events(layer: Layer, total: Integers, counts: Integers) -> Integers:
    """Return what neurons fire now: +1, 0 or -1 each."""
    up = (total >= _next(layer, counts, 1)).astype(np.int64)
    return up - (total < _next(layer, counts, 0))


def _fire_until_done(layer: Layer, total: Integers) -> tuple[Integers, int]:
    """Fire once per step, on a settled accumulator; returns counts and steps."""
    ladder = layer.ladder
    assert ladder is not None, "a readout does not fire"
    counts = np.full(total.shape, min(max(0, ladder.low), ladder.high), np.int64)
    for step in range(ladder.thresholds.shape[1] + 1):
        fired = _events(layer, total, counts)
        if not fired.any():
            return counts, step
        counts = counts + fired
    return counts, ladder.thresholds.shape[1]


def _unary(layer: Layer, total: Integers) -> Integers:
    """Compare with every threshold by a neuron of its own and add up who fires."""
    ladder = layer.ladder
    assert ladder is not None, "a readout does not fire"
    counts = np.full(total.shape, ladder.low, np.int64)
    shape = (1, -1, *[1] * (total.ndim - 2))
    for column in ladder.thresholds.T:
        counts += total >= column.reshape(shape)
    return counts


def _signed(graph: EventGraph, counts: Counts) -> Trace:
    """Let all layers fire at once until nothing does."""
    samples = len(next(iter(counts.values())))
    spikes = {name: int(np.count_nonzero(found)) for name, found in counts.items()}
    totals: Counts = {}
    for layer in graph.layers:
        ladder = layer.ladder
        rest = 0 if ladder is None else min(max(0, ladder.low), ladder.high)
        counts[layer.name] = np.full((samples, *layer.shape), rest, np.int64)
        spikes[layer.name] = 0
    for layer in graph.layers:
        totals[layer.name] = accumulate(graph, layer, counts)
    step = 0
    while _one_step(graph, totals, counts, spikes):
        step += 1
    for layer in graph.layers:
        if layer.ladder is None:
            counts[layer.name] = totals[layer.name]
    return Trace(counts, spikes, step)


def _one_step(graph: EventGraph, totals: Counts, counts: Counts, spikes: dict[str, int]) -> bool:
    """Fire all neurons that are over or under, then deliver; says whether anything fired."""
    fired: Counts = {}
    for layer in graph.layers:
        if layer.ladder is not None:
            events = _events(layer, totals[layer.name], counts[layer.name])
            if events.any():
                fired[layer.name] = events
                spikes[layer.name] += int(np.count_nonzero(events))
    before = {name: counts[name] for name in fired}
    for name, events in fired.items():
        counts[name] = counts[name] + events
    for layer in graph.layers:
        for connection in layer.connections:
            if connection.source in fired:
                _deliver(graph, layer, connection, totals, counts, before)
    return bool(fired)


def _deliver(
    graph: EventGraph, layer: Layer, connection: Connection, totals: Counts, counts: Counts, before: Counts
) -> None:
    """Change accumulators by what changed counts stand for; maxima look at all counts again."""
    if isinstance(connection.synapses, MaxPool):
        totals[layer.name] = accumulate(graph, layer, counts)
        return
    low = graph.range(connection.source)[0]
    now = values_of(connection, counts[connection.source], low)
    change = now - values_of(connection, before[connection.source], low)
    add(totals[layer.name], connection, change)


def rate(graph: EventGraph, inputs: Mapping[str, Array], steps: int) -> Counts:
    """Return approximate counts: integrate-and-fire for `steps` steps, one spike per neuron and step at most.

    A spike stands for `high / steps` counts; the potential starts at half a threshold. Accumulators of
    readouts are rounded.

    Maxima follow the neuron that has sent most so far.
    """
    drive = {e.population: encode(e, inputs[e.name]).astype(np.float64) / steps for e in graph.inputs}
    sent: dict[str, Reals] = {}
    potential: dict[str, Reals] = {}
    samples = len(next(iter(drive.values())))
    for layer in graph.layers:
        sent[layer.name] = np.zeros((samples, *layer.shape))
        half = 0.0 if layer.ladder is None else layer.ladder.theta * layer.ladder.high / steps / 2
        potential[layer.name] = np.zeros((samples, *layer.shape)) + _spread(half, layer)
    for _ in range(steps):
        now = dict(drive)
        for layer in graph.layers:
            _integrate(graph, layer, now, potential, sent, steps)
    return {layer.name: np.rint(sent[layer.name]).astype(np.int64) for layer in graph.layers}


def _spread(channels: Array | float, layer: Layer) -> Reals:
    """Return one number or one per channel in a shape that broadcasts over a layer's neurons."""
    return np.asarray(channels, np.float64).reshape(-1, *[1] * (len(layer.shape) - 1))


def _origin(ladder: Ladder) -> Reals:
    """Return what to add to accumulators so that `theta` times the count is their middle, per channel."""
    rows = ladder.thresholds
    # Beyond what a channel reaches thresholds are at the ends; one between tells where the ladder stands.
    between = (rows > rows[:, :1]) & (rows < NEVER)
    middle = np.where(between.any(axis=1), between.argmax(axis=1), 0)
    zero = ladder.theta * (ladder.low + middle + 0.5) - rows[np.arange(len(rows)), middle]
    return np.asarray(zero, np.float64)


def _integrate(
    graph: EventGraph,
    layer: Layer,
    now: dict[str, Reals],
    potential: dict[str, Reals],
    sent: dict[str, Reals],
    steps: int,
) -> None:
    if any(isinstance(c.synapses, MaxPool) for c in layer.connections):
        _largest(layer, now, sent)
        return
    # The origin flows in evenly: put into the potential at once, it would fire before what takes it back.
    origin = 0.0 if layer.ladder is None else _origin(layer.ladder)
    current = np.zeros_like(potential[layer.name]) + _spread(layer.bias + origin, layer) / steps
    for connection in layer.connections:
        low, high = graph.range(connection.source)
        factor = 1.0 if connection.values is None else float(connection.values[high - low]) / max(high, 1)
        part = np.zeros(current.shape, np.float64)
        _add_real(part, connection, now[connection.source] * factor)
        current = current + part
    ladder = layer.ladder
    if ladder is None:
        sent[layer.name] = sent[layer.name] + current
        now[layer.name] = current
        return
    worth = ladder.high / steps
    theta = _spread(ladder.theta * worth, layer)
    v = potential[layer.name] + current
    fired = (v >= theta).astype(np.float64)
    potential[layer.name] = v - fired * theta
    now[layer.name] = fired * worth
    sent[layer.name] = sent[layer.name] + now[layer.name]


def _largest(layer: Layer, now: dict[str, Reals], sent: dict[str, Reals]) -> None:
    """Pass on what the neuron of a window that has sent most sends, once it is ahead of what was passed."""
    (connection,) = layer.connections
    most = np.zeros(sent[layer.name].shape, np.int64)
    add(most, connection, np.rint(sent[connection.source] * 1024).astype(np.int64))
    now[layer.name] = most / 1024 - sent[layer.name]
    sent[layer.name] = most / 1024


def _add_real(total: Reals, connection: Connection, values: Reals) -> None:
    """Add real values through a connection, in 1024ths of a count so that sums stay integers."""
    whole = np.zeros(total.shape, np.int64)
    add(whole, connection, np.rint(np.asarray(values, np.float64) * 1024).astype(np.int64))
    total += np.asarray(whole, np.float64) / 1024
