"""Measured choices of engine `native`: times are cached, choices recorded, and a rebuild repeats them.

A rule of lowering that has several kernels for a layer asks

    way = timing.fastest(Key("conv_f32", str(spec)), {"direct": ready_direct, "winograd": ready_winograd})

where each `ready_*` compiles its kernel and returns a function that runs it once. Inside `deciding`, which
`compile.lower` opens, the options are timed side by side (unless the cache knows them) and the winner is
recorded; a rebuild gets the recorded winners instead. Outside of it (dry runs, tests, targets that do not run
here) nothing is timed and the first option wins: put the best guess first.
"""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from ....compiler.backend import DECISIONS, TimedChoice
from ....compiler.cache import cache_folder
from ....compiler.machine import find_machine
from ....compiler.records import Metric, Origin
from ....compiler.timing_cache import TimingCache
from .isa import Isa

Run = Callable[[], object]
Clock = Callable[[], float]

# An option must be faster than the one before it by this factor: noise must not decide.
MARGIN = 1.02

_ROUNDS = 7
_SECONDS_PER_OPTION = 0.02


@functools.cache
def shared_cache() -> TimingCache:
    """Return this process's view of the user's cache."""
    return TimingCache(cache_folder())


@dataclass(frozen=True)
class Key:
    """What a time is of; ISA, CPU and versions are added by `measured`.

    Attributes:
        family: kernel family, `region` or `plan`.
        spec: everything else that the time depends on: the spec's text, a graph's fingerprint.
    """

    family: str
    spec: str

    @property
    def text(self) -> str:
        """Return the name under which a decision is recorded; it does not depend on the machine."""
        return f"{self.family} {self.spec}"


@dataclass
class Decisions:
    """The choices of one compilation.

    Attributes:
        isa: of the code that is made.
        recorded: choices of an artifact that is built again; None: choose anew.
        made: choices so far, by the text of their key.
        times: seconds of every option that was timed or cached, by key text and option.
        cache: where times are kept.
    """

    isa: Isa
    recorded: Mapping[str, str] | None = None
    made: dict[str, str] = field(default_factory=dict)
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    cache: TimingCache = field(default_factory=shared_cache)

    def attachments(self) -> dict[str, str]:
        """Return the file that a rebuild reads; none when nothing was chosen."""
        return {DECISIONS: json.dumps(self.made, indent=1) + "\n"} if self.made else {}

    def timed(self) -> tuple[TimedChoice, ...]:
        """Return every choice for which there are times."""
        how = "median of interleaved rounds on this machine, perhaps in an earlier compilation"
        return tuple(
            TimedChoice(
                what,
                {name: Metric("time", s * 1e6, "us", Origin.MEASURED, how) for name, s in times.items()},
                self.made[what],
            )
            for what, times in self.times.items()
        )

    def notes(self) -> tuple[str, ...]:
        """Return what the user should know: that times could not be kept."""
        return (self.cache.trouble,) if self.times and self.cache.trouble else ()


_current: ContextVar[Decisions | None] = ContextVar("pared_timing_decisions", default=None)


@contextmanager
def deciding(decisions: Decisions) -> Iterator[Decisions]:
    """Let `fastest` time and record its choices within the block."""
    token = _current.set(decisions)
    try:
        yield decisions
    finally:
        _current.reset(token)


def measured(key: Key, make: Callable[[], float]) -> float:
    """Return the time kept under `key`, or what `make` measures now, which is kept.

    Args:
        key: what is timed; the ISA of the current decisions, the CPU and the versions are added to it.
        make: returns seconds.
    """
    current = _current.get()
    cache = shared_cache() if current is None else current.cache
    full = _full_key(key, None if current is None else current.isa)
    known = cache.get(full)
    if known is None:
        known = make()
        cache.put(full, known)
    return known


def fastest(
    key: Key,
    options: Mapping[str, Callable[[], Run]],
    clock: Clock = time.process_time,
    seconds: float = _SECONDS_PER_OPTION,
) -> str:
    """Return the name of the fastest option, or the first one where nothing may be timed.

    Args:
        key: what is chosen for.
        options: name -> function that makes everything ready and returns a run. Called only when timed.
        clock: what the time is taken with, see `clock_for`.
        seconds: how long each option is run, roughly.
    """
    current, first = _current.get(), next(iter(options))
    if current is None:
        return first
    recorded = current.made.get(key.text) or (current.recorded or {}).get(key.text, first)
    if key.text not in current.made and current.recorded is None and _runs_here(current.isa):
        recorded = _timed(current, key, options, clock, seconds)
    # An artifact of another version may name an option that is no more.
    current.made[key.text] = recorded if recorded in options else first
    return current.made[key.text]


def _timed(
    current: Decisions, key: Key, options: Mapping[str, Callable[[], Run]], clock: Clock, length: float
) -> str:
    names = {name: _full_key(Key(key.family, f"{key.spec} option {name}"), current.isa) for name in options}
    known = {name: current.cache.get(full) for name, full in names.items()}
    times = {name: value for name, value in known.items() if value is not None}
    if len(times) < len(options):
        # All of them again: only times of one load of the machine can be compared.
        times = time_runs({name: ready() for name, ready in options.items()}, clock, length)
        for name, seconds in times.items():
            current.cache.put(names[name], seconds)
    current.times[key.text] = times
    return pick(times)


def pick(times: Mapping[str, float]) -> str:
    """Return the fastest; one must beat those before it by the margin.

    >>> pick({"direct": 1.0, "winograd": 0.99}), pick({"direct": 1.0, "winograd": 0.9})
    ('direct', 'winograd')
    """
    best = next(iter(times))
    for name, seconds in times.items():
        if seconds * MARGIN < times[best]:
            best = name
    return best


def clock_for(threads: int) -> Clock:
    """Return what to time with: CPU time on one thread, for a busy machine must not favour anything.

    The CPU time of several threads is that of their sum, so there it is wall time.
    """
    return time.process_time if threads == 1 else time.perf_counter


def time_runs(
    runs: Mapping[str, Run], clock: Clock = time.process_time, seconds: float = _SECONDS_PER_OPTION
) -> dict[str, float]:
    """Return the seconds that one run takes, by name: medians of interleaved rounds.

    Each run gets about `seconds` in all.
    """
    repeats = {name: _repeats(run, clock, seconds / _ROUNDS) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(_ROUNDS):
        order = list(runs) if index % 2 == 0 else list(runs)[::-1]
        for name in order:
            found[name].append(_turn(runs[name], clock, repeats[name]))
    return {name: statistics.median(turns) for name, turns in found.items()}


def _turn(run: Run, clock: Clock, repeats: int) -> float:
    run()  # brings code and data back to the caches
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def _repeats(run: Run, clock: Clock, seconds: float) -> int:
    run()
    start = clock()
    run()
    return max(1, min(10_000, round(seconds / max(clock() - start, 1e-7))))


def _runs_here(isa: Isa) -> bool:
    return not isa.missing_on(find_machine())


def _full_key(key: Key, isa: Isa | None) -> str:
    code = "" if isa is None else isa.text
    parts = (key.family, key.spec, code, *_circumstances())
    return f"{key.family} {hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"


@functools.cache
def _circumstances() -> tuple[str, ...]:
    """Return what else times depend on: the CPU, the versions, and the sources that make the kernels."""
    versions = (f"{name} {_version(name)}" for name in ("pared", "apache-tvm", "onnxruntime"))
    return find_machine().cpu, *versions, _sources()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def _sources() -> str:
    digest, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.[ch]")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
