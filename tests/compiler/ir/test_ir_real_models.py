"""Every third-party model imports, verifies, and computes in onnxruntime what the original file computes.

Needs the environment variable PARED_DATA: a folder with `models/*.onnx`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from ir_models import Array, run

from pared.compiler.ir.export import signature_of, to_bytes
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.verifier import verify_graph

FOLDER = Path(os.environ.get("PARED_DATA", "")) / "models"
FILES = sorted(FOLDER.glob("*.onnx")) if "PARED_DATA" in os.environ else []
SIZES = {"silero_vad_16k_op15": {"input": [1, 576], "state": [2, 1, 128]}}

pytestmark = pytest.mark.skipif(not FILES, reason="PARED_DATA/models is not there")


def feeds(path: Path) -> dict[str, Array]:
    """Return random inputs; free sizes are 1."""
    rng = np.random.default_rng(0)
    given: dict[str, Array] = {}
    for port in signature_of(import_model(path, SIZES.get(path.stem)).model).inputs:
        shape = [dim if isinstance(dim, int) else 1 for dim in port.shape]
        if port.dtype == "FLOAT":
            given[port.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            given[port.name] = rng.integers(0, 100, shape).astype(port.dtype.lower())
    return given


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_real_model_imports_and_verifies(path: Path) -> None:
    verify_graph(import_model(path).model)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_real_model_computes_what_it_computed(path: Path) -> None:
    inputs = feeds(path)
    try:
        want = run(path.read_bytes(), inputs)
    except (ort.capi.onnxruntime_pybind11_state.Fail, ort.capi.onnxruntime_pybind11_state.InvalidGraph):
        pytest.skip("onnxruntime cannot load the original")
    got = run(to_bytes(import_model(path).model), inputs)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == theirs.dtype
        # The same kernels in the same order; a few ulps of the largest value for a kernel that another
        # alignment of its weights sends down another path.
        scale = float(np.abs(theirs).max(initial=0))
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=16 * 2**-23 * scale)
