"""Every shared model, those of examples/ and onnx's nine architectures, compiled for two GPUs without one.

    PARED_DATA=... python -m pared.bench.gpu.models [NAME ...] [--page docs/results/gpu_models.md]

Each model passes the default pipeline of its precision at -O2, then TVM and nvcc make machine code (a cubin)
for sm_80 and sm_90. Sizes that are open are 1. Calibration and inputs are seeded random arrays: they exercise
the arithmetic and say nothing about accuracy.

**Nothing here has run on a GPU.** `difference` is that of the *emulated* device from the reference semantics
of the compiled graph: the same launches on the same addresses, each function compiled for this CPU before its
loops were mapped to threads. It says which share of the derived bound floats took (1 would be the limit), and
how many integers of all were unlike. Where floats pass through QONNX's quantizers (`espcn_subpixel_quant`), a
value that lies between two steps may take the other one. `kernels` are launches for one sample (sm_90).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir

from ...backends.gpu.loading import load
from ...backends.gpu.lower import REPORT, lower
from ...backends.reference import derive_bound, evaluate
from ...compiler.backend import Array, Payload, Signature
from ...compiler.data import open_samples
from ...compiler.driver.precision import default_pipeline, parse_precision
from ...compiler.errors import ParedError
from ...compiler.ir.export import signature_of
from ...compiler.ir.importer import import_model
from ...compiler.manager import Manager
from ...compiler.pass_api import Context
from ...compiler.pipeline import parse_pipeline
from ...compiler.registry import MACROS, PASSES
from ...targets import load_target
from ..data import data_folder
from ..light_models import NAMES, light_model
from ..results import Page

ARCHES = ("sm_80", "sm_90")
PRECISIONS = ("float", "fp16", "int8")
HEADINGS = (
    "model", "precision", *ARCHES, "kernels", "arena bytes", "weight bytes", "difference (emulated)",
)  # fmt: skip
_SHAPES: Mapping[str, Mapping[str, Sequence[int]]] = {
    "silero_vad_16k_op15": {"input": (1, 576), "state": (2, 1, 128)}
}


@dataclass(frozen=True)
class Case:
    """A model by its file, or by its name among onnx's architectures."""

    name: str
    path: Path | None


def cases(names: Sequence[str]) -> Iterator[Case]:
    """Yield what is compiled: all, or those whose names are given."""
    examples = Path(__file__).parents[2] / "examples" / "models"
    files = sorted(examples.glob("*.onnx")) + sorted((data_folder() / "models").glob("*.onnx"))
    every = [Case(path.stem, path) for path in files] + [Case(name, None) for name in NAMES]
    yield from (case for case in every if not names or case.name in names)


def imported(case: Case) -> ir.Model:
    """Return a model whose open sizes are 1, unless others are needed."""
    if case.path is None:
        return import_model(light_model(case.name)).model
    shapes: dict[str, Sequence[int | str]] = {k: list(v) for k, v in _SHAPES.get(case.name, {}).items()}
    model = import_model(case.path, shapes or None).model
    for port in signature_of(model).inputs:
        if any(not isinstance(size, int) for size in port.shape):
            shapes[port.name] = [size if isinstance(size, int) else 1 for size in port.shape]
    return import_model(case.path, shapes).model if shapes else model


def random_inputs(signature: Signature, seed: int) -> dict[str, Array]:
    """Return standard normal floats; integers from 0 to 9, of 8 bits any."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for port in signature.inputs:
        kind = ir.DataType[port.dtype].numpy()
        shape = tuple(int(size) for size in port.shape)
        if kind.kind in "iub":
            low, high = (np.iinfo(kind).min, np.iinfo(kind).max + 1) if kind.itemsize == 1 else (0, 10)
            found[port.name] = rng.integers(low, high, shape).astype(kind)
        else:
            found[port.name] = rng.normal(size=shape).astype(kind)
    return found


def prepared(model: ir.Model, precision: str, target: str) -> ir.Model:
    """Return what the default pipeline of a precision makes of a model for a target."""
    wanted = None if precision == "float" else parse_precision(precision, {"float16", "bfloat16"})
    feeds = [random_inputs(signature_of(model), seed) for seed in range(2)]
    samples = open_samples(feeds, signature_of(model), purpose="calibration")
    ctx = Context(calibration=samples, target=load_target(target))
    return Manager().run(model, parse_pipeline(default_pipeline(wanted, 2), PASSES, MACROS), ctx).model


def compiled(case: Case, precision: str, arch: str) -> tuple[ir.Model, Payload]:
    """Return the graph and its machine code; raises `ParedError` with the reason of a refusal."""
    name = f"gpu-cuda-{arch.replace('_', '')}"
    model = prepared(imported(case), precision, name)
    return model, lower(model, load_target(name))


def row(case: Case, precision: str) -> tuple[object, ...]:
    """Return the cells of one row."""
    verdicts, report, difference = [], None, "-"
    for arch in ARCHES:
        try:
            model, payload = compiled(case, precision, arch)
        except ParedError as err:
            verdicts.append(f"refused: {err.reason}: {err.message.split('; ')[0]}")
            continue
        verdicts.append("cubin" if any(name.endswith(".cubin") for name in payload.files) else "no code")
        if arch == ARCHES[-1]:
            report = json.loads(payload.attachments[REPORT])
            difference = _difference(model, payload)
    memory = cast("Mapping[str, int]", report["memory"]) if report else {}
    launches = len(next(iter(report["launches"].values()))) if report else "-"
    return (
        case.name, precision, *verdicts, launches, memory.get("arena_bytes", "-"),
        memory.get("weight_bytes", "-"), difference,
    )  # fmt: skip


def _difference(model: ir.Model, payload: Payload) -> str:
    """Return how far the emulated device is from the reference on one random input."""
    feeds = random_inputs(signature_of(model), 7)
    with tempfile.TemporaryDirectory(prefix="pared-bench-") as name:
        folder = Path(name)
        payload.move_to(folder)
        got = load(folder).run(feeds)
    want, bounds = evaluate(model, feeds), derive_bound(model, [feeds], seed=0)
    unlike = total = beyond = 0
    share = largest = 0.0
    for key, array in want.items():
        if array.dtype.kind != "f":
            unlike, total = unlike + int((got[key] != array).sum()), total + array.size
        elif array.size:
            error, limit = (
                np.abs(got[key].astype(np.float64) - array.astype(np.float64)),
                bounds[key].limit(array),
            )
            share, largest = (
                max(share, float(error.max() / max(limit, 1e-30))),
                max(largest, float(error.max())),
            )
            beyond += int((error > limit).sum())
    parts = [f"{unlike} of {total} integers"] if total else []
    if beyond:
        return ", ".join([*parts, f"{beyond} values beyond the bound by up to {largest:.2g}"])
    return ", ".join([*parts, *([f"{share:.2g} of the bound"] if share or not total else [])])


def _checked_row(job: tuple[Case, str]) -> tuple[object, ...]:
    try:
        return row(*job)
    except (ParedError, AssertionError, ValueError, RuntimeError) as err:
        return (job[0].name, job[1], *[f"failed: {type(err).__name__}: {str(err)[:120]}"] * 2, *["-"] * 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, compare and write the page; a row each, also for what is refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--page", type=Path, default=Path("docs/results/gpu_models.md"))
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args(arguments)
    page = Page(options.page, "Models compiled for GPUs", __doc__ or "", HEADINGS)
    jobs = [(case, kind) for case in cases(options.names) for kind in options.precision or PRECISIONS]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for cells in pool.map(_checked_row, jobs):
            page.add(*cells)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
