"""Places an event graph on a target's device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from ....compiler.device import Device
from ....compiler.errors import TargetError
from ....compiler.target import Target
from ..graph import EventGraph
from . import blocks, filters, whole
from .records import Layout
from .views import View, views

Placer: TypeAlias = Callable[[Sequence[View], Device], Layout]

PLACERS: Mapping[str, Placer] = {"layers": whole.place, "blocks": blocks.place, "filters": filters.place}


def device_of(target: Target) -> Device:
    """Return a target's device.

    Raises:
        TargetError: `event-device`, it has none.
    """
    if target.device is None:
        raise TargetError(
            "event-device",
            f"target {target.name} has no [device] table, which says what its cores hold",
            "use a target that has one: event-loihi1, event-speck2f, ...",
        )
    return target.device


def place(graph: EventGraph, target: Target) -> Layout:
    """Return where the layers lie and what does not fit.

    Raises:
        TargetError: `event-device`.
    """
    device = device_of(target)
    return PLACERS[device.placement](views(graph), device)
