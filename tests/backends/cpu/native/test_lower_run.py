"""Whole models through lowering, planning, code generation and the engine, against the reference."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from test_lower_read import canonical, quantized_conv, samples

from pared.backends.cpu.native import codegen, engine
from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.cpu.native.lower import lower, supported
from pared.backends.cpu.native.planner import plan
from pared.backends.reference import derive_bound, evaluate
from pared.compiler.errors import UnsupportedOp

ISA = host_isa()
pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")


def executable(model, folder: Path):
    program = lower(model, ISA)
    for name, content in codegen.build(program, plan(program), ISA).items():
        (folder / name).write_bytes(content)
    return engine.load(folder, {"isa": " ".join([ISA.arch, *ISA.features])}, 1)


def assert_as_reference(model, inputs, folder):
    """Compare every output: integers to the bit, floats within the derived bound."""
    got = executable(model, folder).run(inputs)
    bounds = derive_bound(model, [inputs], seed=0)
    for name, want in evaluate(model, inputs).items():
        if want.dtype.kind in "iu":
            np.testing.assert_array_equal(got[name], want)
        else:
            limit = bounds[name].atol + bounds[name].rtol_of_max * np.abs(want).max()
            assert np.abs(got[name] - want).max() <= limit


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "digits_resnet"])
@pytest.mark.parametrize("precision", [None, "int8"])
def test_examples_run_as_the_reference(name, precision, tmp_path):
    model = canonical(name, precision, samples(name, 8) if precision else None)
    assert supported(model, ISA) == []
    assert_as_reference(model, samples(name, 1), tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_quantized_layers_are_bit_exact(seed, tmp_path):
    rng = np.random.default_rng(seed)
    channels, outs, group = [(4, 8, 1), (6, 4, 2), (5, 5, 5), (3, 1, 1), (40, 33, 1), (16, 16, 16)][seed % 6]
    signed = bool(seed % 2)
    model = quantized_conv(
        rng, channels=channels, outs=outs, group=group, kernel=1 + seed % 3, stride=1 + seed % 2,
        tail="t = Relu(c)" if seed % 4 == 0 else "", signed=signed,
    )  # fmt: skip
    x = rng.integers(-128 if signed else 0, 128 if signed else 256, (1, channels, 7, 5))
    assert_as_reference(model, {"q": x.astype(np.int8 if signed else np.uint8)}, tmp_path)


def test_the_plan_of_an_example_reaches_the_bound():
    made = plan(lower(canonical("digits_mlp", None, None), ISA))
    assert made.arena_bytes == made.bound_bytes


def test_an_unsupported_model_is_refused_with_the_reason():
    from test_lower_read import parse

    model = parse("y = Erf(x)", outputs="float[1,4,6,6] y")
    assert [reason.split(";")[0] for _, reason in supported(model, ISA)] == ["no rule"]
    with pytest.raises(UnsupportedOp, match="Erf"):
        lower(model, ISA)
