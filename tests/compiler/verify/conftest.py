"""A small trained-looking classifier, compiled to int8 once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import pared

RNG = np.random.default_rng(11)
CLASSES, WIDTH = 5, 16
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n,16] x) => (float[n,5] scores) {
  [fc1] h1 = Gemm(x, w1, b1)
  [act1] r1 = Relu(h1)
  [fc2] h2 = Gemm(r1, w2, b2)
  [act2] r2 = Relu(h2)
  [fc3] scores = Gemm(r2, w3, b3)
}"""


@dataclass(frozen=True)
class Case:
    model: Path
    artifact: Path
    data: dict[str, np.ndarray]


def weights() -> dict[str, np.ndarray]:
    """A random first layer, an identity-like second, prototypes of the classes last."""
    return {
        "w1": RNG.normal(size=(WIDTH, 32)).astype(np.float32) / 4,
        "b1": RNG.normal(size=32).astype(np.float32) / 10,
        "w2": (np.eye(32) + RNG.normal(size=(32, 32)) / 20).astype(np.float32),
        "b2": RNG.normal(size=32).astype(np.float32) / 10,
        "w3": RNG.normal(size=(32, CLASSES)).astype(np.float32) / 4,
        "b3": np.zeros(CLASSES, np.float32),
    }


def save(arrays: dict[str, np.ndarray], path: Path) -> None:
    model = ir.from_onnx_text(TEXT)
    values = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in arrays.items():
        values[name].const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(values[name])
    ir.save(model, path)


def labels_of(path: Path, x: np.ndarray) -> np.ndarray:
    """What the float model says, so that its own accuracy is 100."""
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0]).argmax(axis=1)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("verify")
    save(weights(), folder / "m.onnx")
    x = RNG.normal(size=(200, WIDTH)).astype(np.float32)
    # A file, since bisect looks at the calibration data again.
    np.savez(folder / "c.npz", x=x[:64])
    pared.compile(
        folder / "m.onnx",
        precision="int8",
        calibration=folder / "c.npz",
        output=folder / "out",
        force=True,
        engine="ort",
    )
    return Case(folder / "m.onnx", folder / "out", {"x": x, "labels": labels_of(folder / "m.onnx", x)})


@pytest.fixture
def case(compiled: Case, tmp_path: Path) -> Case:
    """A copy that a test may damage."""
    artifact = shutil.copytree(compiled.artifact, tmp_path / "out")
    return Case(compiled.model, artifact, dict(compiled.data))
