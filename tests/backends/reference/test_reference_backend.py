"""The reference as a backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from pared.backends.reference.backend import ReferenceBackend, has_kernel
from pared.compiler.errors import ArtifactError, MissingTool
from pared.compiler.pass_api import Context
from pared.compiler.registry import BACKENDS
from pared.compiler.target import Target

MODEL = ir.from_onnx_text(
    """<ir_version: 10, opset_import: ["" : 21, "qonnx.custom_op.general" : 1]>
    g (float[2] x) => (float[2] y) <float s = {0.5}> { y = qonnx.custom_op.general.BipolarQuant(x, s) }"""
)


@pytest.fixture
def target() -> Target:
    from pared.targets import load_target

    return load_target("cpu")


def test_the_registry_knows_it_by_its_name() -> None:
    assert BACKENDS["reference"]().name == ReferenceBackend.name == "reference"


def test_a_lowered_model_with_own_operators_runs_after_loading(tmp_path: Path, target: Target) -> None:
    backend = ReferenceBackend()
    payload = backend.lower(MODEL, target, "reference", Context())
    payload.move_to(tmp_path)
    executable = backend.load(tmp_path, "reference", payload.options, None)
    assert [port.name for port in executable.signature.inputs] == ["x"]
    got = executable.run({"x": np.float32([-3, 3])})["y"]
    np.testing.assert_array_equal(got, np.float32([-0.5, 0.5]))
    executable.close()
    with pytest.raises(ArtifactError):
        executable.run({"x": np.float32([-3, 3])})


def test_another_engine_is_refused(tmp_path: Path, target: Target) -> None:
    with pytest.raises(MissingTool):
        ReferenceBackend().lower(MODEL, target, "ort", Context())


@pytest.mark.parametrize(
    ("domain", "op", "known"),
    [
        ("", "Conv", True),
        ("", "Gelu", True),  # a function
        ("", "GroupNormalization", True),  # a function that depends on types
        ("qonnx.custom_op.general", "Quant", True),
        ("", "NoSuchOp", False),
        ("com.microsoft", "Gelu", False),
    ],
)
def test_supports_what_has_a_kernel_or_a_definition(
    target: Target, domain: str, op: str, known: bool
) -> None:
    assert has_kernel(domain, op) is known
    verdict = ReferenceBackend().supports(ir.Node(domain, op, []), target)
    assert verdict.ok is known
    assert known or op in verdict.reason
