"""Energy of inferences by NVML, idle power subtracted, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable

from ...compiler.errors import ParedError
from ..nvml import energy_metrics

# Of queued work between two looks at the clock, in ms.
_CHUNK_MS = 50.0


def measure_energy(
    place: str,
    queue: Callable[[], object],
    wait: Callable[[], object],
    milliseconds: float,
    seconds: float,
) -> dict[str, object]:
    """Return joules of one inference above idle and the idle power, or null and why.

    Args:
        place: of the device, as `bus_id` has it, or why there is none.
        queue: queues one inference.
        wait: waits for all of them.
        milliseconds: that one inference takes, about.
        seconds: to idle, and to be busy.
    """
    if ":" not in place:
        return {"joules": None, "idle_watts": None, "reason": place}
    chunk = max(1, int(_CHUNK_MS / max(milliseconds, 1e-3)))

    def run() -> int:
        for _ in range(chunk):
            queue()
        wait()
        return chunk

    energy, idle = energy_metrics(place, run, seconds=seconds)
    joules = None if energy.value is None else energy.value / 1e3
    return {"joules": joules, "idle_watts": idle.value, "reason": energy.how}


def bus_id() -> str:
    """Return where the first CUDA device sits, as NVML wants it, or that the driver does not tell."""
    from ...backends.gpu.driver import open_driver

    try:
        device = open_driver(0)
    except ParedError as err:
        return f"the driver does not tell which device it is ({err.reason})"
    try:
        return device.bus_id
    finally:
        device.close()
