"""Precisions with half floats: what they stand for on which target, and bfloat16 where no engine has it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from pared.backends.reference import evaluate
from pared.compiler.driver.precision import (
    Precision,
    check_halves,
    default_pipeline,
    parse_precision,
)
from pared.compiler.errors import PipelineError, TargetError
from pared.compiler.ir.importer import import_model
from pared.compiler.ort import make_session, run_session
from pared.passes.half.half import Half
from pared.passes.quantize.quantize import Quantize
from pared.targets import load_target

BOTH = ("float16", "bfloat16")


@pytest.mark.parametrize(
    ("text", "halves", "want"),
    [
        ("fp16", (), Precision(16, None, half="float16")),
        ("bf16", (), Precision(16, None, half="bfloat16")),
        ("w4a16", BOTH, Precision(4, None, half="float16")),
        ("w8a16", BOTH, Precision(8, None, half="float16")),
        ("w4abf16", (), Precision(4, None, half="bfloat16")),
        ("w4a16", (), Precision(4, 16)),
        ("w16a16", BOTH, Precision(16, 16)),
        ("w4a8", BOTH, Precision(4, 8)),
    ],
)
def test_activations_of_16_bits_are_half_floats_where_the_target_has_them(
    text: str, halves: tuple[str, ...], want: Precision
) -> None:
    assert parse_precision(text, halves) == want


def test_half_floats_need_no_calibration_data() -> None:
    for text in ("fp16", "bf16", "w4a16"):
        precision = parse_precision(text, BOTH)
        assert precision is not None
        assert not precision.needs_calibration


def test_weights_wider_than_8_bits_beside_half_floats_are_refused() -> None:
    with pytest.raises(PipelineError, match="outside 1-8"):
        parse_precision("w9abf16")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("fp16", "half"),
        ("bf16", "half{type=bfloat16}"),
        ("w4a16", "quantize{bits=4 act=none weights=block}"),
        ("w8a16", "quantize{act=none}"),
    ],
)
def test_pipelines(text: str, want: str) -> None:
    steps = default_pipeline(parse_precision(text, BOTH), 2).split(",")
    assert want in steps
    assert any(step.startswith("half") for step in steps)
    assert any(step.startswith("quantize") for step in steps) == text.startswith("w")


@pytest.mark.parametrize("target", ["gpu-cuda-sm80", "gpu-cuda-sm89", "gpu-cuda-sm90"])
@pytest.mark.parametrize("kind", BOTH)
def test_gpus_have_half_floats(target: str, kind: str) -> None:
    check_halves([Half(type=kind)], load_target(target))  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["cpu", "cpu-x86-avx2", "fpga-ecp5-85k", "event-cpu"])
def test_other_targets_refuse_them_and_name_those_that_do_not(target: str) -> None:
    with pytest.raises(TargetError) as caught:
        check_halves([Quantize(), Half()], load_target(target))
    assert caught.value.reason == "half-target"
    assert "gpu-cuda-sm90" in caught.value.next_step


def test_a_pipeline_without_half_floats_goes_everywhere() -> None:
    check_halves([Quantize()], load_target("cpu"))


def test_bfloat16_runs_in_onnxruntime_with_the_roundings_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    text = """<ir_version: 10, opset_import: ["" : 22]>
        g (float[1,2,5,5] x, bfloat16[3,2,3,3] w) => (float[1,3,1,1] y) {
            s = Cast<to: int = 16>(x) c = Conv(s, w) r = Relu(c) a = GlobalAveragePool(r)
            y = Cast<to: int = 1>(a) }"""
    model = ir.from_onnx_text(text)
    weight = model.graph.inputs.pop(1)
    weight.const_value = ir.tensor(rng.normal(size=(3, 2, 3, 3)).astype(ml_dtypes.bfloat16), name="w")
    model.graph.register_initializer(weight)
    model = import_model(ir.to_proto(model)).model
    x = {"x": rng.normal(size=(1, 2, 5, 5)).astype(np.float32)}
    session = make_session(model, optimize="none", extra_outputs=["c"])
    got, want = run_session(session, x), evaluate(model, x, ["c", "y"])
    assert got["c"].dtype == np.float32
    assert np.array_equal(got["c"], want["c"].astype(np.float32))
    assert np.array_equal(got["y"], want["y"])
