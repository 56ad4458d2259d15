"""Everything in one call: programs and peers are compiled side by side, then measured one after the other.

    bench/gpu/run.sh --out docs/results         # wraps this

Each piece is a process of its own with a time limit: a crash or a hang costs one row. Results are written
after every step, those that matter most first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...compiler.cuda import runs_on
from ...targets import load_target, target_names
from .build import META, unpack
from .processes import Task, run_all, run_one
from .workloads import WORKLOADS

RESULT = "gpu.json"
# In order of importance; the batch of what has none is 1.
STEPS = (
    ("gemm", 1), ("gemv_b32", 1), ("gemv_b128", 1), ("resnet50", 1), ("bert", 1), ("mobilenet_v2", 1),
    ("resnet50", 64), ("bert", 64), ("mobilenet_v2", 64),
)  # fmt: skip
# Stands for the bigger batch in dry runs.
_TINY_BATCH = 3
# Shares of the whole time: compiling may take this much, one step at most that much.
_PREPARE, _STEP = 0.5, 0.16
# Seconds at the end for writing, and the least that a step is started with.
_RESERVE, _LEAST = 5, 15
# What torch.compile does in the step itself where its tuning did not end in time: the graph, without tuning.
_QUICK = "reduce-overhead"


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
        out: folder of the results.
        work: folder for programs, caches and logs.
        given: programs made elsewhere, or None.
        steps: workload and batch.
        limit: seconds for everything.
        jobs: processes at a time while compiling.
        dry: tiny sizes on this CPU.
    """

    out: Path
    work: Path
    given: Path | None
    steps: Sequence[tuple[str, int]]
    limit: float
    jobs: int
    dry: bool

    def command(self, module: str, *arguments: str) -> list[str]:
        """Return the command line of one of our modules."""
        tiny = ["--tiny"] if self.dry else []
        return [sys.executable, "-m", f"pared.bench.gpu.{module}", *arguments, *tiny]

    def step(self, workload: str, batch: int, file: Path, *more: str) -> list[str]:
        """Return the command line of `step.py`."""
        folders = ["--programs", str(self.work / "programs"), "--cache", str(self.work)]
        return self.command("step", workload, "--batch", str(batch), "--out", str(file), *folders, *more)


