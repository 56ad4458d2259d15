"""The reference against onnxruntime without optimisations, operator by operator."""

from __future__ import annotations

import pytest
from operator_cases import Case, cases

from pared.backends.reference import evaluate
from pared.compiler.differences import largest_difference
from pared.compiler.ort import make_session, run_session

CASES = cases()


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_reference_agrees_with_onnxruntime(case: Case) -> None:
    model = case.model()
    want = run_session(make_session(model, optimize="none"), case.feeds())
    got = evaluate(model, case.feeds())
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        assert largest_difference(got[name], array) <= case.tolerance(array)
