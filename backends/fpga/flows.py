"""What each family's open tools are told, and how their reports are read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import adders
from .devices import Device

Command = tuple[str, ...]


@dataclass(frozen=True)
class Counts:
    """What a design uses: LUTs of `lut_inputs`, of so many there are (0: not known)."""

    lut: int
    lut_available: int
    ff: int
    bram: int
    dsp: int


@dataclass(frozen=True)
class Flow:
    """One family's road.

    Attributes:
        tools: programs, synthesis first.
        script: what yosys runs, for source names and the folder; writes top.json.
        finish: edits the netlist before it is placed.
        place: command of placement and routing without the program, None where no open tool does that.
        pack: command of the bitstream without the program; writes top.bit.
        counts: reads what is used, in the folder.
        lut_inputs: of the largest LUT that is counted as one.
    """

    tools: tuple[str, ...]
    script: Callable[[str, Path], str]
    finish: Callable[[Path], int]
    place: Callable[[Device, int], Command] | None
    pack: Command
    counts: Callable[[Path], Counts]
    lut_inputs: int = 4


def _ecp5_place(device: Device, seed: int) -> Command:
    return (
        f"--{device.size}", "--package", device.package, "--speed", str(device.speed), "--json", "top.json",
        "--textcfg", "top.config", "--report", "report.json", "--freq", "100", "--timing-allow-fail",
        "--lpf-allow-unconstrained", "--seed", str(seed),
    )  # fmt: skip


def _ice40_place(device: Device, seed: int) -> Command:
    return (
        f"--{device.size}", "--package", device.package, "--json", "top.json", "--asc", "top.config",
        "--report", "report.json", "--freq", "100", "--timing-allow-fail", "--pcf-allow-unconstrained",
        "--seed", str(seed),
    )  # fmt: skip


def _utilization(folder: Path) -> Mapping[str, tuple[int, int]]:
    data = json.loads((folder / "report.json").read_text())["utilization"]
    return {name: (int(entry["used"]), int(entry["available"])) for name, entry in data.items()}


def _cells(folder: Path) -> Counter[str]:
    """Count the cells of the synthesized netlist by type."""
    cells = json.loads((folder / "top.json").read_text())["modules"]["top"]["cells"]
    return Counter(cell["type"] for cell in cells.values())


def _ecp5_counts(folder: Path) -> Counts:
    used = _utilization(folder)
    lut, available = used["TRELLIS_COMB"]
    return Counts(lut, available, used["TRELLIS_FF"][0], used["DP16KD"][0], used["MULT18X18D"][0])


def _ice40_counts(folder: Path) -> Counts:
    used = _utilization(folder)
    lut, available = used["ICESTORM_LC"]
    ff = sum(n for kind, n in _cells(folder).items() if kind.startswith("SB_DFF"))
    return Counts(lut, available, ff, used["ICESTORM_RAM"][0], 0)


def _xcup_counts(folder: Path) -> Counts:
    kinds = _cells(folder)

    def count(pattern: str) -> int:
        return sum(n for kind, n in kinds.items() if re.fullmatch(pattern, kind))

    return Counts(count("LUT[1-6]"), 0, count("FD[A-Z]+"), count("RAMB.*"), count("DSP48.*"))


def _plain(command: str) -> Callable[[str, Path], str]:
    return lambda sources, folder: f"read_verilog {sources}; {command} -top top; write_json top.json"


def _untouched(netlist: Path) -> int:
    return 0


FLOWS: Mapping[str, Flow] = {
    "ecp5": Flow(
        ("yosys", "nextpnr-ecp5", "ecppack"), adders.script, adders.open_ends, _ecp5_place,
        ("top.config", "top.bit"), _ecp5_counts,
    ),
    "ice40": Flow(
        ("yosys", "nextpnr-ice40", "icepack"), _plain("synth_ice40"), _untouched, _ice40_place,
        ("top.config", "top.bit"), _ice40_counts,
    ),
    "xcup": Flow(
        ("yosys",), _plain("synth_xilinx -family xcup -flatten"), _untouched, None, (), _xcup_counts, 6
    ),
}  # fmt: skip
