"""The chips that are placed and routed for, as targets name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...compiler.errors import TargetError

if TYPE_CHECKING:
    from ...compiler.target import Target


@dataclass(frozen=True)
class Device:
    """A chip: nextpnr's size switch (`25k`), package and speed grade."""

    size: str
    package: str
    speed: int


def device_of(target: Target) -> Device:
    """Return the chip that a target's `isa` names; raises `TargetError` on a family without a road."""
    facts = dict(feature.split("=", 1) for feature in target.isa.features if "=" in feature)
    if target.isa.arch != "ecp5" or not {"size", "package", "speed"} <= facts.keys():
        raise TargetError(
            "fpga-device",
            f"target {target.name}: isa.arch = {target.isa.arch!r} with features {list(target.isa.features)}",
            'use isa.arch = "ecp5" and features ["size=25k", "package=CABGA256", "speed=6"]',
        )
    return Device(facts["size"], facts["package"], int(facts["speed"]))
