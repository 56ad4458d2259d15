"""Batches at compile time: which sizes are run, on what, and that a wrong row is found."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from pared.backends.reference.bound import Deriver
from pared.compiler.backend import Array, Arrays, Port, Signature
from pared.compiler.driver.batched import MAX_BYTES, MAX_MACS, Checks, checks_of, run_batch
from pared.compiler.driver.oracle import Oracle

SAMPLE = {"x": np.ones((1, 3), np.float32)}


class Doubling:
    """y = 2 x, for batches of 1, 4 and 8."""

    sizes = (1, 4, 8)

    def __init__(self, first: int | str = "n") -> None:
        self.signature = Signature((Port("x", "FLOAT", (first, 3)),), (Port("y", "FLOAT", (first, 3)),))

    def run(self, inputs: Arrays) -> dict[str, Array]:
        return {"y": inputs["x"] * 2}

    def close(self) -> None: ...


def test_every_size_above_one_is_run() -> None:
    assert checks_of(Doubling(), SAMPLE, 1, emulated=True) == Checks((4, 8), ())


def test_a_fixed_first_size_has_no_batches() -> None:
    assert checks_of(Doubling(first=1), SAMPLE, 1, emulated=True) == Checks((), ())


def test_inputs_that_hold_several_samples_are_not_put_together() -> None:
    assert checks_of(Doubling(), {"x": np.ones((2, 3))}, 1, emulated=True) == Checks((), ())


@pytest.mark.parametrize("macs", [MAX_MACS // 7, MAX_MACS // 8])
def test_an_emulated_device_runs_only_what_it_can_in_time(macs: int) -> None:
    fits = 8 * macs <= MAX_MACS
    expected = Checks((4, 8), ()) if fits else Checks((4,), (8,))
    assert checks_of(Doubling(), SAMPLE, macs, emulated=True) == expected
    assert checks_of(Doubling(), SAMPLE, macs, emulated=False) == Checks((4, 8), ())


def test_inputs_beyond_memory_are_left_out_anywhere() -> None:
    sample = {"x": np.broadcast_to(np.zeros(1, np.uint8), (1, MAX_BYTES // 5))}
    assert checks_of(Doubling(), sample, 1, emulated=False) == Checks((4,), (8,))


def test_rows_are_the_samples_in_turn() -> None:
    samples = [{"x": np.full((1, 3), i, np.float32)} for i in range(3)]
    rows = list(run_batch(Doubling(), samples, 4))
    assert [index for index, _ in rows] == [0, 1, 2, 0]
    for index, outputs in rows:
        assert np.array_equal(outputs["y"], np.full((1, 3), 2.0 * index))


def test_a_sample_is_judged_anew_for_a_candidate_and_not_for_its_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again, made = Deriver.again, []
    monkeypatch.setattr(Deriver, "again", lambda self, inputs: made.append(0) or again(self, inputs))
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[1,3] x) => (float[1,3] y) { y = Add(x, x) }'
    oracle = Oracle({"float": ir.from_onnx_text(text)}, [SAMPLE], seed=0)
    right = {"y": SAMPLE["x"] * 2}
    assert oracle.bound_used("float", [right]) == 0
    assert oracle.bound_used_by("float", 0, {"y": right["y"] + 1}) > 1
    assert len(made) == 1
    oracle.bound_used("float", [right])
    assert len(made) == 2
