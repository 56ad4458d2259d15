"""A small artifact to measure."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import pared

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n,4] x) => (float[n,4] y) { y = Gemm(x, w) }"""


@dataclass(frozen=True)
class Case:
    model: Path
    artifact: Path
    x: np.ndarray


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("bench")
    model = ir.from_onnx_text(TEXT)
    weight = model.graph[0].inputs[1]
    assert weight is not None
    weight.const_value = ir.tensor(np.eye(4, dtype=np.float32), name="w")
    model.graph.register_initializer(weight)
    ir.save(model, folder / "m.onnx")
    pared.compile(folder / "m.onnx", output=folder / "out", engine="ort")
    return Case(folder / "m.onnx", folder / "out", np.arange(20, dtype=np.float32).reshape(5, 4))


@pytest.fixture
def case(compiled: Case, tmp_path: Path) -> Case:
    """A copy that a test may damage."""
    model = shutil.copy(compiled.model, tmp_path / "m.onnx")
    return Case(Path(model), Path(shutil.copytree(compiled.artifact, tmp_path / "out")), compiled.x)
