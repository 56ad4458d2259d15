"""Half floats on the emulated device: within the derived bound of the reference, on random shapes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import emulated, model_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pared.backends.reference import derive_bound, evaluate
from pared.compiler.driver import compile_model
from pared.compiler.manager import Manager
from pared.compiler.pass_api import Context
from pared.compiler.verify import verify_artifact
from pared.passes.half.half import Half

KINDS = ("float16", "bfloat16")
# Each example compiles a model for this CPU.
# A failure is not made smaller: that would take minutes.
few = settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate]
)


def check(
    body: str, inputs: str, outputs: str, x: dict[str, np.ndarray], kind: str, **constants: object
) -> None:
    """Compare the model in half floats on the device with the reference; something must have become half."""
    model = model_of(body, inputs, outputs, **constants)  # type: ignore[arg-type]
    result = Manager(verify_each=True).run(model, [Half(type=kind)], Context())  # type: ignore[arg-type]
    assert result.records[0].stats.changed
    want = evaluate(result.model, x)
    bounds, got = derive_bound(result.model, [x], seed=0), emulated(result.model).run(x)
    for name, array in want.items():
        assert bounds[name].accepts(got[name], array), bounds[name]


@pytest.mark.parametrize("kind", KINDS)
@given(
    channels=st.integers(1, 9), filters=st.integers(1, 9), size=st.integers(3, 12), stride=st.integers(1, 2),
    seed=st.integers(0, 2**16),
)  # fmt: skip
@few
def test_convolutions(kind: str, channels: int, filters: int, size: int, stride: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(filters, channels, 3, 3)).astype(np.float32)
    x = {"x": rng.normal(size=(1, channels, size, size)).astype(np.float32)}
    body = f"""c = Conv<pads = [1,1,1,1], strides = [{stride},{stride}]>(x, w, b)
        r = Relu(c)
        s = Sigmoid(r)
        m = Mul(r, s)
        y = GlobalAveragePool(m)"""
    bias = rng.normal(size=filters).astype(np.float32)
    check(body, f"float[1,{channels},{size},{size}] x", f"float[1,{filters},1,1] y", x, kind, w=w, b=bias)


@pytest.mark.parametrize("kind", KINDS)
@given(
    rows=st.integers(1, 9), depth=st.integers(1, 300), columns=st.integers(2, 17), seed=st.integers(0, 2**16)
)
@few
def test_products_and_what_follows(kind: str, rows: int, depth: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    constants = {
        "w": rng.normal(size=(depth, columns)).astype(np.float32),
        "b": rng.normal(size=columns).astype(np.float32),
        "g": rng.normal(size=columns).astype(np.float32),
    }
    body = """p = MatMul(x, w)
        a = Add(p, b)
        n = LayerNormalization(a, g, b)
        e = Gelu(n)
        y = Softmax(e)"""
    x = {"x": rng.normal(size=(rows, depth)).astype(np.float32)}
    check(body, f"float[{rows},{depth}] x", f"float[{rows},{columns}] y", x, kind, **constants)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decomposed_normalization_keeps_its_squares_in_float32(kind: str) -> None:
    rng = np.random.default_rng(0)
    body = """m = ReduceMean(x, a)
        d = Sub(x, m)
        p = Pow(d, two)
        v = ReduceMean(p, a)
        e = Add(v, eps)
        s = Sqrt(e)
        y = Div(d, s)"""
    x = {"x": (600 * rng.normal(size=(4, 33))).astype(np.float32)}
    check(
        body, "float[4,33] x", "float[4,33] y", x, kind,
        a=np.int64([-1]), two=np.float32(2), eps=np.float32(1e-12),
    )  # fmt: skip


def test_an_overflow_is_infinite_as_in_the_reference() -> None:
    x = {"x": np.float32([[600, -600, 1]])}
    model = model_of("y = Mul(x, c)", "float[1,3] x", "float[1,3] y", c=np.float32([600]))
    half = Manager().run(model, [Half()], Context()).model
    want, got = evaluate(half, x)["y"], emulated(half).run(x)["y"]
    assert np.isinf(want).tolist() == [[True, True, False]]
    assert np.array_equal(got, want)


def test_weights_in_blocks_beside_half_floats() -> None:
    rng = np.random.default_rng(0)
    q = rng.integers(-8, 8, (64, 16)).astype(np.int8)
    s = rng.uniform(0.01, 0.1, (2, 16)).astype(np.float32)
    body = "w = DequantizeLinear<axis = 0, block_size = 32>(q, s)\n y = MatMul(x, w)"
    x = {"x": rng.normal(size=(3, 64)).astype(np.float32)}
    check(body, "float[3,64] x", "float[3,16] y", x, "float16", q=q, s=s)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
@pytest.mark.parametrize("precision", ["bf16", "w4a16"])
def test_from_a_model_to_a_verified_artifact(precision: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = model_of(
        "h = Gemm(x, w, b)\n r = Relu(h)\n y = Softmax(r)",
        "float[2,64] x", "float[2,16] y",
        w=rng.normal(size=(64, 16)).astype(np.float32), b=rng.normal(size=16).astype(np.float32),
    )  # fmt: skip
    data = {"x": rng.normal(size=(8, 64)).astype(np.float32)}
    artifact = compile_model(
        model, target="gpu-cuda-sm90", precision=precision, calibration=data, output=tmp_path / "a"
    )
    assert artifact.manifest.choice.precision == precision
    assert verify_artifact(tmp_path / "a").passed
