"""Compiles the workloads into programs that the CUDA driver runs, and packs them for another machine.

    python -m pared.bench.gpu.build --arch sm_90 --out programs --pack programs.tar.xz
    python -m pared.bench.gpu.build --arch sm_90 --out programs --only resnet50 --batch 1

A program is the payload of one artifact, lowered without a run of the whole model, which for a batch of 64
takes hours on an emulated device. What it computes is checked where it is measured (`step.py`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .nets import Net
from .products import Chain, Product
from .workloads import WORKLOADS, Workload

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from ...compiler.driver.job import Job

META, WANT = "bench.json", "want.npz"
# Samples that the ranges of int8 networks are taken from.
_CALIBRATION = 8
_NOT_ON_DEVICE = ("model.onnx", "model.emulation.json")


def program_name(workload: str, precision: str, batch: int) -> str:
    """Return the folder's name of a program."""
    return f"{workload}-{precision}-b{batch}"


def why_missing(folder: Path, name: str) -> Path:
    """Return the file that says why a program is not there."""
    return folder / f"{name}.failed"


def programs(
    only: Sequence[str] | None = None, batches: Sequence[int] | None = None
) -> Iterator[tuple[Workload, str, int]]:
    """Yield workload, precision and batch of every program, or of those workloads and batches."""
    for workload in WORKLOADS.values():
        if only and workload.name not in only:
            continue
        for batch in batches or workload.batches:
            yield from ((workload, precision, batch) for precision in workload.precisions)


def build(
    workload: Workload, precision: str, batch: int, arch: str, out: Path, *, tiny: bool = False
) -> Path:
    """Compile one program into a folder below `out` and return it; raises what the compiler raises."""
    folder = out / program_name(workload.name, precision, batch)
    draft = folder.with_suffix(".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    begin = time.perf_counter()
    what = workload.sized(tiny=tiny)
    job, model = _compiled(what, precision, batch, arch)
    if isinstance(what, Net) and precision == "int8":
        rows, want = _reference_rows(model, what, batch)
        np.savez(draft / WANT, rows=rows, want=want)
        model = _rebatched(model, batch)
    payload = job.backend.lower(model, job.target, "tvm", job.ctx)
    payload.move_to(draft)
    meta = {
        "workload": workload.name, "precision": precision, "batch": batch, "arch": arch, "tiny": tiny,
        "engine": payload.engine, "options": dict(payload.options), "notes": list(payload.notes),
        "seconds": round(time.perf_counter() - begin, 1),
    }  # fmt: skip
    (draft / META).write_text(json.dumps(meta, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    return draft.rename(folder)


def _compiled(what: Net | Chain | Product, precision: str, batch: int, arch: str) -> tuple[Job, ir.Model]:
    """Run the pipeline that `pared compile` would; int8 networks for one sample."""
    from ...compiler.driver.job import Inputs, prepare
    from ...compiler.driver.variants import build_variants
    from ...compiler.manager import Manager
    from ...compiler.recipe import Recipe

    raw: dict[str, object] = {"target": f"gpu-cuda-{arch.replace('_', '')}"}
    calibration = None
    if isinstance(what, Net) and precision == "int8":
        raw["precision"] = precision
        rows = what.sample(_CALIBRATION, seed=2)
        calibration = [{"x": row[None]} for row in rows]
    job = prepare(
        Recipe.parse(raw, place="bench"), Inputs(_graph(what, precision, batch), calibration=calibration)
    )
    variants = build_variants(job, Manager())
    return job, variants.models[variants.asked]


def _graph(what: Net | Chain | Product, precision: str, batch: int) -> onnx.ModelProto:
    from . import onnx_nets

    if isinstance(what, Chain):
        return onnx_nets.chain_model(what)
    if isinstance(what, Product):
        return onnx_nets.product_model(what)
    if precision == "int8":
        return onnx_nets.net_model(what, 1)
    return onnx_nets.net_model(what, batch, "float16")


def _reference_rows(model: ir.Model, net: Net, batch: int) -> tuple[np.ndarray, np.ndarray]:
    from ...backends.reference import evaluate

    rows = sorted({0, batch - 1})
    inputs = net.sample(batch)
    results = [evaluate(model, {"x": inputs[row : row + 1]})["y"] for row in rows]
    return np.array(rows), np.concatenate(results)


def _rebatched(model: ir.Model, batch: int) -> ir.Model:
    """Return the model for another batch; no node of a convolutional network holds the batch as a number."""
    import onnx_ir as ir

    from ...compiler.ir.shapes import infer_shapes

    draft = model.clone()
    for value in (*draft.graph.inputs, *(v for node in draft.graph for v in node.outputs)):
        if value in draft.graph.inputs:
            value.shape = ir.Shape([batch, *list(value.shape or ())[1:]])
        else:
            value.shape = None
    infer_shapes(draft)
    return draft


def pack(folder: Path, file: Path) -> None:
    """Put all programs into one compressed file: what a device needs. Repeated weights take little of it."""
    with tarfile.open(file, "w:xz", preset=1) as archive:
        for program in sorted(folder.iterdir()):
            if (program / META).is_file():
                for part in sorted(program.iterdir()):
                    if part.name not in _NOT_ON_DEVICE:
                        archive.add(part, f"{program.name}/{part.name}")


def unpack(file: Path, folder: Path) -> None:
    """Take the programs out again."""
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")


def main() -> None:
    """Build what the command line asks for; a program that fails costs itself only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", help="a workload; may be given again")
    parser.add_argument("--batch", type=int, action="append", help="a batch size; may be given again")
    parser.add_argument("--pack", type=Path, help="compressed file to write when all are built")
    parser.add_argument("--tiny", action="store_true", help="the sizes of a dry run")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for workload, precision, batch in programs(options.only, options.batch):
        name = program_name(workload.name, precision, batch)
        try:
            folder = build(workload, precision, batch, options.arch, options.out, tiny=options.tiny)
        except Exception as err:  # whatever it is, the others are worth having
            print(f"{name}: {type(err).__name__}: {err}", flush=True)
            why_missing(options.out, name).write_text(f"{type(err).__name__}: {err}")
            continue
        print(f"{name}: {json.loads((folder / META).read_text())['seconds']} s", flush=True)
    if options.pack:
        pack(options.out, options.pack)
        print(f"{options.pack}: {options.pack.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
