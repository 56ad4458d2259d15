"""Which schedule a function gets where a device can tell: the fastest that computes the same.

Where cuBLASLt is installed beside the device, its algorithms are timed too; nothing else chooses it.
Without a device the table's static choice stands (`schedules/table.py`). Times are kept between compilations
by the function's text and the device (`compiler/timing_cache.py`); a rebuild repeats the recorded choices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from ...compiler.backend import DECISIONS, TimedChoice
from ...compiler.cache import cache_folder
from ...compiler.cuda import cuda_devices, runs_on
from ...compiler.errors import ParedError
from ...compiler.records import Metric, Origin
from ...compiler.timing_cache import TimingCache
from .by_library import LibraryChoice, around_product, by_library, product_of_library, read_choice
from .cublaslt import NAME, version_text
from .driver import CudaDevice, open_driver
from .kernels import generate, sums_floats
from .library import Queue, open_library
from .nvcc import compile_cubin
from .program import DeviceFunction, MatrixProduct
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
        library: why cuBLASLt was not timed; empty where it was, or no device was there.
    """

    wanted: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    times: dict[str, Times] = field(default_factory=dict)
    device: str = ""
    trouble: str = ""
    library: str = ""

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


@dataclass(frozen=True)
class _Options:
    """What may compute a function.

    Attributes:
        function: unscheduled.
        schedules: it, scheduled, by name; the static choice first.
        around: it, scheduled so that `proposed` may do its first kernel; None where that is empty.
        proposed: the library's algorithms.
    """

    function: tirx.PrimFunc
    schedules: Functions
    around: tirx.PrimFunc | None
    proposed: Sequence[LibraryChoice]

    @property
    def names(self) -> list[str]:
        """As decisions and reports name them."""
        return [*self.schedules, *(choice.name for choice in self.proposed)]


class _Chooser:
    """Times on one device."""

    def __init__(self, device: CudaDevice, arch: str, cache: TimingCache) -> None:
        self._device, self._arch, self._cache = device, arch, cache
        versions = f"pared {metadata.version('pared')} apache-tvm {metadata.version('apache-tvm')}"
        self._circumstances = f"{device.name} {arch} {versions}"
        self._library, self._missing = open_library(device)

    def choose(self, functions: Functions) -> Choices:
        found = Choices(device=f"{self._device.name} ({self._device.arch})", library=self._missing)
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
        options = self._options(function.with_attr("global_symbol", "main"))
        if len(options.names) < 2:
            return {}
        keys = {name: self._key(function, name) for name in options.names}
        known = {name: self._cache.get(key) for name, key in keys.items()}
        times = {name: seconds for name, seconds in known.items() if seconds is not None}
        if len(times) < len(keys):
            # All of them again: only times of one spell of the device can be compared.
            times = self._measured(options)
            for name in keys:
                self._cache.put(keys[name], times.get(name, _WRONG))
        right = {name: seconds for name, seconds in times.items() if seconds != _WRONG}
        if not right:
            raise ParedError(
                "gpu-schedule", "no schedule computes on this device what it should", "report it"
            )
        return right

    def _options(self, function: tirx.PrimFunc) -> _Options:
        chip = chip_of(self._arch)
        product = product_of_library(function) if self._library is not None else None
        around = around_product(function, chip) if product is not None else None
        proposed: list[LibraryChoice] = []
        if self._library is not None and product is not None and around is not None:
            count = len(self._library.algorithms(product, _ALGORITHMS))
            proposed = [LibraryChoice(self._library.version, rank) for rank in range(count)]
        schedules = dict(alternatives(function, chip))
        return _Options(function, schedules, around if proposed else None, proposed)

    def _key(self, function: tirx.PrimFunc, option: str) -> str:
        parts = (key_of(function), option, self._circumstances)
        return f"gpu {hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"

    def _measured(self, options: _Options) -> Times:
        names = {f"option{number}": name for number, name in enumerate(options.schedules)}
        scheduled = {own: options.schedules[name] for own, name in names.items()}
        if options.around is not None:
            scheduled[_AROUND] = options.around
        scheduled = {own: f.with_attr("global_symbol", own) for own, f in scheduled.items()}
        contract = sums_floats(options.function)
        sources, made = generate(scheduled, self._arch, set(scheduled) if contract else ())
        kernels = [kernel.name for function in made.values() for kernel in function.kernels]
        image = compile_cubin(sources[0] or sources[1], self._arch, contract=contract)
        by_name = {name: made[own] for own, name in names.items()}
        by_name |= {c.name: by_library(made[_AROUND], options.function, c) for c in options.proposed}
        with self._device.loaded(image, kernels) as handles:
            return run_trial(Trial(options.function, by_name, handles, self._queues(by_name)), self._device)

    def _queues(self, options: Mapping[str, DeviceFunction]) -> dict[MatrixProduct, Queue]:
        """Return how the library does the products of options."""
        if self._library is None:
            return {}
        products = [kernel.product for made in options.values() for kernel in made.kernels]
        ready = {product: self._library.ready(product) for product in products if product is not None}
        return {product: queue for product, queue in ready.items() if queue is not None}


# The function whose first kernel the library stands in for, in generated code.
_AROUND = "around"
# As many of the library's algorithms are timed.
_ALGORITHMS = 3
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
    if choices.device:
        count = len(choices.times)
        said = f"{count} of the functions have alternatives and were timed on {choices.device}"
    elif choices.made:
        said = f"kernels are those of the artifact that is built again, for {arch}"
    else:
        said = f"kernels are the static choice for {arch}; no device timed them"
    parts = (said, _library_note(choices.wanted), choices.library, choices.trouble)
    return "; ".join(part for part in parts if part)


def _library_note(wanted: Mapping[str, str]) -> str:
    """Return which library was the fastest, and how often; empty where none was."""
    chosen = [choice for choice in map(read_choice, wanted.values()) if choice is not None]
    versions = sorted({version_text(choice.version) for choice in chosen})
    by = f"{NAME} {', '.join(versions)}"
    return f"products by {by} where it is installed: {len(chosen)}" if chosen else ""
