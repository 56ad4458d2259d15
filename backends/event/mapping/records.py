"""What a mapping is: what lies where, how full that is, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ....compiler.records import Json


@dataclass(frozen=True)
class Misfit:
    """A limit that a layer, or the network, exceeds.

    Attributes:
        layer: its name; empty for the network.
        limit: name of the limit.
        need, have: in the limit's own unit; None where it is no number.
        what: one sentence with both.
        would_fit: what would, as far as this one limit goes.
    """

    layer: str
    limit: str
    need: int | None
    have: int | None
    what: str
    would_fit: str

    def to_json(self) -> dict[str, Json]:
        """Return it with the excess in per cent of what there is."""
        over = None if self.need is None or not self.have else round(100 * (self.need / self.have - 1), 1)
        return {
            "layer": self.layer, "limit": self.limit, "need": self.need, "have": self.have,
            "over_percent": over, "what": self.what, "would_fit": self.would_fit,
        }  # fmt: skip


@dataclass(frozen=True)
class Placed:
    """A part of a layer on a core.

    Attributes:
        core: its number; -1 where the layer needs none.
        layer: its name.
        part: which neurons, in words.
        use: limit -> needed of it.
        limits: limit -> what the core has.
    """

    core: int
    layer: str
    part: str
    use: Mapping[str, int]
    limits: Mapping[str, int]

    @property
    def fill(self) -> float:
        """Return how full the scarcest resource of the core is."""
        return max(
            (self.use[name] / have for name, have in self.limits.items() if name in self.use), default=0.0
        )

    def to_json(self) -> dict[str, Json]:
        """Return it with shares of each limit."""
        return {
            "core": self.core, "layer": self.layer, "part": self.part,
            "use": {
                name: {"need": need, "have": self.limits.get(name)} for name, need in sorted(self.use.items())
            },
            "fill": round(self.fill, 4),
        }  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A whole network on a device.

    Attributes:
        placed: parts in order of layers.
        misfits: what does not fit; empty where all does.
        cores_needed: where parts are known for all layers that cores can hold at all.
        cores: that the device has.
        notes: what a reader should know.
    """

    placed: tuple[Placed, ...]
    misfits: tuple[Misfit, ...]
    cores_needed: int
    cores: int
    notes: tuple[str, ...] = field(default=())

    @property
    def fits(self) -> bool:
        """Tell whether the device holds the network."""
        return not self.misfits
