"""A tiny artifact, made without the compiler: quantized dense layer of two inputs and one output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from pared.compiler.artifact.manifest import (
    BoundRecord,
    CalibrationRecord,
    ChoiceRecord,
    EngineRecord,
    Manifest,
    SignatureRecord,
    SourceRecord,
    TargetRecord,
)
from pared.compiler.artifact.write import ArtifactWriter
from pared.compiler.backend import Port, Signature
from pared.targets import load_target

GRAPH = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 2] x) => (float[N, 1] y)
<float s = {0.5}, uint8 z = {128}, int8[2, 1] w = {100, -27}, float ws = {0.01}, float ys = {0.25}>
{
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear(w, ws)
    m = MatMul(xd, wd)
    yq = QuantizeLinear(m, ys, z)
    y = DequantizeLinear(yq, ys, z)
}"""

INPUTS = [{"x": np.array([[1.0, -2.0]], np.float32)}, {"x": np.array([[0.5, 3.0], [4.0, 0.0]], np.float32)}]
OUTPUTS = [{"y": np.array([[1.5]], np.float32)}, {"y": np.array([[-0.25], [4.0]], np.float32)}]


def payload() -> bytes:
    return onnx.parser.parse_model(GRAPH).SerializeToString(deterministic=True)


def manifest(seed: int = 0) -> Manifest:
    target = load_target("cpu")
    ports = Signature((Port("x", "FLOAT", ("N", 2)),), (Port("y", "FLOAT", ("N", 1)),))
    return Manifest(
        name="tiny",
        signature=SignatureRecord.of(ports),
        target=TargetRecord(name=target.name, digest=target.digest, resolved=target.to_json()),
        engine=EngineRecord(backend="cpu", name="ort"),
        choice=ChoiceRecord(candidate="int8-ort", precision="int8", why="the only candidate"),
        pipeline="canonicalize,quantize{bits=8}",
        recipe={"model": "tiny.onnx", "precision": "int8", "seed": seed},
        source=SourceRecord(path="tiny.onnx", sha256="1" * 64, external={"tiny.data": "2" * 64}),
        calibration=CalibrationRecord(path="calib.npz", digest="3" * 64, samples=2),
        seed=seed,
        bounds={"y": BoundRecord(atol=0.0, rtol_of_max=0.0, how="integers")},
        tools={"pared": "0.1.0", "onnx": "1.23.2"},
    )


def write(out: Path, seed: int = 0) -> Path:
    with ArtifactWriter(out) as writer:
        writer.add("model.onnx", payload())
        writer.add("reports/passes.json", "{}\n")
        writer.add_golden(INPUTS, OUTPUTS)
        return writer.commit(manifest(seed))
