"""How many multipliers: the fastest folding that a device has room for, by counts known before synthesis.

Block memories are at most as counted, in the cheapest shape of a block: synthesis drops constant bits of
tables. Multiplier blocks are exact. LUT4 are counted roughly, within 16 % of the routed designs in
docs/results/fpga_folded.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ....compiler.errors import TargetError
from ....compiler.target import Resources
from .image import Image, bank_bits, bank_blocks, blocks, image_of
from .program import Folding, Lines, Program, program_of, weight_bits
from .tasks import Tasks

_MULTIPLIER_BITS = 18
_SMALL = 32  # words of activations that go into LUTs
# Of a device, so that placement and routing succeed.
_LUT_SHARE, _BRAM_SHARE = 0.8, 0.95
_MOST_PINS = 190
_LANES = (2, 4, 8, 16, 32, 64, 128, 256)
_MOST_LANES = 64  # of those that are taken unasked: wider ones were not routed
_UNITS = (1, 2, 4, 8)
_WORTH = 0.97  # clocks left, for more hardware


@dataclass(frozen=True)
class Needs:
    """Blocks of a device that an engine takes; `lut` is estimated."""

    bram: int
    dsp: int
    lut: int
    pins: int

    def fits(self, have: Resources) -> bool:
        """Say whether a device has them; what a target leaves open has no limit."""
        pairs = (
            (self.bram, have.bram, _BRAM_SHARE), (self.dsp, have.dsp, 1.0), (self.lut, have.lut, _LUT_SHARE),
        )  # fmt: skip
        return self.pins <= _MOST_PINS and all(n is None or need <= n * share for need, n, share in pairs)


@dataclass(frozen=True, eq=False)
class Design:
    """A folding with its program, its bits, and what it needs."""

    program: Program
    image: Image
    needs: Needs


def needs_of(program: Program, image: Image) -> Needs:
    """Return what a program's engine takes."""
    w, folding = image.widths, program.folding
    banks = folding.lanes // folding.units
    bram = bank_blocks(w.weight * folding.lanes, len(image.weights), w.bank)
    bram += blocks(w.row * folding.units, len(image.rows))
    small = program.depth <= _SMALL
    bram += 0 if small else banks * blocks(folding.units * w.value, program.depth)
    bram += sum(blocks(w.sum, len(table)) for table in image.thresholds)
    slices = (1 + (w.sum > _MULTIPLIER_BITS)) * (1 + (w.factor > _MULTIPLIER_BITS))
    lut = folding.lanes * (4 * w.sum + 2 * w.value) + folding.units * 4 * w.total + w.word
    lut += folding.lanes * w.weight * (-(-len(image.weights) >> w.bank) - 1) // 3
    lut += 4 * -(-program.depth // 16) * -(-folding.lanes * w.value // 4) if small else 0
    pins = folding.units * (w.value + w.result) + 6
    return Needs(bram, folding.lanes + folding.units * slices, lut, pins)


def _weight_blocks(program: Program, bits: int) -> int:
    words, width = sum(len(one.weights) for one in program.instructions), bits * program.folding.lanes
    return bank_blocks(width, words, bank_bits(width, words))


def choose(tasks: Tasks, lines: Lines, have: Resources, lanes: int = 0, units: int = 0) -> Design:
    """Return the design with the fewest clocks that fits; fixed `lanes` or `units` where they are not 0.

    Raises:
        TargetError: `fpga-does-not-fit`: naming the largest layer and what would help; `engine-option`.
    """
    _check_option("lanes", lanes, _LANES)
    _check_option("units", units, _UNITS)
    bits = weight_bits(tasks)
    best: Design | None = None
    least: Design | None = None
    for folding in _foldings(lanes, units):
        program = program_of(tasks, lines, folding, bits)
        if best is not None and program.clocks > _WORTH * best.program.clocks:
            continue
        if least is not None and have.bram is not None and _weight_blocks(program, bits) > have.bram:
            continue  # before tables are made for nothing
        image = image_of(program, bits)
        design = Design(program, image, needs_of(program, image))
        least = least or design
        best = design if design.needs.fits(have) else best
    if best is not None:
        return best
    if least is None:
        raise TargetError("engine-option", f"{units} units for {lanes} lanes", "use at most as many units")
    raise _too_large(least, have)


def _check_option(name: str, value: int, valid: tuple[int, ...]) -> None:
    if value and value not in valid:
        raise TargetError(
            "engine-option",
            f"engine option {name} = {value}",
            f"use one of {valid}, or 0 for the fastest that fits",
        )


def _foldings(lanes: int, units: int) -> Iterator[Folding]:
    """Return foldings, fewest multipliers first."""
    for n in (lanes,) if lanes else [n for n in _LANES if n <= _MOST_LANES]:
        for m in (units,) if units else _UNITS:
            if m <= n:
                yield Folding(n, m)


def _too_large(design: Design, have: Resources) -> TargetError:
    """Say what the least engine needs, and which layer most of it."""
    program, needs = design.program, design.needs
    bits = design.image.widths.weight
    sizes = {one.name: one.weights.size for one in program.instructions}
    layer = max(sizes, key=lambda name: sizes[name])
    return TargetError(
        "fpga-does-not-fit",
        f"an engine of {program.folding.lanes} multipliers and {program.folding.units} requantizers needs "
        f"{needs.bram} block memories, {needs.dsp} multiplier blocks and about {needs.lut} LUT4 (estimated); "
        f"the device has {have.bram}, {have.dsp} and {have.lut}; the weights of layer {layer!r} alone take "
        f"{blocks(bits, sizes[layer])} block memories at {bits} bits",
        "use fewer bits (--precision w4a4), prune channels, leave --engine-option lanes and units out, or "
        "take a larger device",
    )
