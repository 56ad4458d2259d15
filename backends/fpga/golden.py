"""Golden inputs and outputs of a circuit, and its Verilog simulated against them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...compiler.errors import ParedError
from .circuit import Circuit
from .graph import Ints, Network
from .host import Host
from .simulate import simulate
from .simulation import ports, simulate_rtl, simulators, to_bits
from .verilog import Rtl

if TYPE_CHECKING:
    from ...compiler.data import Samples
    from ...compiler.records import Json

INPUTS, OUTPUTS = "model_golden_inputs.txt", "model_golden_outputs.txt"
_SEED = 0
# Units of da4ml's cost times samples that Icarus simulates in about ten seconds.
_MOST_WORK = 4_000_000


@dataclass(frozen=True, eq=False)
class Golden:
    """What goes in and must come out.

    Attributes:
        entering: what the input ports take, [N, inputs].
        leaving: what the output ports give, [N, outputs].
        measured: how many of the samples are calibration data; the others are random codes.
    """

    entering: Ints
    leaving: Ints
    measured: int

    def files(self, circuit: Circuit) -> dict[str, bytes]:
        """Return both as lines of bits, highest first, one sample a line, as `$readmemb` takes them."""
        widths = ports(circuit.logic)
        pairs = (INPUTS, self.entering, widths.inputs), (OUTPUTS, self.leaving, widths.outputs)
        return {
            name: ("\n".join("".join(map(str, row[::-1])) for row in to_bits(values, bits)) + "\n").encode()
            for name, values, bits in pairs
        }


def golden(network: Network, circuit: Circuit, calibration: Samples | None, count: int) -> Golden:
    """Return up to `count` samples of calibration data, as many random ones, and what they give."""
    codes, measured = codes_of(network, calibration, count)
    want = simulate(network, codes)
    values = np.concatenate([want[name].reshape(len(want[name]), -1) for name in network.outputs], axis=1)
    return Golden(circuit.enter(network, codes), (values - circuit.biases) // circuit.gains, measured)


def codes_of(network: Network, calibration: Samples | None, count: int) -> tuple[dict[str, Ints], int]:
    """Return integers of the inputs, `[N, *shape]` each, and how many of them are calibration data."""
    rng = np.random.default_rng(_SEED)
    parts: dict[str, list[Ints]] = {wire.name: [] for wire in network.inputs}
    measured = 0
    for one in _encoded(network, calibration, count):
        measured += len(next(iter(one.values())))
        for name, codes in one.items():
            parts[name].append(codes)
    for wire in network.inputs:
        steps = rng.integers(0, (wire.most - wire.least) // wire.step + 1, (count, *wire.shape))
        parts[wire.name].append(wire.least + wire.step * steps)
    return {name: np.concatenate(found) for name, found in parts.items()}, measured


def _encoded(network: Network, calibration: Samples | None, count: int) -> Iterator[Mapping[str, Ints]]:
    if calibration is None:
        return
    host, left = Host(network), count
    for batch in calibration.head(count).batches():
        if left <= 0:
            return
        codes = host.encode(batch)
        left -= len(next(iter(codes.values())))
        yield codes


def simulated(rtl: Rtl, circuit: Circuit, wanted: Golden, timeout_s: float) -> dict[str, Json]:
    """Return the report of a simulation of the Verilog with golden samples, one per clock.

    All of them where that takes seconds in Icarus, else every second, third, ...

    Raises:
        ParedError: `fpga-verilog-differs`: a value differs; a simulator failed.
    """
    here = simulators()
    if not here:
        why = "no simulator is installed (apt install iverilog)"
        return {"tool": None, "samples": 0, "differing": None, "why_null": why}
    # Verilator takes 40 s to build what Icarus simulates in one
    tool = "iverilog" if "iverilog" in here else "verilator"
    step = max(1, round(float(circuit.logic.cost) * len(wanted.entering) / _MOST_WORK))
    got = simulate_rtl(rtl, wanted.entering[::step], ports(circuit.logic), tool, timeout_s)
    differing = int((got != wanted.leaving[::step]).sum())
    if differing:
        raise ParedError(
            "fpga-verilog-differs",
            f"{tool} computes {differing} of {got.size} values otherwise than the golden integers",
            "report this model; until then use engine folded",
        )
    return {
        "tool": tool, "samples": len(got), "calibration_samples": -(-wanted.measured // step),
        "differing": 0, "why_null": None,
    }  # fmt: skip
