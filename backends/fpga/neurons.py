"""Neurons that few input bits reach, as truth tables: sum, thresholds and all (LogicNets, arXiv 2004.03021).

A neuron of a sparse layer and the quantizer behind it are one function of a few bits. `decompose.py` makes
tables of four inputs of it, whose number is compared with that of adders and comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from .decompose import decompose
from .graph import Dense, Ints, Network, Requant
from .scaling import signed_digits

if TYPE_CHECKING:
    from da4ml.trace import FixedVariable
    from da4ml.types import Pipeline

Variables = npt.NDArray[np.object_]
Solve: TypeAlias = "Callable[[Ints, Variables], Pipeline]"

# Beyond that the search takes seconds per neuron, and adders are nearly always smaller.
MOST_BITS = 12
# LUT4 per bit of an adder and of a comparison, and per unit of da4ml's cost: from routed layers.
_LUT4_PER_ADDER_BIT, _LUT4_PER_COMPARED_BIT, _LUT4_PER_COST = 0.75, 0.8, 1.2
# da4ml counts one for an adder.
_LEVEL = 0.5
_BLOCK = 64


@dataclass(frozen=True, eq=False)
class Neuron:
    """A function of the codes of some inputs.

    Attributes:
        inputs: flat places in the layer's operand.
        bits: of each.
        counts: how many thresholds are reached, [2^sum(bits)]; the first input has the lowest bits.
        luts: tables of four inputs.
        levels: of them, one behind another.
    """

    inputs: Ints
    bits: tuple[int, ...]
    counts: Ints
    luts: int
    levels: int

    def lookup(self, variables: Variables) -> FixedVariable:
        """Return the traced count."""
        first, *rest = [variables[i] for i in self.inputs]
        if int(self.counts.min()) == int(self.counts.max()):
            return first * 0 + int(self.counts[0])
        latency, key = max(float(variables[i].latency) for i in self.inputs), first
        for at, one in zip(np.cumsum(self.bits), rest, strict=False):
            key = _wired(key | (one << int(at)), latency)
        found = key.lookup(self.counts[: int(key.high) + 1].astype(np.float64))
        found.latency, found.cost = latency + _LEVEL * self.levels, float(self.luts)
        return found


def _wired(value: FixedVariable, latency: float) -> FixedVariable:
    """Joining bits takes neither time nor logic."""
    value.latency, value.cost = latency, 0.0
    return value


def quantizer_of(network: Network, layer: Dense) -> Requant | None:
    """Return the quantizer that alone reads a layer."""
    readers = [other for other in network.layers if layer.output.name in other.inputs]
    alone = len(readers) == 1 and layer.output.name not in network.outputs
    return readers[0] if alone and isinstance(readers[0], Requant) else None


def small_neurons(
    layer: Dense,
    behind: Requant,
    operand: tuple[Variables, int, Ints],
    solve: Solve,
) -> dict[int, Neuron]:
    """Return the channels that are cheaper as tables than as sums that share their additions.

    Args:
        layer: sums.
        behind: its quantizer.
        operand: variables, gain and bias: `q - zero = gain * v + bias`, each flat.
        solve: returns additions with shared subexpressions, with their `cost`.
    """
    made = {}
    for channel, row in enumerate(layer.weights):
        one = _neuron(row, behind, channel, operand)
        if one is not None:
            made[channel] = one
    if not made:
        return {}
    compared = sum(_comparisons(layer.weights[c], one, behind) for c, one in made.items())
    shared = _shared_cost(layer.weights[sorted(made)], operand[0], solve)
    tables = sum(one.luts for one in made.values())
    return made if tables <= _LUT4_PER_COST * shared + compared else {}


def _shared_cost(rows: Ints, variables: Variables, solve: Solve) -> float:
    """Return da4ml's cost of all sums at once, in blocks of inputs."""
    used = np.flatnonzero(rows.any(axis=0))
    blocks = [used[i : i + _BLOCK] for i in range(0, used.size, _BLOCK)]
    return sum(float(solve(rows[:, block], variables[block]).cost) for block in blocks)


def _neuron(row: Ints, behind: Requant, channel: int, operand: tuple[Variables, int, Ints]) -> Neuron | None:
    variables, gain, bias = operand
    inputs = np.flatnonzero(row)
    if not 0 < inputs.size <= MOST_BITS or any(_bits(variables[i]) is None for i in inputs):
        return None
    bits = tuple(_bits(variables[i]) or 0 for i in inputs)
    if sum(bits) > MOST_BITS:
        return None
    sums = np.full(1 << sum(bits), int(row @ bias), np.int64)
    for i, at, width in zip(inputs, np.cumsum((0, *bits)), bits, strict=False):
        code = np.arange(sums.size) >> at & ((1 << width) - 1)
        sums += int(row[i]) * gain * np.minimum(code, int(variables[i].high))  # higher codes never occur
    which = 0 if behind.axis is None else channel
    counts = np.searchsorted(behind.thresholds[which], behind.sign[which] * sums, side="right")
    logic = decompose(bits_of(counts))
    one = Neuron(inputs, bits, np.asarray(counts, np.int64), logic.luts, logic.levels)
    return one if one.luts <= _adders(row[inputs], one) + _comparisons(row, one, behind) else None


def bits_of(counts: Ints) -> npt.NDArray[np.uint8]:
    """Return the truth table of counts, [N, bits]."""
    width = max(int(counts.max()).bit_length(), 1)
    return (counts[:, None] >> np.arange(width) & 1).astype(np.uint8)


def _bits(variable: FixedVariable) -> int | None:
    """Return the width of whole numbers from 0, None for others."""
    whole = variable.low == 0 and variable.step == 1 and variable.high > 0
    return int(variable.high).bit_length() if whole else None


def _width(row: Sequence[int] | Ints, bits: tuple[int, ...]) -> int:
    reach = sum(abs(int(w)) * ((1 << b) - 1) for w, b in zip(row, bits, strict=True))
    return reach.bit_length()


def _adders(weights: Ints, one: Neuron) -> float:
    terms = sum(signed_digits(int(w)) for w in weights)
    return _LUT4_PER_ADDER_BIT * (terms - 1) * _width(weights, one.bits)


def _comparisons(row: Ints, one: Neuron, behind: Requant) -> float:
    levels = int(one.counts.max() - one.counts.min())
    return _LUT4_PER_COMPARED_BIT * levels * _width(row[one.inputs], one.bits)
