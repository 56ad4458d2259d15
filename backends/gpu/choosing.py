"""Which schedule a function gets where a device can tell: the fastest that computes the same.

Without a device the table's static choice stands (`schedules/table.py`). Times are kept between compilations
by the function's text and the device (`compiler/timing_cache.py`); a rebuild repeats the recorded choices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from ...compiler.backend import DECISIONS, TimedChoice
from ...compiler.cache import cache_folder
from ...compiler.cuda import cuda_devices, runs_on
from ...compiler.errors import ParedError
from ...compiler.records import Metric, Origin
from ...compiler.timing_cache import TimingCache
from .driver import CudaDevice, open_driver
from .kernels import generate, sums_floats
from .nvcc import compile_cubin
from .schedules import lowbit
from .schedules.base import chip_of
from .schedules.table import alternatives
from .trial import Trial, run_trial

if TYPE_CHECKING:
    from tvm import tirx

Functions = Mapping[str, "tirx.PrimFunc"]
Times = dict[str, float]

# Another schedule must be faster than the static choice by this factor: noise must not decide.
MARGIN = 1.02


@dataclass
class Choices:
    """What was chosen.

    Attributes:
        wanted: function -> schedule, those only that were chosen by time.
        made: text of the function, hashed -> schedule, for rebuilds.
        times: function -> schedule -> seconds.
        device: what timed them; empty where nothing did.
        trouble: why some were not timed; empty where all were.
    """

    wanted: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    times: dict[str, Times] = field(default_factory=dict)
    device: str = ""
    trouble: str = ""

    def attachments(self) -> dict[str, str]:
        """Return the file that a rebuild reads; none when nothing was chosen."""
        return {DECISIONS: json.dumps(self.made, indent=1) + "\n"} if self.made else {}

    def timed(self) -> tuple[TimedChoice, ...]:
        """Return every choice for which there are times."""
        how = f"CUDA events on {self.device}, median of interleaved rounds, perhaps in an earlier compilation"
        return tuple(
            TimedChoice(
                name,
                {option: Metric("time", s * 1e6, "us", Origin.MEASURED, how) for option, s in times.items()},
                self.wanted[name],
            )
            for name, times in self.times.items()
        )


def choose_on_device(
    functions: Functions, arch: str, recorded: Mapping[str, str] | None, cache: TimingCache | None = None
) -> Choices:
    """Choose schedules, on the first device that runs code for `arch`; without one nothing is chosen.

    Args:
        functions: unscheduled, by name.
        arch: chip compiled for.
        recorded: choices of an artifact that is built again, by `key_of`; None: choose anew.
        cache: of times; None takes the user's.
    """
    if recorded is not None:
        known = {name: recorded.get(key_of(f)) for name, f in functions.items()}
        wanted = {name: choice for name, choice in known.items() if choice is not None}
        return Choices(wanted, {key_of(functions[name]): choice for name, choice in wanted.items()})
    fitting = [index for index, chip in enumerate(cuda_devices()) if runs_on(arch, chip)]
    if not fitting:
        return Choices()
    device = open_driver(fitting[0])
    try:
        return _Chooser(device, arch, cache or TimingCache(cache_folder())).choose(functions)
    finally:
        device.close()


def key_of(function: tirx.PrimFunc) -> str:
    """Return what identifies a function in any compilation: a hash of its text, its name left out."""
    text = function.without_attr("global_symbol").script()
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class _Chooser:
    """Times on one device."""

    def __init__(self, device: CudaDevice, arch: str, cache: TimingCache) -> None:
        self._device, self._arch, self._cache = device, arch, cache
        versions = f"pared {metadata.version('pared')} apache-tvm {metadata.version('apache-tvm')}"
        self._circumstances = f"{device.name} {arch} {versions}"

    def choose(self, functions: Functions) -> Choices:
        found = Choices(device=f"{self._device.name} ({self._device.arch})")
        for name, function in functions.items():
            if lowbit.is_written(function):
                continue
            try:
                times = self._times(function)
            except ParedError as err:
                found.trouble = f"{name}: {err.message}; the static choice stands"
                if err.reason == "cuda-context-lost":
                    break
                continue
            if times:
                self._note(found, name, function, times)
        found.trouble = found.trouble or self._cache.trouble
        return found

    def _note(self, found: Choices, name: str, function: tirx.PrimFunc, times: Times) -> None:
        found.times[name] = times
        found.wanted[name] = found.made[key_of(function)] = pick(times)

    def _times(self, function: tirx.PrimFunc) -> Times:
        """Return seconds by schedule, the static choice first; those that compute something else left out."""
        options = dict(alternatives(function.with_attr("global_symbol", "main"), chip_of(self._arch)))
        if len(options) < 2:
            return {}
        keys = {name: self._key(function, name) for name in options}
        known = {name: self._cache.get(key) for name, key in keys.items()}
        times = {name: seconds for name, seconds in known.items() if seconds is not None}
        if len(times) < len(options):
            # All of them again: only times of one spell of the device can be compared.
            times = self._measured(function, options)
            for name in options:
                self._cache.put(keys[name], times.get(name, _WRONG))
        right = {name: seconds for name, seconds in times.items() if seconds != _WRONG}
        if not right:
            raise ParedError(
                "gpu-schedule", "no schedule computes on this device what it should", "report it"
            )
        return right

    def _key(self, function: tirx.PrimFunc, option: str) -> str:
        parts = (key_of(function), option, self._circumstances)
        return f"gpu {hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"

    def _measured(self, function: tirx.PrimFunc, options: Functions) -> Times:
        names = {f"option{number}": name for number, name in enumerate(options)}
        scheduled = {own: options[name].with_attr("global_symbol", own) for own, name in names.items()}
        contract = sums_floats(function)
        sources, launches = generate(scheduled, self._arch, set(names) if contract else ())
        kernels = [kernel.name for made in launches.values() for kernel in made.kernels]
        image = compile_cubin(sources[0] or sources[1], self._arch, contract=contract)
        with self._device.loaded(image, kernels) as handles:
            by_name = {names[own]: made for own, made in launches.items()}
            return run_trial(Trial(function, by_name, handles), self._device)


# In the cache: a schedule that computed something else.
_WRONG = -1.0


def pick(times: Mapping[str, float]) -> str:
    """Return the fastest; it must beat the first, which is the static choice, by the margin.

    >>> pick({"static": 1.0, "other": 0.99}), pick({"static": 1.0, "other": 0.9, "third": 0.8})
    ('static', 'third')
    """
    static = next(iter(times))
    best = min(times, key=times.__getitem__)
    return best if times[best] * MARGIN < times[static] else static


def note_of(choices: Choices, arch: str) -> str:
    """Return what the artifact says about how its kernels were chosen."""
    if not choices.device:
        if choices.made:
            return f"kernels are those of the artifact that is built again, for {arch}"
        return f"kernels are the static choice for {arch}; no device timed them"
    count = len(choices.times)
    said = f"{count} of the functions have alternatives and were timed on {choices.device}"
    return f"{said}; {choices.trouble}" if choices.trouble else said
