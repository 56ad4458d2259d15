"""The Verilog against the golden integers before an artifact is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ....compiler.errors import ParedError
from ..graph import Ints, Network
from ..host import Host
from ..simulate import simulate
from ..simulation import simulators
from .folding import Design
from .simulation import simulate_engine

if TYPE_CHECKING:
    from ....compiler.data import Samples
    from ....compiler.records import Json
    from ..engines import Options

# Lanes times clocks that Icarus simulates in about the time that Verilator takes to build; and at all.
_ICARUS, _MOST_ICARUS = 2_000_000, 20_000_000


@dataclass(frozen=True)
class Checked:
    """What was compared: values of the outputs over some samples; `tool` is empty where nothing was."""

    tool: str = ""
    samples: int = 0
    values: int = 0
    notes: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """Return the record for the report; `notes` stand in the manifest."""
        why = None if self.tool else self.notes[0]
        return {
            "tool": self.tool or None, "samples": self.samples, "values": self.values,
            "differing": 0 if self.tool else None, "why_null": why,
        }  # fmt: skip


def check(
    network: Network, design: Design, files: Mapping[str, str], calibration: Samples | None, options: Options
) -> Checked:
    """Simulate some samples of calibration data, and as many of random codes.

    Raises:
        ParedError: `fpga-folded-differs`: a value or the clocks are not as computed.
    """
    count = int(options["simulate"])
    codes = _codes(network, calibration, count)
    samples = len(next(iter(codes.values())))
    work = design.program.clocks * design.program.folding.lanes * samples
    tool, why = _tool(work) if count else ("", "option simulate = 0")
    if not tool:
        return Checked(notes=(f"Verilog not simulated: {why}",))
    want = simulate(network, codes)
    got = simulate_engine(
        design.program, design.image, files, codes, tool, timeout_s=float(options["timeout_s"])
    )
    differing = sum(int((got.codes[name] != want[name]).sum()) for name in network.outputs)
    clocks = set(got.clocks) - {design.program.clocks}
    if differing or clocks:
        raise ParedError(
            "fpga-folded-differs",
            f"the simulated engine gives {differing} other values than the golden integers, and takes "
            f"{sorted(clocks) or 'the computed'} clocks",
            "report this model; until then use engine rtl",
        )
    return Checked(tool, samples, sum(want[name].size for name in network.outputs))


def _tool(work: int) -> tuple[str, str]:
    """Return the simulator for an amount of work, or none and why."""
    here = simulators()
    if not here:
        return "", "no simulator is installed (apt install verilator g++, or iverilog)"
    if "iverilog" in here and (work <= _ICARUS or (here == ["iverilog"] and work <= _MOST_ICARUS)):
        return "iverilog", ""
    if "verilator" in here:
        return "verilator", ""
    return "", "Icarus would take minutes for this network (apt install verilator g++)"


def _codes(network: Network, calibration: Samples | None, count: int) -> dict[str, Ints]:
    """Return `count` samples of calibration data, where there are any, and `count` random ones."""
    rng = np.random.default_rng(0)
    random = {
        w.name: w.least
        + w.step * rng.integers(0, (w.most - w.least) // w.step + 1, (max(count, 1), *w.shape))
        for w in network.inputs
    }
    real = [] if calibration is None else list(_real(network, calibration, count))
    return {name: np.concatenate([one[name] for one in [*real, random]]) for name in random}


def _real(network: Network, calibration: Samples, count: int) -> Iterator[dict[str, Ints]]:
    host = Host(network)
    for _, sample in zip(range(count), calibration.batches(), strict=False):
        yield host.encode(sample)
