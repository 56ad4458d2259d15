"""Every shared model compiled at -O2 in float, and onnx's nine architectures in float and int8.

    PARED_DATA=… python -m pared.bench.compile_models [docs/results]

Agreement: outputs of the artifact on its engine against the reference semantics of the *imported original*,
as a share of the bound derived for the original (1 would be the limit). Inputs: seeded random arrays, which
suit the architecture, not the task. For int8 the comparison is with the reference semantics of the compiled
graph, as `pared verify` does it; the random weights of the architectures say nothing about accuracy.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

from .. import compile as compile_model
from .. import load
from ..backends.reference import evaluate
from ..backends.reference.bound import derive_bound
from ..compiler.artifact.read import Artifact
from ..compiler.differences import largest_difference
from ..compiler.errors import ParedError
from ..compiler.ir.importer import import_model
from ..compiler.verify import verify_artifact
from .data import found_folder
from .light_models import NAMES, light_model
from .results import Page

HEADINGS = ("model", "form", "nodes", "bytes", "of the bound", "largest difference", "what was done", "s")
INT8_HEADINGS = ("architecture", "precision", "bytes", "time / float", "of the bound", "verify", "s")


def form(path: Path) -> str:
    """Return how the file is quantized."""
    ops = Counter(node.op_type for node in onnx.load(path).graph.node)
    for name, mark in (("MultiThreshold", "MultiThreshold"), ("BipolarQuant", "QONNX"), ("Quant", "QONNX")):
        if ops[name]:
            return mark
    return "QDQ" if ops["DequantizeLinear"] else "float"


def done(artifact: Artifact) -> str:
    """Return the passes that changed something, with counts."""
    import json

    passes = json.loads(artifact.read_text("reports/compile.json"))["passes"]
    counts: Counter[str] = Counter()
    for record in passes:
        counts[record["text"].split("{")[0]] += record["changed"]
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


def agreement(path: Path, artifact: Artifact) -> tuple[float, float]:
    """Return the largest share of the bound and the largest difference, against the imported original."""
    original = import_model(path).model
    inputs = [golden[0] for golden in artifact.golden()][:1]
    bounds = derive_bound(original, inputs, seed=0)
    worst, largest = 0.0, 0.0
    with load(artifact.path) as model:
        for feed in inputs:
            got = model.run(feed)
            for name, want in evaluate(original, feed).items():
                difference = largest_difference(got[name], want)
                limit = bounds[name].limit(want)
                worst = max(worst, difference / limit if limit else np.inf * bool(difference))
                largest = max(largest, difference)
    return worst, largest


def shared_models(page: Page, folder: Path) -> None:
    """One row per file."""
    for path in sorted(folder.glob("*.onnx")):
        start = time.perf_counter()
        before = len(onnx.load(path).graph.node)
        with tempfile.TemporaryDirectory() as out:
            try:
                artifact = compile_model(path, output=Path(out) / "a")
            except ParedError as err:
                page.add(path.stem, form(path), before, path.stat().st_size, "-", "-", f"refused: {err}", "")
                continue
            seconds = time.perf_counter() - start
            worst, largest = agreement(path, artifact)
            nodes = f"{before} -> {len(onnx.load(artifact.path / 'model.onnx').graph.node)}"
            size = f"{path.stat().st_size} -> {artifact.payload_bytes()}"
            page.add(
                path.stem,
                form(path),
                nodes,
                size,
                f"{worst:.2g}",
                f"{largest:.2g}",
                done(artifact),
                f"{seconds:.1f}",
            )  # fmt: skip


def architectures(page: Page) -> None:
    """Two rows per architecture."""
    import json

    rng = np.random.default_rng(1)
    images = rng.standard_normal((8, 3, 224, 224)).astype(np.float32)
    for name in NAMES:
        model = light_model(name)
        feed = {model.graph.input[0].name: images}
        for precision in (None, "int8"):
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as out:
                artifact = compile_model(
                    model, precision=precision, calibration=feed, output=Path(out) / "a", force=True
                )
                seconds = time.perf_counter() - start
                candidates = json.loads(artifact.read_text("reports/measured.json"))["candidates"]
                chosen = next(c for c in candidates if c["chosen"])
                ratio = chosen["ratio_to_float"]["value"] if chosen["ratio_to_float"] else 1.0
                passed = verify_artifact(artifact.path, reference_model=None).passed
                page.add(
                    name, precision or "float", artifact.payload_bytes(), f"{ratio:.2f}",
                    f"{chosen['bound_used']:.2g}", "passed" if passed else "FAILED", f"{seconds:.1f}",
                )  # fmt: skip


def main() -> None:
    """Write both pages."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/results")
    data = found_folder()
    about = __doc__ or ""
    if data is None:
        print("PARED_DATA is not set: the shared models are left out", file=sys.stderr)
    else:
        page = Page(folder / "models_float.md", "Every shared model in float at -O2", about, HEADINGS)
        shared_models(page, data / "models")
    architectures(Page(folder / "architectures.md", "The nine architectures of onnx", about, INT8_HEADINGS))


if __name__ == "__main__":
    main()
