"""Resources and latency of the time-multiplexed engine: its own counts, before synthesis.

Clocks and multiplier blocks are exact, block memories an upper bound (folded/folding.py); LUT4, flip-flops
and frequency are fitted to routed designs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...compiler.errors import TargetError, UnsupportedOp
from ...compiler.estimates import Alternative, Estimate, LayerEstimate
from ...compiler.target import Resources, Target
from .circuit import products
from .folded.folding import Design, choose
from .folded.image import blocks
from .folded.program import Instruction, Lines, lines_of
from .folded.tasks import Tasks, tasks_of
from .graph import Conv, Dense, Network

# Medians of the four routed designs in docs/results/fpga_folded.md: flip-flops per LUT4 counted before, and
# frequency; then the error of these LUT4, median and largest, in percent.
_FF_PER_LUT = 1.49
_MHZ = 94.0
_ERROR = (8.8, 15.2)
_BLOCK_BITS = 18 * 1024


def estimate_folded(network: Network, target: Target, options: Mapping[str, object]) -> Estimate:
    """Estimate the engine that `compile` would take, or the least one where none fits.

    Raises:
        UnsupportedOp: what the engine does not run.
        TargetError: `engine-option`.
    """
    design = _design(network, target, options)
    program, needs = design.program, design.needs
    counts = {layer.name: products(layer, network.wires) for layer in network.layers}
    layers = tuple(_layer(one, design, counts) for one in program.instructions)
    how = (
        f"{program.folding.lanes} multipliers and {program.folding.units} requantizers for all layers; "
        "clocks and multipliers exact, block memories at most that, the rest fitted to four routed designs"
    )
    return Estimate(
        "folded", target.isa.arch, layers, needs.lut, round(_FF_PER_LUT * needs.lut), needs.bram, needs.dsp,
        program.clocks, round(program.clocks * 1e3 / _MHZ, 1), program.clocks, _MHZ, *_ERROR, how,
    )  # fmt: skip


def folded_alternative(network: Network, target: Target) -> Alternative | None:
    """Return the engine's needs as a way out for unrolled circuits; None where it cannot run the network."""
    if not _may_fit(network, target.resources):
        return None
    try:
        design = choose(*_work(network), target.resources)
    except (TargetError, UnsupportedOp):
        return None
    lanes, clocks = design.program.folding.lanes, design.program.clocks
    what = f"--engine folded: {lanes} multipliers, {design.needs.bram} block memories, {clocks} clocks each"
    return Alternative(what, design.needs.lut)


def _work(network: Network) -> tuple[Tasks, Lines]:
    tasks = tasks_of(network)
    return tasks, lines_of(tasks)


def _design(network: Network, target: Target, options: Mapping[str, object]) -> Design:
    """Return what `compile` takes; where nothing fits, the engine of the fewest multipliers."""
    lanes, units = int(str(options["lanes"])), int(str(options["units"]))
    tasks, lines = _work(network)
    if _may_fit(network, target.resources):
        try:
            return choose(tasks, lines, target.resources, lanes, units)
        except TargetError as err:
            if err.reason != "fpga-does-not-fit":
                raise
    return choose(tasks, lines, Resources(), lanes or 2, units or 1)


def _may_fit(network: Network, have: Resources) -> bool:
    """Say whether the weights alone find room, at the bits of the widest: quicker than building tables."""
    arrays = [layer.weights for layer in network.layers if isinstance(layer, Conv | Dense)]
    widest = max((int(np.abs(array).max(initial=0)).bit_length() + 1 for array in arrays), default=1)
    bits = widest * sum(array.size for array in arrays)
    return have.bram is None or bits <= have.bram * _BLOCK_BITS


def _layer(one: Instruction, design: Design, counts: Mapping[str, int]) -> LayerEstimate:
    """Weights are the layer's own; multipliers and logic belong to all."""
    word = design.image.widths.weight * design.program.folding.lanes
    words = sum(len(other.weights) for other in design.program.instructions)
    share = len(one.weights) / max(words, 1)
    bram = round(blocks(word, max(words, 1)) * share)
    kind = "input" if one.task is None else "own channels" if one.task.own else "all channels"
    nanoseconds = round(one.clocks * 1e3 / _MHZ, 1)
    return LayerEstimate(
        one.name, kind, counts.get(one.name, 0), 0, 0, bram, 0, one.clocks, nanoseconds, one.clocks, 0.0
    )
