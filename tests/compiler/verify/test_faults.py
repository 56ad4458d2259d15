"""Small faults in an int8 payload must fail, whatever quantizers may do at ties."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import pared
from pared.compiler.artifact.manifest import Manifest

Arrays = dict[str, np.ndarray]
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def compiled_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "out"
    pared.compile(
        EXAMPLES / "models" / "digits_cnn.onnx",
        precision="int8",
        calibration=EXAMPLES / "data" / "digits_calibration.npz",
        output=folder,
        force=True,
        engine="ort",
    )
    return folder


@pytest.fixture
def artifact(compiled_digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled_digits, tmp_path / "artifact"))


def first_weights(model: onnx.ModelProto, arrays: Arrays) -> onnx.NodeProto:
    """Return the DequantizeLinear of the first layer's weights."""
    return next(
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and arrays.get(node.input[0], np.zeros(1)).ndim == 4
    )


def one_weight_flipped(model: onnx.ModelProto, arrays: Arrays) -> None:
    flat = arrays[first_weights(model, arrays).input[0]].reshape(-1)
    index = int(np.abs(flat.astype(int)).argmax())
    flat[index] = -flat[index]


def first_data(model: onnx.ModelProto, arrays: Arrays) -> onnx.NodeProto:
    """Return the first DequantizeLinear of something that is no weight."""
    nodes = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    return next(n for n in nodes if n.input[0] not in arrays)


def scale_off_by_a_percent(model: onnx.ModelProto, arrays: Arrays) -> None:
    """Dequantize the model's input with another scale than it was quantized with."""
    node = first_data(model, arrays)
    arrays["other_scale"] = arrays[node.input[1]] * np.float32(1.01)
    node.input[1] = "other_scale"


def zero_point_off_by_one(model: onnx.ModelProto, arrays: Arrays) -> None:
    """Dequantize the model's input with another zero point than it was quantized with."""
    node = first_data(model, arrays)
    arrays["other_zero"] = arrays[node.input[2]] + arrays[node.input[2]].dtype.type(1)
    node.input[2] = "other_zero"


def channel_dropped(model: onnx.ModelProto, arrays: Arrays) -> None:
    weights = arrays[first_weights(model, arrays).input[0]]
    weights[int(np.abs(weights.astype(int)).sum(axis=(1, 2, 3)).argmax())] = 0


def break_payload(artifact: Path, fault: Callable[[onnx.ModelProto, Arrays], None]) -> None:
    """Apply a fault to the payload and make the manifest's hashes fit again."""
    model = onnx.load(artifact / "model.onnx")
    arrays = {init.name: numpy_helper.to_array(init).copy() for init in model.graph.initializer}
    fault(model, arrays)
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    onnx.save(model, artifact / "model.onnx")
    raw = json.loads((artifact / "manifest.json").read_text())
    content = (artifact / "model.onnx").read_bytes()
    raw["files"]["model.onnx"].update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    (artifact / "manifest.json").write_text(Manifest.model_validate(raw).text())


def nothing(model: onnx.ModelProto, arrays: Arrays) -> None:
    """Change nothing."""


def golden_passes(artifact: Path) -> bool:
    report = pared.verify(artifact, layers=False)
    return all(check.passed for check in report.outputs if check.against == "golden")


@pytest.mark.parametrize(
    "fault", [one_weight_flipped, scale_off_by_a_percent, zero_point_off_by_one, channel_dropped]
)
def test_a_fault_fails(artifact, fault) -> None:
    break_payload(artifact, fault)
    assert not golden_passes(artifact)


def test_a_payload_written_again_without_a_fault_passes(artifact) -> None:
    break_payload(artifact, nothing)
    assert golden_passes(artifact)
