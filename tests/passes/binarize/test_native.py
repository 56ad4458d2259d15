"""Binarized models in the engine `native`: bits become popcounts, sums of bases int8 or float products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from prune_nets import graph, normal, run, samples

from pared.backends.cpu.native import codegen
from pared.backends.cpu.native.engine import load
from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.cpu.native.lower import lower
from pared.backends.cpu.native.planner import plan
from pared.backends.reference import evaluate


def net() -> ir.Model:
    weights = {"u": normal(0, 16, 3, 3, 3), "v": normal(1, 32, 16, 3, 3), "w": normal(2, 5, 32, 1, 1)}
    body = """
        a = Conv<pads=[1,1,1,1]>(x, u)
        b = Relu(a)
        c = Conv<pads=[1,1,1,1]>(b, v)
        d = Relu(c)
        y = Conv(d, w)
    """
    return graph(body, {"x": (1, 3, 8, 8)}, {"y": (1, 5, 8, 8)}, weights)


def this_isa() -> Isa:
    isa = host_isa()
    if not isinstance(isa, Isa):
        pytest.skip(isa.reason)
    return isa


def families(model: ir.Model) -> list[str]:
    """Return the kernels' families."""
    return [step.family for step in lower(model, this_isa()).steps]


def computed(model: ir.Model, x: np.ndarray, folder: Path) -> np.ndarray:
    """Compile a model and run it once."""
    isa = this_isa()
    program = lower(model, isa)
    for name, content in codegen.build(program, plan(program), isa).items():
        (folder / name).write_bytes(content)
    executable = load(folder, {"isa": " ".join([isa.arch, *isa.features]), "batched": False}, 1)
    try:
        (got,) = executable.run({"x": x}).values()
    finally:
        executable.close()
    return np.asarray(got)


@pytest.mark.parametrize("text", ["bases=1 activations=binary", "bases=3 activations=2bit"])
def test_inputs_of_few_bits_run_as_popcounts(text: str) -> None:
    found = families(run(net(), f"binarize{{{text} act_sqnr=0 ends=keep}}", samples(net(), 8)))
    assert "conv_binary" in found
    assert "unpack_bits" not in found


def test_popcounts_give_what_the_reference_does(tmp_path: Path) -> None:
    model = run(net(), "binarize{bases=2 activations=binary act_sqnr=0 ends=keep}", samples(net(), 8))
    x = normal(7, 1, 3, 8, 8)
    want = evaluate(model, {"x": x})["y"]
    np.testing.assert_allclose(computed(model, x, tmp_path), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_bases_with_float_inputs_run_as_float_products() -> None:
    assert families(run(net(), "binarize{bases=2 ends=keep}", samples(net(), 8))) == families(net())
