"""Synthesis, placement, routing and bitstream with open tools: yosys and nextpnr."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ...compiler.records import Json
from .devices import Device
from .flows import FLOWS
from .tools import need_tool, run_step
from .verilog import Rtl, harness


@dataclass(frozen=True)
class Routed:
    """A routed design; counts and frequency are post-route.

    Attributes:
        lut4: LUT4 slots used, of `lut4_available`; for `xcup` LUTs of up to 6 inputs, of an unknown number.
        fmax_mhz: of the clock, the last figure that nextpnr gives; None where nothing is routed.
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
    fmax_mhz: float | None
    latency_cycles: int
    synthesis_s: float
    route_s: float
    bitstream: bytes
    ii: int = 1
    origin: str = "post-route, harness included"

    @property
    def latency_ns(self) -> float | None:
        """Latency at the highest frequency."""
        return None if self.fmax_mhz is None else round(self.latency_cycles * 1e3 / self.fmax_mhz, 1)

    def to_json(self) -> dict[str, Json]:
        """Return everything but the bitstream."""
        data: dict[str, Json] = {key: value for key, value in asdict(self).items() if key != "bitstream"}
        data |= {"latency_ns": self.latency_ns, "bitstream_bytes": len(self.bitstream)}
        if FLOWS[self.device.family].place is not None:
            return data
        data["lut6"] = data.pop("lut4")
        data.pop("lut4_available")
        data["origin"] = self.origin.replace("post-route", "post-synthesis")
        return {**data, "why_null": f"no open tool places and routes {self.device.family}"}


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
    """Synthesize, place, route and pack the module `top` of some files; raises as `route`.

    Steps that an earlier call finished in `folder` are not run again.
    """
    flow = FLOWS[device.family]
    tools = [need_tool(name) for name in flow.tools]
    for name, text in files.items():
        (folder / name).write_text(text)
    sources = " ".join(sorted(name for name in files if name.endswith(".v")))
    synthesis = run_step("synthesis", [tools[0], "-p", flow.script(sources, folder)], folder, timeout_s)
    flow.finish(folder / "top.json")
    fmax, route_s, bitstream = None, 0.0, b""
    if flow.place is not None:
        placed = run_step("route", [tools[1], *flow.place(device, seed)], folder, timeout_s)
        run_step("pack", [tools[2], *flow.pack], folder, timeout_s)
        fmax, route_s = last_fmax(placed.log), placed.seconds
        bitstream = (folder / "top.bit").read_bytes()
    used = flow.counts(folder)
    return Routed(
        device, seed, used.lut, used.lut_available, used.ff, used.bram, used.dsp, fmax, stages,
        round(synthesis.seconds, 1), round(route_s, 1), bitstream, ii, origin,
    )  # fmt: skip


def last_fmax(log: str) -> float:
    r"""Return the last frequency in nextpnr's log; the earlier ones are estimates before routing.

    >>> last_fmax("Max frequency for clock 'a': 90.5 MHz\nMax frequency for clock 'a': 64.4 MHz")
    64.4
    """
    found = re.findall(r"Max frequency for clock\s+'[^']*':\s*([0-9.]+) MHz", log)
    return float(found[-1])
