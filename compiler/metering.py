"""What an executable on a device of its own can say of its time and of the device's roofs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Roofs:
    """What the device does at most, measured by small kernels.

    Attributes:
        bytes_per_s: copied within its memory, read and written bytes both counted.
        ops_per_s: kind of number (`int8`, `half`) -> operations, a multiply-add being two.
        how: how they were taken.
        missing: kind of number -> why it has no rate here.
    """

    bytes_per_s: float
    ops_per_s: Mapping[str, float]
    how: str
    missing: Mapping[str, str]


class DeviceMeter(Protocol):
    """Measures one loaded model on its device."""

    @property
    def device(self) -> str:
        """Name and chip."""
        ...

    @property
    def bus_id(self) -> str:
        """Where the device sits, `0000:17:00.0`, for NVML."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Device memory that the model holds."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What is not as it should be."""
        ...

    def times_ms(self, runs: int) -> list[float]:
        """Return the device's own time of each of some runs, copies from and to the host left out."""
        ...

    def least_bytes(self) -> int:
        """Return what a run has to move at least: constants, inputs and outputs once each."""
        ...

    def roofs(self) -> Roofs:
        """Measure the roofs."""
        ...


@runtime_checkable
class Metered(Protocol):
    """An executable that runs on a device with a clock."""

    def meter(self, rows: int) -> DeviceMeter:
        """Return what measures runs of `rows` samples; raises `TargetError` where nothing can be timed."""
        ...
