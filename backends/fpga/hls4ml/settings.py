"""What may be chosen for an hls4ml project, and the vendors' tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

from ....compiler.errors import TargetError, nearest
from ..engines import Option

Io = Literal["io_parallel", "io_stream"]
Strategy = Literal["auto", "latency", "resource"]
Vendor = Literal["auto", "off", "csynth", "vsynth"]


@dataclass(frozen=True)
class Tool:
    """A vendor's road.

    Attributes:
        backend: hls4ml's name of it.
        includes: folders of the project that the emulation's compiler looks into.
        types: headers of its number types.
        programs: any of these synthesises, preferred first.
        brings: what has these programs.
        depthwise: whether hls4ml has depthwise convolutions for it.
        streams: whether our own layer has streams for it.
        sized: whether hls4ml's C function takes a size per argument too.
    """

    backend: str
    includes: tuple[str, ...]
    types: tuple[str, ...]
    programs: tuple[str, ...]
    brings: str
    depthwise: bool = True
    sized: bool = False
    streams: bool = True


_AP, _AC = ("ap_fixed.h", "ap_int.h"), ("ac_fixed.h", "ac_int.h")
TOOLS: Mapping[str, Tool] = {
    "vitis": Tool("Vitis", ("firmware/ap_types",), _AP, ("vitis-run", "vitis_hls"), "AMD Vitis HLS"),
    "vivado": Tool("Vivado", ("firmware/ap_types",), _AP, ("vivado_hls",), "AMD Vivado HLS up to 2020.1"),
    "quartus": Tool(
        "Quartus", ("firmware/ac_types", "firmware/ap_types"), _AC, ("i++",), "the Intel HLS Compiler",
        depthwise=False, sized=True, streams=False,
    ),
    "catapult": Tool(
        "Catapult",
        (
            "firmware/ac_types/include", "firmware/ac_math/include", "firmware/ac_simutils/include",
            "firmware/nnet_utils",
        ),
        _AC, ("catapult",), "Siemens Catapult",
        depthwise=False,  # hls4ml 1.3.0 has them, and computes them wrong
        streams=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """A project's choices.

    Attributes:
        tool: key of `TOOLS`.
        part: chip, as the vendor spells it; empty is hls4ml's default.
        clock_ns: clock period to reach.
        io: whole tensors at once, or as streams.
        strategy: `auto` is latency where a layer's products can be unrolled, else resource.
        reuse: how often a multiplier is used per inference, for every layer; 0 chooses the least that fits.
        multipliers: budget for all layers together, 0 is none.
        vendor: how far the vendor's tool goes; `auto` is csynth where it is installed.
        timeout_s: for the emulation's compiler.
        vendor_timeout_s: for each step of the vendor's tool.
    """

    tool: str
    part: str
    clock_ns: float
    io: Io
    strategy: Strategy
    reuse: int
    multipliers: int
    vendor: Vendor
    timeout_s: float
    vendor_timeout_s: float

    @property
    def road(self) -> Tool:
        """The vendor's road."""
        return TOOLS[self.tool]


def settings_of(options: Mapping[str, Option]) -> Settings:
    """Return checked settings.

    Raises:
        TargetError: `engine-option`, naming the option and what it takes.
    """
    choices: Mapping[str, tuple[str, ...]] = {
        "tool": tuple(TOOLS), "io": get_args(Io), "strategy": get_args(Strategy), "vendor": get_args(Vendor),
    }  # fmt: skip
    for key, allowed in choices.items():
        if options[key] not in allowed:
            raise _bad(key, options[key], nearest(str(options[key]), list(allowed)))
    for key in ("clock_ns", "timeout_s", "vendor_timeout_s"):
        if float(options[key]) <= 0:
            raise _bad(key, options[key], "give a number above 0")
    for key in ("reuse", "multipliers"):
        if int(options[key]) < 0:
            raise _bad(key, options[key], "give 0 (chosen) or more")
    names = [field.name for field in fields(Settings)]
    return Settings(**{name: options[name] for name in names})  # type: ignore[arg-type]


def _bad(key: str, value: Option, way_out: str) -> TargetError:
    return TargetError("engine-option", f"engine option {key} is {value!r}", way_out)
