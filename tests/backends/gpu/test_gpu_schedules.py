"""What schedules compute when all their threads run: integers to the bit, halves within the derived bound."""

from __future__ import annotations

import shutil

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import ARCH, compiled, emulated, model_of

from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.simulate import SimulatedDevice, images
from pared.backends.reference import derive_bound, evaluate
from pared.compiler.backend import Arrays

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on the PATH")


def run(model: ir.Model, inputs: Arrays, schedule: str) -> Arrays:
    """Return what a model's kernels compute thread by thread; one of them is of this schedule."""
    program, weights, kernels, _ = compiled(model)
    assert schedule in kernels.choices.values(), kernels.choices
    device = SimulatedDevice(ARCH)
    return GpuExecutable(program, weights, images(kernels.sources), device).run(inputs)


def quantized(layer: str, x: str, w: np.ndarray, rng: np.random.Generator) -> ir.Model:
    """Return a quantized layer with bias, a scale per channel and a zero point that pads must hold."""
    m = w.shape[-1] if "Gemm" in layer else w.shape[0]
    axis = 1 if "Gemm" in layer else 0
    scales = rng.uniform(0.001, 0.01, m).astype(np.float32)
    rank = "p" if "Gemm" in layer else "p,q,r"
    return model_of(
        f"""xr = DequantizeLinear(x, xs, xz)
            wr = DequantizeLinear<axis = {axis}>(w, ws)
            br = DequantizeLinear<axis = 0>(b, bs)
            c = {layer}(xr, wr, br)
            y = QuantizeLinear(c, ys, yz)""",
        f"int8[{x}] x", f"int8[n,{rank}] y", w=w, ws=scales, xs=np.float32(0.02), xz=np.int8(-101),
        ys=np.float32(0.3), yz=np.int8(4), b=rng.integers(-3000, 3000, m).astype(np.int32),
        bs=np.float32(0.02) * scales,
    )  # fmt: skip


