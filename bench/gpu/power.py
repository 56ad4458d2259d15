"""Energy of inferences by NVML, idle power subtracted, or the reason why there is none."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass

# Between two looks at the power while nothing runs, in seconds.
_LOOK = 0.02


@dataclass(frozen=True)
class Energy:
    """Joules per inference, or null and why.

    Attributes:
        idle_watts: what was subtracted: the power of this device doing nothing, its context open.
        watts: mean power while busy.
    """

    joules: float | None
    reason: str
    idle_watts: float | None = None
    watts: float | None = None
    runs: int = 0


class Meter:
    """NVML's counter of energy and its power reading.

    Args:
        uuid: of the device as CUDA has it, without `GPU-`; empty for the first one.
        library: of NVML.

    Raises:
        OSError: NVML is not there, or refuses; says which call.
    """

    def __init__(self, uuid: str = "", library: str = "libnvidia-ml.so.1") -> None:
        self._nvml = ctypes.CDLL(library)
        self._device = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        if uuid:
            name = f"GPU-{uuid.removeprefix('GPU-')}".encode()
            self._call("nvmlDeviceGetHandleByUUID", name, ctypes.byref(self._device))
        else:
            self._call("nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(self._device))
        self.joules()

    def _call(self, name: str, *args: object) -> None:
        code = int(getattr(self._nvml, name)(*args))
        if code:
            raise OSError(code, f"{name} gave {code}")

    def joules(self) -> float:
        """Return the energy since the driver was loaded; counts up every 20 to 100 ms."""
        spent = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self._device, ctypes.byref(spent))
        return spent.value / 1e3

    def watts(self) -> float:
        """Return the power now, averaged by the device over up to a second."""
        power = ctypes.c_uint()
        self._call("nvmlDeviceGetPowerUsage", self._device, ctypes.byref(power))
        return power.value / 1e3

    def idle(self, seconds: float) -> float:
        """Return the mean power over some time in which the caller does nothing."""
        begin, before = time.perf_counter(), self.joules()
        while time.perf_counter() - begin < seconds:
            time.sleep(_LOOK)
        return (self.joules() - before) / (time.perf_counter() - begin)


def measure_energy(
    meter: Meter | str, idle_watts: float | None, queue: Callable[[], object], wait: Callable[[], object],
    milliseconds: float, seconds: float,
) -> Energy:  # fmt: skip
    """Return the energy of one inference above idle, over some busy time.

    Args:
        meter: or the reason why there is none.
        idle_watts: of the same device just before.
        queue: queues one inference.
        wait: waits for all of them.
        milliseconds: that one inference takes, about.
        seconds: to be busy.
    """
    if isinstance(meter, str) or idle_watts is None:
        return Energy(None, meter if isinstance(meter, str) else "idle power was not measured")
    chunk, runs = max(1, int(100 / milliseconds)), 0
    begin, before = time.perf_counter(), meter.joules()
    while (spent := time.perf_counter() - begin) < seconds:
        for _ in range(chunk):
            queue()
        wait()
        runs += chunk
    busy, spent = meter.joules() - before, time.perf_counter() - begin
    above = busy - idle_watts * spent
    if above <= 0:
        return Energy(
            None, f"busy power is not above idle ({idle_watts:.0f} W)", idle_watts, busy / spent, runs
        )
    return Energy(above / runs, "NVML, idle subtracted", idle_watts, busy / spent, runs)


def open_meter(uuid: str = "", library: str = "libnvidia-ml.so.1") -> Meter | str:
    """Return the meter of a device, or why there is none."""
    try:
        return Meter(uuid, library)
    except (OSError, AttributeError) as err:
        return f"NVML cannot be read: {err}"
