"""Synthesis, placement, routing and bitstream with open tools: yosys and nextpnr, for Lattice ECP5."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ...compiler.records import Json
from .adders import open_ends, script
from .devices import Device
from .tools import need_tool, run_tool
from .verilog import Rtl, harness


@dataclass(frozen=True)
class Routed:
    """A routed design; counts and frequency are post-route.

    Attributes:
        lut4: LUT4 slots used, of `lut4_available`.
        fmax_mhz: of the clock, the last figure that nextpnr gives.
        latency_cycles: clock edges from input to output.
        ii: clock edges from one result to the next.
        origin: of the counts, for reports.
        seconds: of synthesis, and of placement and routing.
        bitstream: bytes for the chip.
    """

    device: Device
    seed: int
    lut4: int
    lut4_available: int
    ff: int
    bram: int
    dsp: int
    fmax_mhz: float
    latency_cycles: int
    synthesis_s: float
    route_s: float
    bitstream: bytes
    ii: int = 1
    origin: str = "post-route, harness included"

    @property
    def latency_ns(self) -> float:
        """Latency at the highest frequency."""
        return self.latency_cycles * 1e3 / self.fmax_mhz

    def to_json(self) -> dict[str, Json]:
        """Return everything but the bitstream."""
        data = {key: value for key, value in asdict(self).items() if key != "bitstream"}
        return {
            **data,
            "latency_ns": round(self.latency_ns, 1),
            "bitstream_bytes": len(self.bitstream),
        }


def route(rtl: Rtl, device: Device, folder: Path, seed: int = 1, timeout_s: float = 600) -> Routed:
    """Synthesize, place, route and pack a pipeline in its harness; files and logs stay in `folder`.

    Raises:
        MissingTool: a program is not installed.
        ParedError: a program failed (the design does not fit, say) or took longer than `timeout_s`.
    """
    return route_files({**rtl.files, "top.v": harness(rtl)}, rtl.stages, device, folder, seed, timeout_s)


def route_files(
    files: Mapping[str, str],
    stages: int,
    device: Device,
    folder: Path,
    seed: int = 1,
    timeout_s: float = 600,
    *,
    ii: int = 1,
    origin: str = Routed.origin,
) -> Routed:
    """Synthesize, place, route and pack the module `top` of some files; raises as `route`."""
    tools = {name: need_tool(name) for name in ("yosys", "nextpnr-ecp5", "ecppack")}
    for name, text in files.items():
        (folder / name).write_text(text)
    sources = " ".join(sorted(name for name in files if name.endswith(".v")))
    synthesis = run_tool("synthesis", [tools["yosys"], "-p", script(sources, folder)], folder, timeout_s)
    open_ends(folder / "top.json")
    placed = run_tool(
        "route",
        [
            tools["nextpnr-ecp5"], f"--{device.size}", "--package", device.package, "--speed",
            str(device.speed), "--json", "top.json", "--textcfg", "top.config", "--report", "report.json",
            "--freq", "100", "--timing-allow-fail", "--lpf-allow-unconstrained", "--seed", str(seed),
        ],
        folder,
        timeout_s,
    )  # fmt: skip
    run_tool("pack", [tools["ecppack"], "top.config", "top.bit"], folder, timeout_s)
    counts = _utilization(folder / "report.json")
    return Routed(
        device, seed, counts["TRELLIS_COMB"][0], counts["TRELLIS_COMB"][1], counts["TRELLIS_FF"][0],
        counts["DP16KD"][0], counts["MULT18X18D"][0], last_fmax(placed.log), stages,
        round(synthesis.seconds, 1), round(placed.seconds, 1), (folder / "top.bit").read_bytes(), ii, origin,
    )  # fmt: skip


def _utilization(report: Path) -> dict[str, tuple[int, int]]:
    data = json.loads(report.read_text())["utilization"]
    return {name: (int(entry["used"]), int(entry["available"])) for name, entry in data.items()}


def last_fmax(log: str) -> float:
    r"""Return the last frequency in nextpnr's log; the earlier ones are estimates before routing.

    >>> last_fmax("Max frequency for clock 'a': 90.5 MHz\nMax frequency for clock 'a': 64.4 MHz")
    64.4
    """
    found = re.findall(r"Max frequency for clock\s+'[^']*':\s*([0-9.]+) MHz", log)
    return float(found[-1])