class Session:
    """One call, with its clock and what it has found so far."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self._begin = plan, time.monotonic()
        self.data: dict[str, object] = {"dry": plan.dry, "limit_s": plan.limit, "steps": []}
        self._steps: list[dict[str, object]] = []

    def left(self) -> float:
        """Seconds left for work."""
        return self.plan.limit - _RESERVE - (time.monotonic() - self._begin)

    def write(self) -> None:
        """Write what is known; a reader never sees half a file."""
        self.data |= {"steps": self._steps, "seconds": round(time.monotonic() - self._begin, 1)}
        part = self.plan.out / f"{RESULT}.part"
        part.write_text(json.dumps(self.data, indent=1) + "\n")
        part.rename(self.plan.out / RESULT)

    def run(self) -> None:
        """Roofs, then compiling, then the steps."""
        roofs = self._step("roofs", 1, {}, "")
        self.data |= {
            "machine": roofs.get("machine"),
            "roofs": roofs.get("roofs"),
            "roofs_state": roofs["state"],
        }
        self.write()
        machine = roofs.get("machine")
        chip = str(machine.get("arch") or "sm_90") if isinstance(machine, dict) else "sm_90"
        late = self._prepare(code_for(chip), chip)
        for workload, batch in self.plan.steps:
            self._steps.append(self._measured(workload, batch, late))
            self.write()

    def _prepare(self, arch: str, chip: str) -> set[str]:
        """Compile everything, and return the steps whose torch.compile did not end in time."""
        plan, folder = self.plan, self.plan.work / "programs"
        folder.mkdir(exist_ok=True)
        tasks = []
        here = importlib.util.find_spec("tvm") is not None and shutil.which("nvcc") is not None
        for workload, batch in plan.steps:
            key = f"{workload}-b{batch}"
            more = ["--arch", arch, "--out", str(folder), "--only", workload, "--batch", str(batch)]
            if here:
                tasks.append(Task(f"build {key}", plan.command("build", *more)))
            warm = plan.step(workload, batch, plan.work / f"warm-{key}.json", "--warm")
            tasks.append(Task(f"warm {key}", warm))
        limit = min(_PREPARE * plan.limit, self.left())
        ended = run_all(tasks, plan.jobs, limit, plan.work, lambda text: print(text, flush=True))
        self.data["prepare"] = ended
        self.data["programs"] = self._take_given(folder, chip)
        return {name.removeprefix("warm ") for name, state in ended.items() if state["state"] != "done"}

    def _take_given(self, folder: Path, chip: str) -> dict[str, str]:
        """Fill up with programs made elsewhere, and say where each one is from."""
        found = {path.name: "compiled here" for path in sorted(folder.iterdir()) if (path / META).is_file()}
        for path in sorted(self.plan.given.iterdir()) if self.plan.given else ():
            if path.name in found or not (path / META).is_file():
                continue
            meta = json.loads((path / META).read_text())
            if not runs_on(meta["arch"], chip) or meta["tiny"] != self.plan.dry:
                found[path.name] = f"refused: it is for {meta['arch']}, tiny = {meta['tiny']}"
                continue
            (folder / path.name).symlink_to(path.resolve())
            found[path.name] = "compiled elsewhere"
        return found

    def _measured(self, workload: str, batch: int, late: set[str]) -> dict[str, object]:
        """Run a step; where a candidate takes the process down, once more without it."""
        mode = _QUICK if f"{workload}-b{batch}" in late else ""
        first = self._step(workload, batch, {}, mode)
        who = str(first.get("who") or "")
        # From here on the times are there: what came after them costs its own cells.
        timed = first.get("stage") in ("energy", "kernels")
        if first["state"] == "done" or not who or timed:
            return first
        print(
            f"{workload}-b{batch}: {first['state']} at {first.get('stage')}, {who}; again without it",
            flush=True,
        )
        second = self._step(workload, batch, {who: f"{first['state']} at {first.get('stage')}"}, mode)
        return second if second["state"] == "done" or "candidates" not in first else second | {"first": first}

    def _step(self, workload: str, batch: int, without: Mapping[str, str], mode: str) -> dict[str, object]:
        base: dict[str, object] = {"workload": workload, "batch": batch}
        limit = min(_STEP * self.plan.limit, self.left())
        if limit < min(_LEAST, _STEP * self.plan.limit):
            return base | {"state": "no time left"}
        file = self.plan.work / f"{workload}-b{batch}.json"
        file.unlink(missing_ok=True)
        more = ["--without", json.dumps(dict(without))] + (["--mode", mode] if mode else [])
        command = self.plan.step(workload, batch, file, *more)
        ended = run_one(Task(f"{workload}-b{batch}", command), limit, self.plan.work)
        print(f"{workload}-b{batch}: {ended['state']}, {ended['seconds']} s", flush=True)
        found = json.loads(file.read_text()) if file.is_file() else {}
        return base | found | ended


def code_for(chip: str) -> str:
    """Return the newest architecture of a target whose code a chip runs, else the chip's own."""
    targets = [load_target(name) for name in target_names()]
    fitting = [t.isa.arch for t in targets if t.backend == "gpu" and runs_on(t.isa.arch, chip)]
    return max(fitting, key=lambda arch: int(arch.removeprefix("sm_")), default=chip)


def environment(work: Path) -> dict[str, str]:
    """Return variables that keep caches in one place and CPUs from being asked for too much."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"), "TRITON_CACHE_DIR": str(work / "triton"),
        "TORCHINDUCTOR_COMPILE_THREADS": "4", "PARED_CACHE_DIR": str(work / "pared"), "OMP_NUM_THREADS": "4",
    }  # fmt: skip


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench/gpu/run.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {RESULT} and gpu.md")
    parser.add_argument("--programs", type=Path, help="folder or .tar.xz that build.py made elsewhere")
    parser.add_argument("--limit", type=float, default=570, help="seconds for everything (570)")
    parser.add_argument("--only", action="append", help="a workload; may be given again")
    parser.add_argument("--batch", type=int, action="append", help="a batch size; may be given again")
    parser.add_argument("--jobs", type=int, default=max(1, min(6, (os.cpu_count() or 2) // 2)))
    parser.add_argument("--dry", action="store_true", help="tiny sizes on this CPU; figures mean nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write JSON and page."""
    given = parse(sys.argv[1:] if arguments is None else arguments)
    if given.dry and given.out.resolve() == (Path(__file__).parents[2] / "docs" / "results").resolve():
        sys.exit("a dry run measures nothing: give --out another folder than docs/results")
    unknown = set(given.only or ()) - set(WORKLOADS)
    if unknown:
        sys.exit(f"unknown workload {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pared-gpu-") as folder:
        work = Path(folder)
        os.environ.update(environment(work))
        programs = given.programs
        if programs is not None and programs.is_file():
            unpack(programs, work / "given")
            programs = work / "given"
        steps = [
            (name, min(batch, _TINY_BATCH) if given.dry else batch)
            for name, batch in STEPS
            if (not given.only or name in given.only) and (not given.batch or batch in given.batch)
        ]
        session = Session(Plan(given.out, work, programs, steps, given.limit, given.jobs, given.dry))
        session.run()
    from .page import write_page

    write_page(given.out / RESULT, given.out / "gpu.md")
    print(f"{given.out / RESULT}, {given.out / 'gpu.md'}")


if __name__ == "__main__":
    main()