def in_halves(
    body: str,
    shape: tuple[int, ...],
    weights: tuple[int, ...] | None,
    kind: str,
    *,
    seed: int,
    spread: float = 1,
) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Return layers from x and w to y between casts from and to float32, and random inputs."""
    rng, dtype = np.random.default_rng(seed), ir.DataType[kind.upper()]
    constants = {} if weights is None else {"w": rng.normal(0, spread, weights).astype(dtype.numpy())}
    rank = ",".join("pqrs"[: len(shape) + ("Reshape" in body)])
    whole = f"x = Cast<to = {dtype.value}>(f)\n {body}\n g = Cast<to = 1>(y)"
    model = model_of(whole, f"float[{','.join(map(str, shape))}] f", f"float[{rank}] g", **constants)
    return model, {"f": rng.normal(size=shape).astype(np.float32)}


def stays_in_bound(model: ir.Model, x: Arrays, got: Arrays) -> None:
    want, bound = evaluate(model, x)["g"].astype(np.float64), derive_bound(model, [x], seed=0)["g"]
    furthest = np.abs(got["g"].astype(np.float64) - want).max()
    assert furthest <= bound.atol + bound.rtol_of_max * np.abs(want).max()


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-128, 128, shape).astype(np.int8)


# Input [N, C, H, W], output channels, kernel, stride, pads.
_CONVS = {
    "whole vectors": ((1, 32, 7, 6), 48, 3, 1, 1),
    "half vectors and a stride": ((2, 24, 9, 5), 40, 3, 2, 1),
    "a picture of three channels": ((1, 3, 11, 9), 16, 3, 2, 1),
    "one tap": ((1, 64, 5, 5), 72, 1, 1, 0),
    "channels that divide nothing": ((1, 13, 6, 7), 19, 3, 1, 1),
}


@pytest.mark.parametrize("name", _CONVS)
def test_a_quantized_convolution_on_tensor_cores_is_exact(name: str) -> None:
    shape, m, k, stride, pad = _CONVS[name]
    rng = np.random.default_rng(m)
    layer = f"Conv<pads = [{pad},{pad},{pad},{pad}], strides = [{stride},{stride}]>"
    model = quantized(layer, ",".join(map(str, shape)), integers(rng, m, shape[1], k, k), rng)
    x = {"x": integers(rng, *shape)}
    assert np.array_equal(run(model, x, "tensor-core")["y"], evaluate(model, x)["y"])


@pytest.mark.parametrize(("channels", "k", "stride"), [(32, 3, 1), (6, 5, 2), (20, 3, 2)])
def test_a_quantized_depthwise_convolution_is_exact(channels: int, k: int, stride: int) -> None:
    rng = np.random.default_rng(channels)
    layer = f"Conv<pads = [1,2,1,0], strides = [{stride},{stride}], group = {channels}>"
    model = quantized(layer, f"1,{channels},9,7", integers(rng, channels, 1, k, k), rng)
    x = {"x": integers(rng, 1, channels, 9, 7)}
    assert np.array_equal(run(model, x, "depthwise")["y"], evaluate(model, x)["y"])


@pytest.mark.parametrize(
    ("rows", "k", "n", "schedule"),
    [(1, 640, 10, "gemv"), (5, 77, 33, "gemv"), (1, 2112, 6, "gemv"), (37, 50, 41, "tensor-core")],
)
def test_a_quantized_product_is_exact(rows: int, k: int, n: int, schedule: str) -> None:
    rng = np.random.default_rng(k)
    model = quantized("Gemm", f"{rows},{k}", integers(rng, k, n), rng)
    x = {"x": integers(rng, rows, k)}
    assert np.array_equal(run(model, x, schedule)["y"], evaluate(model, x)["y"])


# Body, shape of x, shape of w, schedule.
_HALVES = {
    "convolution": ("y = Conv<pads = [1,1,1,1]>(x, w)", (1, 16, 7, 6), (24, 16, 3, 3), "tensor-core"),
    "depthwise": (
        "y = Conv<pads = [1,1,1,1], group = 16>(x, w)", (1, 16, 7, 6), (16, 1, 3, 3), "depthwise"
    ),
    "product": ("y = MatMul(x, w)", (33, 70), (70, 24), "tensor-core"),
    "batches": ("t = Transpose<perm = [0,2,1]>(x)\n y = MatMul(x, t)", (2, 20, 40), None, "tensor-core"),
    "few rows": ("y = MatMul(x, w)", (2, 264), (264, 24), "gemv"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", _HALVES)
def test_halves_stay_in_their_bound(name: str, kind: str) -> None:
    if kind == "bfloat16" and name not in ("product", "few rows"):
        pytest.skip("the same way as float16; opset 21 has no Conv of bfloat16")
    body, shape, weights, schedule = _HALVES[name]
    model, x = in_halves(body, shape, weights, kind, seed=len(name))
    stays_in_bound(model, x, run(model, x, schedule))


def test_a_residual_and_its_rounding_are_in_the_kernel_of_the_convolution() -> None:
    """One launch: sums, requantization, the other branch, activation."""
    rng = np.random.default_rng(5)
    w = integers(rng, 16, 16, 3, 3)
    model = model_of(
        """xr = DequantizeLinear(x, s, z)
           wr = DequantizeLinear<axis = 0>(w, ws)
           c = Conv<pads = [1,1,1,1]>(xr, wr)
           q = QuantizeLinear(c, s, z)
           d = DequantizeLinear(q, s, z)
           a = Add(d, xr)
           r = Relu(a)
           y = QuantizeLinear(r, s, z)""",
        "int8[1,16,6,6] x", "int8[1,16,6,6] y", w=w, ws=np.full(16, 0.002, np.float32),
        s=np.float32(0.05), z=np.int8(-7),
    )  # fmt: skip
    x = {"x": integers(rng, 1, 16, 6, 6)}
    assert np.array_equal(run(model, x, "tensor-core")["y"], evaluate(model, x)["y"])
    program, _, kernels, _ = compiled(model)
    convolutions = [launch for launch in program.launches if "conv" in launch.kernel]
    assert len(convolutions) == 1
    assert len(program.launches) <= 3  # beside it, the layouts of input and output change
    assert list(kernels.choices.values()).count("tensor-core") == 1


def test_a_reshape_between_layers_is_no_kernel_and_one_at_the_end_is() -> None:
    body = "a = Relu(x)\n s = Constant<value_ints = [4,6]>()\n b = Reshape(a, s)\n y = Softmax(b)"
    end = body + "\n t = Constant<value_ints = [24]>()\n z = Reshape(y, t)"
    x = {"x": np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)}
    for text, output, launches in ((body, "float[4,6] y", 2), (end, "float[24] z", 3)):
        model = model_of(text, "float[2,12] x", output)
        program, *_ = compiled(model)
        assert len(program.launches) == launches
        (name,) = (value.name for value in model.graph.outputs)
        got, want = emulated(model).run(x)[name], evaluate(model, x)[name]
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-6


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_step_of_a_cell_stays_in_its_bound(op: str) -> None:
    """Units and depths that fill neither blocks nor warps."""
    rng, gates, units = np.random.default_rng(len(op)), {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 38
    model = model_of(
        f"y, h = {op}<hidden_size = {units}>(x, w, r, b)", "float[2,2,5] x", f"float[2,1,2,{units}] y",
        w=rng.normal(size=(1, gates * units, 5)).astype(np.float32),
        r=(rng.normal(size=(1, gates * units, units)) / 6).astype(np.float32),
        b=rng.normal(size=(1, 2 * gates * units)).astype(np.float32),
    )  # fmt: skip
    x = {"x": rng.normal(size=(2, 2, 5)).astype(np.float32)}
    want, bound = evaluate(model, x)["y"], derive_bound(model, [x], seed=0)["y"]
    assert np.abs(run(model, x, "recurrent")["y"] - want).max() <= bound.limit(want)


# Behind a convolution: read twice, joined with what is computed from another input, two joins in a row.
_BEHIND = {
    "x * sigmoid(x)": "s = Sigmoid(c)\n y = Mul(c, s)",
    "a branch of its own": "e = Exp(o)\n r = Relu(e)\n y = Add(c, r)",
    "two branches": "t = Tanh(o)\n a = Add(c, t)\n s = Sigmoid(o)\n y = Mul(a, s)",
}


@pytest.mark.parametrize("name", _BEHIND)
def test_what_stands_behind_a_convolution_is_in_its_kernel(name: str) -> None:
    rng = np.random.default_rng(len(name))
    w = rng.normal(size=(24, 16, 3, 3)).astype(np.float16)
    body = f"x = Cast<to = 10>(f)\n o = Cast<to = 10>(g)\n c = Conv<pads = [1,1,1,1]>(x, w)\n {_BEHIND[name]}"
    inputs = "float[1,16,6,6] f, float[1,24,6,6] g" if "(o)" in _BEHIND[name] else "float[1,16,6,6] f"
    body = body if "(o)" in _BEHIND[name] else body.replace("o = Cast<to = 10>(g)\n", "")
    model = model_of(f"{body}\n z = Cast<to = 1>(y)", inputs, "float[1,24,6,6] z", w=w)
    x = {"f": rng.normal(size=(1, 16, 6, 6)).astype(np.float32)}
    if "(o)" in _BEHIND[name]:
        x["g"] = rng.normal(size=(1, 24, 6, 6)).astype(np.float32)
    want, bound = evaluate(model, x)["z"], derive_bound(model, [x], seed=0)["z"]
    assert np.abs(run(model, x, "tensor-core")["z"] - want).max() <= bound.limit(want)
