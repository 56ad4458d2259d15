"""One step in a process of its own: a workload at one batch, all candidates side by side, results as JSON.

The file is written before everything that may fail, so that a crash or a hang shows how far it came.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..meter import uncollected
from . import meter
from .build import program_name
from .candidate import Candidate, on_gpu, synchronize
from .check import BFLOAT, judge, no_tf32, wanted
from .kernels import kernel_times
from .machine import describe
from .own import OwnCandidate, why_not
from .peers import COMPILED, MODE, peers_of
from .power import bus_id, measure_energy
from .quiet import lock_timing
from .roofs import measure_roofs
from .workloads import WORKLOADS, Workload, sample_of

OWN = "pared"
# Rounds, seconds of timing per candidate, seconds of idling and of being busy for one candidate's energy.
_ROUNDS, _TIMING, _BUSY = 5, 1.2, 0.6


@dataclass
class Record:
    """The JSON file of a step, rewritten at every `note`."""

    file: Path
    data: dict[str, object] = field(default_factory=dict)
    candidates: dict[str, dict[str, object]] = field(default_factory=dict)

    def note(self, stage: str, who: str = "", **more: object) -> None:
        """Say what comes next, and with whom."""
        self.data |= {"stage": stage, "who": who, "candidates": self.candidates, **more}
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1) + "\n")
        part.rename(self.file)


@dataclass(frozen=True)
class Options:
    """What a step is told.

    Attributes:
        programs: folder of `build.py`.
        cache: folder for what peers build.
        without: candidate -> why it is left out.
        tiny: a dry run.
        mode: of torch.compile.
    """

    programs: Path
    cache: Path
    without: Mapping[str, str]
    tiny: bool
    mode: str = MODE


def run_step(workload: Workload, batch: int, options: Options, record: Record) -> None:
    """Build, check, time and weigh every candidate."""
    what = workload.sized(tiny=options.tiny)
    lock_timing(options.cache / "timing.lock")
    ready, extra = _own(workload, batch, options, record), _peers(workload, batch, options, record)
    ready |= extra
    record.note("reference")
    want = wanted(what, batch)
    right: dict[str, Candidate] = {}
    for name, candidate in ready.items():
        record.note("check", name)
        kept = candidate.wanted if isinstance(candidate, OwnCandidate) else None
        found = judge(what, candidate.host(), want, kept)
        entry = record.candidates[name]
        entry |= asdict(found)
        if found.ok or ("bf16" in name and found.error <= BFLOAT):
            right[name] = candidate
        else:
            entry |= {"state": "wrong", "reason": f"error {found.error:.2g} against {found.against}"}
    del want, ready
    _measure(right, options, record)


def _own(workload: Workload, batch: int, options: Options, record: Record) -> dict[str, Candidate]:
    ready: dict[str, Candidate] = {}
    what = workload.sized(tiny=options.tiny)
    for precision in workload.precisions:
        name = f"{OWN} {precision}"
        entry = record.candidates.setdefault(name, {"state": "missing"})
        if name in options.without:
            entry["reason"] = options.without[name]
            continue
        record.note("load", name)
        folder = options.programs / program_name(workload.name, precision, batch)
        try:
            candidate = OwnCandidate(folder, sample_of(what, batch))
        except Exception as err:  # whatever it is, it is this candidate's own row
            entry["reason"] = why_not(err)
            continue
        entry |= {
            "state": "ready", "weight_bytes": candidate.weight_bytes, "launches": candidate.launches,
            "library_products": candidate.library_products, "notes": candidate.notes,
        }  # fmt: skip
        ready[name] = candidate
    return ready


def _peers(workload: Workload, batch: int, options: Options, record: Record) -> dict[str, Candidate]:
    ready: dict[str, Candidate] = {}
    for name, make in peers_of(workload.sized(tiny=options.tiny), batch, options.cache, options.mode).items():
        entry = record.candidates.setdefault(name, {"state": "missing"})
        if name in options.without:
            entry["reason"] = options.without[name]
            continue
        record.note("build", name)
        begin = time.perf_counter()
        try:
            ready[name] = make()
        except Exception as err:  # likewise
            entry["reason"] = why_not(err)
            continue
        entry |= {"state": "ready", "build_s": round(time.perf_counter() - begin, 2)}
        if name.startswith(COMPILED):
            entry["mode"] = options.mode if on_gpu() else "dry run"
    return ready


def _measure(right: Mapping[str, Candidate], options: Options, record: Record) -> None:
    """Time all right candidates in turn; then each one's energy and kernels."""
    seconds = 0.05 if options.tiny else _TIMING
    rounds = 2 if options.tiny else _ROUNDS
    gc.collect()
    with uncollected():
        times = meter.compare(
            right,
            rounds=rounds,
            seconds=seconds * len(right),
            progress=lambda name: record.note("time", name),
        )
    for name, found in times.items():
        record.candidates[name] |= {"state": "measured", **found.record()}
        for own in (n for n in times if n.startswith(OWN) and n != name):
            record.candidates[name].setdefault("over", {})[own] = meter.ratio(times[own], found)  # type: ignore[index]
    record.note("energy")
    place = bus_id() if on_gpu() else "dry run"
    for name, candidate in right.items():
        record.note("energy", name)
        each = float(str(record.candidates[name]["device_ms"]))
        record.candidates[name]["energy"] = measure_energy(place, candidate.queue, synchronize, each, _BUSY)
    for name, candidate in right.items():
        record.note("kernels", name)
        record.candidates[name]["kernels"] = kernel_times(candidate.queue)


def warm(workload: Workload, batch: int, options: Options, record: Record) -> None:
    """Compile what torch compiles, so that its caches on disk hold the kernels that it chose."""
    lock_timing(options.cache / "timing.lock")
    for name, make in peers_of(workload.sized(tiny=options.tiny), batch, options.cache, options.mode).items():
        if name.startswith((COMPILED, "TensorRT")):
            record.note("build", name)
            begin = time.perf_counter()
            try:
                make()
            except Exception as err:  # the step itself says so again
                record.candidates[name] = {"reason": why_not(err)}
                continue
            record.candidates[name] = {"build_s": round(time.perf_counter() - begin, 2)}


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=["roofs", *WORKLOADS])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--without", type=json.loads, default={})
    parser.add_argument("--tiny", action="store_true", help="a dry run")
    parser.add_argument("--warm", action="store_true", help="compile what torch compiles, and stop")
    parser.add_argument("--mode", default=MODE, help="of torch.compile")
    given = parser.parse_args()
    options = Options(given.programs, given.cache, given.without, given.tiny, given.mode)
    record = Record(given.out, {"workload": given.workload, "batch": given.batch})
    torch.manual_seed(0)
    no_tf32()
    if not on_gpu():
        torch.set_num_threads(1)
    record.note("start")
    if given.workload == "roofs":
        record.note("roofs", machine=describe())
        record.note("done", roofs=measure_roofs(tiny=given.tiny))
        return
    run = warm if given.warm else run_step
    run(WORKLOADS[given.workload], given.batch, options, record)
    record.note("done")


if __name__ == "__main__":
    main()
