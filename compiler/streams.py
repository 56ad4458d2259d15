"""Streams of events and frames: what a backend offers that keeps state between calls, and windows of time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from .backend import Array
from .errors import DataError

# Address events: column, row, microseconds, polarity 0 or 1.
Events: TypeAlias = npt.NDArray[np.void]
EVENT = np.dtype([("x", np.int32), ("y", np.int32), ("t", np.int64), ("p", np.int8)])

_UNITS = {"us": 1, "ms": 1000, "s": 1_000_000}
_WINDOW = re.compile(r"(\d+)(us|ms|s)")


@dataclass(frozen=True, eq=False)
class StreamStep:
    """What the network says at one moment.

    Attributes:
        time_us: end of the window of time; of frames, their number from 0.
        events: how many went into it; of frames, counts that changed, of all layers.
        outputs: by name, without a sample axis.
    """

    time_us: int
    events: int
    outputs: Mapping[str, Array]


class EventStream(Protocol):
    """A running network; not for several threads at once."""

    def feed(self, events: Events, resolution: tuple[int, int] | None = None) -> list[StreamStep]:
        """Take events (`EVENT`) in order of time; returns the windows that they close.

        Args:
            events: any number.
            resolution: width and height of the sensor, where it is known.

        Raises:
            DataError: `event-resolution`; with `strict` a bad event. The state is then as before.
        """

    def frame(self, frame: Array) -> StreamStep:
        """Take the model's next input, without a sample axis; raises `DataError`."""

    def flush(self) -> list[StreamStep]:
        """Close the window that is open, at the end of a recording."""

    def reset(self) -> None:
        """Forget everything but the counters."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Counters: `events` seen, `used`, those dropped by reason, `windows`, operations."""


@runtime_checkable
class Streams(Protocol):
    """An executable that takes streams."""

    def stream(self, *, window_us: int, strict: bool, clock_bits: int | None) -> EventStream:
        """Open a stream with a state of its own."""


def window_of(text: str) -> int:
    """Return the microseconds of `10ms`, `500us`, `1s`; raises `DataError`, `event-window`."""
    match = _WINDOW.fullmatch(text.strip())
    found = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < found <= 3_600_000_000:
        raise DataError(
            "event-window", f"{text!r} is no window of time up to one hour", "write 10ms, 500us or 1s"
        )
    return found
