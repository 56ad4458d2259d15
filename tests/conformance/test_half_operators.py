"""Operator by operator: what half floats mean, and onnxruntime's float16 as an independent check."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from operator_cases import Case, cases

from pared.backends.reference import derive_bound, evaluate
from pared.compiler.differences import largest_difference
from pared.compiler.ir.importer import import_model
from pared.compiler.manager import Manager
from pared.compiler.ort import make_session, run_session
from pared.compiler.pass_api import Context
from pared.passes.half.half import Half

Array = npt.NDArray[np.generic]
UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133}
CASES = [c for c in cases() if any(x is not None and x.dtype == np.float32 for x in c.inputs)]


def rounded(inputs: dict[str, Array], dtype: npt.DTypeLike) -> dict[str, Array]:
    """Float inputs that half floats hold exactly."""
    return {n: x.astype(dtype).astype(x.dtype) if x.dtype == np.float32 else x for n, x in inputs.items()}


@pytest.mark.parametrize("kind", UNITS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_operator_on_half_floats_rounds_once(case: Case, kind: str) -> None:
    model = import_model(case.model()).model
    half = Manager(verify_each=True).run(model, [Half(type=kind)], Context()).model  # type: ignore[arg-type]
    inputs = rounded(case.feeds(), np.float16 if kind == "float16" else ml_dtypes.bfloat16)
    want, got = evaluate(model, inputs), evaluate(half, inputs)
    assert list(got) == list(want)
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        if array.dtype != np.float32 or not array.size:
            assert np.array_equal(got[name], array)
            continue
        # The float32 result was rounded itself before: 1.01 for that.
        allowed = 1.01 * UNITS[kind] * np.abs(array.astype(np.float64)) + SMALLEST[kind]
        difference = np.abs(got[name].astype(np.float64) - array)
        assert (np.isnan(array) | (got[name] == array) | (difference <= allowed)).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_onnxruntime_in_float16_is_within_the_derived_bound(case: Case) -> None:
    model = import_model(case.model()).model
    # With half inputs: of an explicit cast to half and its own cast back onnxruntime leaves out both.
    half = Manager().run(model, [Half(io="half")], Context()).model
    feeds = case.feeds()
    inputs = {n: x.astype(np.float16) if x.dtype == np.float32 else x for n, x in feeds.items()}
    want, bounds = evaluate(half, inputs), derive_bound(half, [inputs], seed=0)
    got = run_session(make_session(half), inputs)
    for name, array in want.items():
        assert largest_difference(got[name], array) <= bounds[name].limit(array)
