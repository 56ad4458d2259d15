"""Mixed plans compute what the reference computes, and artifacts of them are rebuilt to the byte."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")

from mixed_models import CHANNELS, LARGE, SMALL, control_flow, floats, quantized

import pared
from pared.backends.cpu.backend import CpuBackend
from pared.backends.cpu.mixed import engine
from pared.backends.cpu.mixed.divide import divide
from pared.backends.cpu.mixed.draft import Draft
from pared.backends.cpu.mixed.parts import Workshop
from pared.backends.cpu.native import timing
from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.reference import derive_bound, evaluate
from pared.compiler.errors import ArtifactError, DataError, UnsupportedOp
from pared.compiler.ir.importer import import_model
from pared.compiler.pass_api import Context
from pared.compiler.rebuild import rebuild_artifact
from pared.targets import load_target

ISA = host_isa()
pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")
RNG = np.random.default_rng(7)
X = RNG.standard_normal((3, CHANNELS, SMALL, SMALL)).astype(np.float32)


def mixed(model: ir.Model) -> engine.MixedExecutable:
    """Everything that native takes in native, whatever the times."""
    shop = Workshop(Draft(model), ISA, 1)
    division = divide(shop.draft, ISA, least_us=0.0)
    assert {region.backend for region in division.regions} == {"native", "ort"}
    return shop.assemble(division.regions)


@functools.cache
def mixed_floats() -> tuple[ir.Model, engine.MixedExecutable]:
    model = floats()
    return model, mixed(model)


@functools.cache
def mixed_control_flow() -> tuple[ir.Model, engine.MixedExecutable]:
    model = import_model(control_flow()).model
    return model, mixed(model)


def all_native_wins(runs: Mapping[str, timing.Run], *_: object) -> dict[str, float]:
    """Stand in for the stopwatch: the second option is the fastest, whatever else the machine does."""
    return {name: 1.0 + abs(index - 1) for index, name in enumerate(runs)}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    onnx.save(ir.to_proto(floats(size=LARGE)), folder / "m.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "time_runs", all_native_wins)
        pared.compile(folder / "m.onnx", engine="mixed", output=folder / "out")
    return folder / "out"


@pytest.mark.parametrize(
    ("middle", "signed"),
    [
        ("s = Asinh(d)\n m = Add(s, d)", True),
        ("s = Sigmoid(d)\n a = Asinh(s)\n m = Mul(a, d)", False),
    ],
)
def test_integers_of_a_mixed_plan_are_those_of_the_reference(middle, signed):
    model = quantized(1, middle=middle, signed=signed)
    q = RNG.integers(-128 if signed else 0, 128 if signed else 256, (1, CHANNELS, SMALL, SMALL))
    inputs = {"q": q.astype(np.int8 if signed else np.uint8)}
    got = mixed(model).run(inputs)
    for name, want in evaluate(model, inputs).items():
        np.testing.assert_array_equal(got[name], want)


@pytest.mark.parametrize("samples", [1, 3])
def test_floats_are_within_the_bound_for_any_batch(samples):
    model, executable = mixed_floats()
    inputs = {"x": X[:samples]}
    got, want = executable.run(inputs)["y"], evaluate(model, inputs)["y"]
    bound = derive_bound(model, [inputs], seed=0)["y"]
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= bound.atol + bound.rtol_of_max * np.abs(want).max()


@pytest.mark.parametrize("flag", [True, False])
def test_a_body_reads_what_a_native_region_made(flag):
    model, executable = mixed_control_flow()
    inputs = {"x": X[:1], "flag": np.array(flag)}
    got, want = executable.run(inputs)["y"], evaluate(model, inputs)["y"]
    bound = derive_bound(model, [inputs], seed=0)["y"]
    assert np.abs(got - want).max() <= bound.atol + bound.rtol_of_max * np.abs(want).max()


def test_a_rebuild_gives_the_same_bytes(artifact, monkeypatch):
    monkeypatch.delattr(timing, "time_runs")  # nothing may be timed again
    report = rebuild_artifact(artifact)
    assert (report.same, report.differences) == (True, ())


def test_the_artifact_tells_where_every_node_runs_and_what_was_timed(artifact):
    regions = json.loads((artifact / "reports/regions.json").read_text())
    assert {n["op_type"]: n["backend"] for n in regions["nodes"]}["Asinh"] == "ort"
    assert regions["chosen"] in regions["plans"]
    (candidate,) = json.loads((artifact / "reports/measured.json").read_text())["candidates"]
    plans = candidate["timed"][-1]["times"]
    assert {"ort alone", *regions["plans"]} == set(plans)


def test_a_loaded_artifact_runs_and_checks_its_inputs(artifact):
    with pared.load(artifact, threads=2) as model:
        x = np.ones((2, CHANNELS, LARGE, LARGE), np.float32)
        assert model.run({"x": x})["y"].shape == x.shape
        with pytest.raises(DataError, match="'x'"):
            model.run({"x": x[:, :3]})


def test_a_closed_model_does_not_run(artifact):
    options = {"isa": ISA.text}
    model = engine.load(artifact, options, 1)
    model.close()
    with pytest.raises(ArtifactError, match="closed"):
        model.run({"x": X})


def test_a_region_that_is_missing_is_named(artifact, tmp_path):
    for path in artifact.glob("model*"):
        if path.name != "model_0.so":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ArtifactError, match=r"model_0\.so"):
        engine.load(tmp_path, {"isa": ISA.text}, 1)


def test_a_plan_of_another_kind_is_refused(tmp_path):
    (tmp_path / engine.PLAN).write_text("[]")
    with pytest.raises(ArtifactError, match="no plan"):
        engine.load(tmp_path, {"isa": ISA.text}, 1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (floats(middle="m = Relu(r1)"), "mixed-whole"),
        (floats(), "mixed-none"),
        (floats(size=LARGE), "mixed-slower"),
    ],
)
def test_what_is_not_worth_a_plan_is_refused_with_the_reason(model, reason):
    # Replaying nothing takes the first option everywhere: onnxruntime alone.
    with pytest.raises(UnsupportedOp) as caught:
        CpuBackend().lower(model, load_target("cpu"), "mixed", Context(decisions={}))
    assert caught.value.reason == reason
