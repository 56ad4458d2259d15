"""What becomes of models that `native` takes in part or whole: the kept plan beside onnxruntime alone.

PARED_DATA=… python -m pared.bench.cpu.regions [--folder F] [--only NAME…] [--seconds 2]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from ... import compile as compile_model
from ...compiler.artifact.read import Artifact, open_artifact
from ...compiler.backend import Array
from ...compiler.errors import ParedError
from ...compiler.ort_run import OrtExecutable, payload_path
from ...compiler.runtime import load
from ..data import data_folder
from ..meter import compare_latency, pinned
from ..results import Page

ROUNDS = 9
HEADINGS = (
    "model", "nodes", "in native", "kept", "regions", "kept ms", "ORT ms", "ORT / kept", "mixed plans, us",
)  # fmt: skip
ABOUT = """`python -m pared.bench.cpu.regions`. Real models as they were published, batch 1, one pinned
core, one thread. Every model is compiled with the engines `ort`, `native` and `mixed` to choose from, without
OpenVINO; the kept artifact is then timed beside onnxruntime on the whole graph, both through pared's `run`,
{rounds} rounds in turn; medians of wall time, the ratio is the median of the ratios of each round and above 1
where the kept plan is faster. "In native" counts nodes of the optimised graph. "Mixed plans" are the times
that engine `mixed` measured while it compiled: onnxruntime alone against each division, or why
there was none.
"""

# Sizes that the files leave open.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "silero_vad_16k_op15": {"input": (1, 576), "state": (2, 1, 128)},
    "magika_standard_v3_3": {"bytes": (1, 2048)},
    "resnet20_cifar10": {"input": (1, 3, 32, 32)},
}
MODELS = (
    "dtln_1", "dtln_2", "kws_crnn_s", "kws_gru_s", "kws_lstm_s", "magika_standard_v3_3",
    "silero_vad_16k_op15",
    "mp_face_detection_short_range", "mp_face_landmark", "mp_knift_float", "mp_palm_detection_lite",
    "ultraface_rfb_320", "espcn_subpixel_float", "espcn_subpixel_quant", "resnet20_cifar10", "stories260k",
)  # fmt: skip
TARGET = 'name = "bench"\ndescription = "without OpenVINO"\nextends = "cpu"\n{engines}\n'
ENGINES = 'engines = ["ort", "native", "mixed"]'


def compiled(source: Path, folder: Path) -> Artifact:
    """Compile a model, or open what an earlier run left."""
    out = folder / source.stem
    if out.exists():
        return open_artifact(out)
    target = folder / "bench.toml"
    target.write_text(TARGET.format(engines=ENGINES))
    return compile_model(source, str(target), output=out, shapes=SHAPES.get(source.stem))


def measure(source: Path, folder: Path, page: Page, seconds: float) -> None:
    """Compile and time a model and add its row."""
    try:
        artifact = compiled(source, folder)
    except ParedError as err:
        page.remark(f"{source.stem}: {err.message}")
        return
    inputs = _inputs(artifact)
    with load(artifact.path, threads=1) as own:
        alone = OrtExecutable(payload_path(artifact.path), 1)
        runs = {"kept": lambda: own.run(inputs), "ort": lambda: alone.run(inputs)}
        compared = compare_latency(runs, rounds=ROUNDS, iterations=3000, limit=seconds)
    medians = [f"{float(np.median(compared.round_medians_ms[name])):.4g}" for name in ("kept", "ort")]
    same = artifact.manifest.engine.name == "ort"
    ratio = "1 (the same)" if same else f"{compared.ratio('ort', 'kept').median:.2f}"
    page.add(source.stem, *_places(artifact), *medians, ratio, _plans(artifact))


def _places(artifact: Artifact) -> tuple[int, int, str, str]:
    """Return nodes, nodes in native, the kept engine and its regions."""
    report = json.loads(artifact.read_text("reports/compile.json"))
    nodes, engine = sum(report["compiled"]["ops"].values()), artifact.manifest.engine.name
    if engine != "mixed":
        return nodes, nodes if engine == "native" else 0, engine, "1"
    regions = json.loads(artifact.read_text("reports/regions.json"))
    chosen = regions["plans"][regions["chosen"]]
    inside = sum(node["backend"] == "native" for node in regions["nodes"])
    count = Counter(region["engine"] for region in chosen)
    return nodes, inside, engine, f"{count['native']} native, {count['ort']} ort"


def _plans(artifact: Artifact) -> str:
    """Return what mixed measured, or why it did not."""
    candidates = json.loads(artifact.read_text("reports/measured.json"))["candidates"]
    found = next((c for c in candidates if c["name"].endswith("/mixed")), None)
    if found is None:
        return ""
    plans = [choice for choice in found["timed"] if choice["what"].startswith("plan ")]
    if not plans:
        return str(found["verdict"])
    return ", ".join(f"{name} {metric['value']:.4g}" for name, metric in plans[0]["times"].items())


def _inputs(artifact: Artifact) -> dict[str, Array]:
    return dict(artifact.golden()[0][0])


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description="kept plans beside onnxruntime alone")
    parser.add_argument("--seconds", type=float, default=2.0, help="per model")
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--folder", type=Path, help="keeps artifacts here and takes those of an earlier run")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    data = data_folder()
    page = Page(
        given.output / "native_regions.md",
        "Models in regions: native and onnxruntime together",
        ABOUT.format(rounds=ROUNDS),
        HEADINGS,
    )
    with pinned(1), tempfile.TemporaryDirectory(prefix="pared-bench-") as name:
        folder = given.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for model in given.only or MODELS:
            measure(data / "models" / f"{model}.onnx", folder, page, given.seconds)


if __name__ == "__main__":
    main()
