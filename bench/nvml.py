"""NVIDIA's management library through ctypes: energy, clocks, temperature. Nothing is set or locked.

Names and numbers: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from ..compiler.records import Metric, Origin

# Path of the library, for systems whose loader does not find it.
LIBRARY = "PARED_NVML"

_GRAPHICS, _MEMORY = 0, 2  # NVML_CLOCK_GRAPHICS, NVML_CLOCK_MEM
_TEMPERATURE_GPU = 0
# The counter moves every 20 to 100 ms: shorter measurements say nothing.
_LEAST_SECONDS = 0.5
_ENERGY, _IDLE = "gpu_energy_per_run", "gpu_idle_power"


class NvmlError(Exception):
    """What NVML says, or that it is not here."""


@dataclass(frozen=True)
class State:
    """A moment of a device; None where it does not tell."""

    temperature_c: int | None
    clock_mhz: int | None
    memory_clock_mhz: int | None


class Nvml:
    """One device.

    Args:
        bus_id: as the CUDA driver names it, `0000:17:00.0`.

    Raises:
        NvmlError: the library is not here, or does not know the device.
    """

    def __init__(self, bus_id: str) -> None:
        name = os.environ.get(LIBRARY, "libnvidia-ml.so.1")
        try:
            self._nvml = ctypes.CDLL(name)
        except OSError as err:
            raise NvmlError(f"NVML ({name}) is not on this machine") from err
        self._device = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        try:
            self._call("nvmlDeviceGetHandleByPciBusId_v2", bus_id.encode(), ctypes.byref(self._device))
        except NvmlError:
            self.close()
            raise

    def _call(self, name: str, *args: object) -> None:
        code = int(getattr(self._nvml, name)(*args))
        if code:
            self._nvml.nvmlErrorString.restype = ctypes.c_char_p
            raise NvmlError(f"{name}: {(self._nvml.nvmlErrorString(code) or b'?').decode()}")

    def millijoules(self) -> int:
        """Return the energy since the driver was loaded; raises where the device does not count it."""
        found = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self._device, ctypes.byref(found))
        return found.value

    def state(self) -> State:
        """Return temperature and clocks now."""
        return State(
            self._number("nvmlDeviceGetTemperature", _TEMPERATURE_GPU),
            self._number("nvmlDeviceGetClockInfo", _GRAPHICS),
            self._number("nvmlDeviceGetClockInfo", _MEMORY),
        )

    def _number(self, name: str, which: int) -> int | None:
        found = ctypes.c_uint()
        try:
            self._call(name, self._device, which, ctypes.byref(found))
        except NvmlError:
            return None
        return found.value

    def close(self) -> None:
        """Let go of the library."""
        self._nvml.nvmlShutdown()


def energy_metrics(bus_id: str, run: Callable[[], int], *, seconds: float) -> tuple[Metric, ...]:
    """Return energy per run above idle, and the idle power subtracted; values are None with the reason.

    Args:
        bus_id: which device.
        run: runs a few times and returns how often.
        seconds: how long to idle, and how long to run.
    """
    try:
        with closing(Nvml(bus_id)) as nvml:
            if seconds < _LEAST_SECONDS:
                raise NvmlError(f"the counter needs {_LEAST_SECONDS} s, {seconds:g} s were given")
            return _energy(nvml, run, seconds)
    except NvmlError as err:
        return _metric(_ENERGY, None, "mJ", str(err)), _metric(_IDLE, None, "W", str(err))


def _energy(nvml: Nvml, run: Callable[[], int], seconds: float) -> tuple[Metric, ...]:
    idle_mj, idle_s, _ = _spent(nvml, _sleep, seconds)
    busy_mj, busy_s, runs = _spent(nvml, run, seconds)
    idle_w = idle_mj / 1e3 / idle_s
    above = busy_mj - idle_w * 1e3 * busy_s
    idle = _metric(_IDLE, idle_w, "W", f"NVML energy counter over {idle_s:.2f} s without work, just before")
    how = (
        f"NVML energy counter, {runs} runs back to back in {busy_s:.2f} s at {busy_mj / 1e3 / busy_s:.1f} W, "
        f"idle power of {idle_w:.1f} W subtracted"
    )
    if above <= 0:
        return _metric(_ENERGY, None, "mJ", f"not above idle power: {how}"), idle
    return _metric(_ENERGY, above / runs, "mJ", how), idle


def _spent(nvml: Nvml, work: Callable[[], int], seconds: float) -> tuple[int, float, int]:
    """Return millijoules, seconds and runs of some work that is repeated for a while."""
    runs, before, start = 0, nvml.millijoules(), time.perf_counter()
    while runs == 0 or time.perf_counter() - start < seconds:
        runs += work()
    took = time.perf_counter() - start
    return nvml.millijoules() - before, took, runs


def _sleep() -> int:
    time.sleep(0.02)
    return 1


def state_metrics(bus_id: str, when: str) -> tuple[Metric, ...]:
    """Return temperature and clocks; values are None with the reason."""
    try:
        with closing(Nvml(bus_id)) as nvml:
            state, why = nvml.state(), "the device does not tell"
    except NvmlError as err:
        state, why = State(None, None, None), str(err)
    found = (
        ("gpu_temperature", state.temperature_c, "C"),
        ("gpu_clock", state.clock_mhz, "MHz"),
        ("gpu_memory_clock", state.memory_clock_mhz, "MHz"),
    )
    return tuple(
        _metric(name, value, unit, why if value is None else f"NVML, {when}; nothing was locked")
        for name, value, unit in found
    )


def _metric(name: str, value: float | None, unit: str, how: str) -> Metric:
    return Metric(name, value, unit, Origin.MEASURED, how)
