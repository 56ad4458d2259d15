"""hls4ml projects, emulated bit by bit, against the reference, on real samples.

PARED_DATA=... python -m pared.bench.fpga.hls_exact [--rows FILE] [NAME ...]
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from ...backends.fpga.engines import ENGINES
from ...backends.fpga.hls4ml.emulate import Library
from ...backends.fpga.hls4ml.engine import Project, make_project
from ...backends.fpga.hls4ml.project import WEIGHTS
from ...backends.fpga.hls4ml.settings import settings_of
from ...backends.fpga.host import Host
from ...backends.fpga.read import read_network
from ...backends.reference import Evaluator
from ...compiler.errors import ParedError
from ..results import Page
from .exact import entering, integers
from .exact_models import Proof, proofs

HEADINGS = (
    "model", "quantized", "tool", "samples", "integers that leave: differ", "largest output difference",
    "multipliers at once", "largest reuse factor", "compilation, s", "run, ms per sample",
)  # fmt: skip
ABOUT = """`PARED_DATA=... python -m pared.bench.fpga.hls_exact`. The project's C++ compiled with g++
(hls4ml's own fixed-point types, the arithmetic that the HLS tool synthesises), against `backends/reference`.
Integers: what leaves the project, accumulators or codes, against the reference's values in their units.
Output difference: after the host's part, in float; 0 where units are powers of two. Multipliers: products at
once, counted; the reuse factor is the least at which no layer unrolls into more than 4096 products. Times:
measured on this machine, which was busy with other work, one thread; they are not the hardware's."""
_SAMPLES = 1000
_PARALLEL = ("vitis", "io_parallel")
# Beside Vitis with whole tensors, which every model is tried with.
_OTHERS = (
    ("vitis", "io_stream"),
    ("vivado", "io_parallel"),
    ("quartus", "io_parallel"),
    ("catapult", "io_parallel"),
)
_WITH_OTHERS = ("w4a4, scales powers of two", "w4a4, scales of any size")


@dataclass
class Found:
    """What one project gave."""

    samples: int = 0
    wrong: int = 0
    every: int = 0
    furthest: float = 0.0
    seconds: float = 0.0


def roads(proof: Proof) -> Iterator[tuple[str, str]]:
    """Yield tools and interfaces to try a model with."""
    yield _PARALLEL
    small = proof.name in ("digits_mlp", "digits_resnet")
    if small and proof.how in _WITH_OTHERS:
        yield from _OTHERS


def prove(proof: Proof, tool: str, io: str) -> tuple[Project, Found, float]:
    """Make the project and run samples through it; return also the seconds until it was compiled."""
    model = proof.model()
    network, found = read_network(model), Found()
    settings = settings_of({**ENGINES["hls4ml"].options, "tool": tool, "io": io, "timeout_s": 3600.0})
    names = [value.name or "" for value in model.graph.outputs]
    evaluator = Evaluator(model, [*dict.fromkeys([*network.outputs, *names])])
    host, begin = Host(network), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(network, settings, Path(folder))
        library, made = Library(project.library, Path(folder) / WEIGHTS, project.ends), time.monotonic()
    for inputs in itertools.islice(entering(proof, model), _SAMPLES // 100):
        codes, start = host.encode(inputs), time.monotonic()
        left = library.run([port.enter(codes[port.wire.name]) for port in project.plan.inputs])
        found.seconds += time.monotonic() - start
        got = {
            port.wire.name: port.leave(a) for port, a in zip(project.plan.outputs, left, strict=True)
        }  # fmt: skip
        want = evaluator.run(inputs)
        for name in network.outputs:
            truth = integers(network, name, want[name])
            found.wrong += int(np.count_nonzero(truth != got[name].reshape(truth.shape)))
            found.every += truth.size
        for name, real in host.decode(got).items():
            off = np.abs(real.astype(np.float64) - want[name].astype(np.float64))
            found.furthest = max(found.furthest, float(off.max(initial=0.0)))
        found.samples += len(next(iter(codes.values())))
    return project, found, made - begin


def row(proof: Proof, tool: str, io: str) -> list[object]:
    """Return a page's row."""
    road = f"{tool}, {io}"
    try:
        project, found, seconds = prove(proof, tool, io)
    except ParedError as err:
        return [proof.name, proof.how, road, "", f"refused: {err}", "", "", "", "", ""]
    reuse = project.reuse.values()
    return [
        proof.name, proof.how, road, f"{found.samples} {proof.data}", f"{found.wrong} of {found.every}",
        f"{found.furthest:.2g}", sum(one.multipliers for one in reuse), max(one.factor for one in reuse),
        round(seconds), f"{1000 * found.seconds / max(found.samples, 1):.2g}",
    ]  # fmt: skip


def main() -> None:
    """Write the page; rows in `--rows` are not made again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--page", type=Path, default=Path("docs/results/fpga_hls_exact.md"))
    parser.add_argument("--rows", type=Path)
    args = parser.parse_args()
    page = Page(args.page, "hls4ml projects against the reference", ABOUT, HEADINGS)
    kept = json.loads(args.rows.read_text()) if args.rows and args.rows.is_file() else {}
    for proof in proofs():
        for tool, io in roads(proof):
            key = f"{proof.name} | {proof.how} | {tool} | {io}"
            if key not in kept and (not args.names or any(name in key for name in args.names)):
                kept[key] = row(proof, tool, io)
            if key in kept:
                page.add(*kept[key])
            if args.rows:
                args.rows.write_text(json.dumps(kept, indent=1))
    gcc = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout
    page.remark(f"hls4ml {metadata.version('hls4ml')}, g++ {gcc.strip()}.")


if __name__ == "__main__":
    main()
