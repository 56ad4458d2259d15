"""Measures a loaded model on its device: CUDA events around replays of its graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...compiler.metering import Roofs
from .driver import CudaDevice
from .roofs import measure_roofs


@dataclass(frozen=True)
class GpuMeter:
    """Runs what `queue` puts on the device's main stream.

    Attributes:
        memory_bytes: that the model holds.
        bytes_once: constants, inputs and outputs of a run.
        notes: what is not as it should be.
    """

    cuda: CudaDevice
    queue: Callable[[], None]
    memory_bytes: int
    bytes_once: int
    notes: Sequence[str]

    @property
    def device(self) -> str:
        """Name and chip."""
        return f"{self.cuda.name} ({self.cuda.arch})"

    @property
    def bus_id(self) -> str:
        """Where the device sits."""
        return self.cuda.bus_id

    def times_ms(self, runs: int) -> list[float]:
        """Return the device's own time of each run."""
        return self.cuda.times_ms(self.queue, runs)

    def least_bytes(self) -> int:
        """Return what a run has to move at least."""
        return self.bytes_once

    def roofs(self) -> Roofs:
        """Measure the roofs."""
        return measure_roofs(self.cuda)
