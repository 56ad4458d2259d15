"""The chips that hardware is made for, as targets name them, and the open tools of their families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...compiler.errors import TargetError

if TYPE_CHECKING:
    from ...compiler.target import Target


@dataclass(frozen=True)
class Device:
    """A chip.

    Attributes:
        size: nextpnr's size switch, such as `25k` or `hx8k`; empty where nothing is routed.
        package: as nextpnr names it.
        speed: grade; 0 where the size has only one.
        family: `ecp5`, `ice40`, or `xcup` (AMD UltraScale+), which is synthesized and not routed.
    """

    size: str
    package: str
    speed: int
    family: str = "ecp5"


# What the features of a target must say, and how they could.
_FACTS: Mapping[str, Mapping[str, str]] = {
    "ecp5": {"size": "25k", "package": "CABGA256", "speed": "6"},
    "ice40": {"size": "hx8k", "package": "ct256"},
    "xcup": {},
}


def device_of(target: Target) -> Device:
    """Return the chip that a target's `isa` names.

    Raises:
        TargetError: `fpga-device`: a family without a road, or a fact that is missing.
    """
    facts = dict(feature.split("=", 1) for feature in target.isa.features if "=" in feature)
    needed = _FACTS.get(target.isa.arch)
    if needed is None or not needed.keys() <= facts.keys() or not facts.get("speed", "0").isdigit():
        example = [f"{key}={value}" for key, value in (needed or _FACTS["ecp5"]).items()]
        raise TargetError(
            "fpga-device",
            f"target {target.name}: isa.arch = {target.isa.arch!r} with features {list(target.isa.features)}",
            f"use isa.arch = {' or '.join(_FACTS)}, with features such as {example}",
        )
    return Device(
        facts.get("size", ""), facts.get("package", ""), int(facts.get("speed", "0")), target.isa.arch
    )
