"""Random graphs thread by thread: a sample of what bench/gpu/random_check.py runs."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from pared.bench.gpu import random_check
from pared.bench.gpu.random_graphs import KINDS, random_graph
from pared.compiler.backend import Array, Arrays

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on the PATH")


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_random_graphs_compute_what_the_reference_does(kind: str) -> None:
    total, wrong = random_check.run(kind, range(8))
    assert not wrong
    assert total["kernels"] > 8


def test_halves_are_handed_over_between_threads() -> None:
    assert not random_check.run("float16", [40])[1]  # by way of volatile shared memory


def test_a_wrong_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: object, inputs: Arrays) -> dict[str, Array]:
        return {"y": reference(model, inputs)["y"] + 1}

    reference = random_check.evaluate
    monkeypatch.setattr(random_check, "evaluate", shifted)
    assert random_check.run("int8", [0])[1] == [0]


def test_a_seed_is_always_the_same_graph() -> None:
    assert random_graph(3, "float32").steps == random_graph(3, "float32").steps
