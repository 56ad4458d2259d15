"""What GPU programs compute, on the emulated device: integers to the bit, floats within the derived bound."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import emulated, model_of, quantized_conv

from pared.backends.reference import derive_bound, evaluate
from pared.compiler.errors import UnsupportedOp


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("kind", "zero"), [("uint8", 0), ("uint8", 131), ("int8", -7)])
@pytest.mark.parametrize("group", [1, 4])
def test_a_quantized_convolution_is_exact(seed: int, kind: str, zero: int, group: int) -> None:
    rng = np.random.default_rng(seed)
    auto_pad = "SAME_UPPER" if seed % 2 else "NOTSET"
    model = quantized_conv(rng, zero, group=group, kind=kind, auto_pad=auto_pad)
    limits = np.iinfo(kind)
    x = {"x": rng.integers(limits.min, limits.max + 1, (1, 4, 9, 7)).astype(kind)}
    assert np.array_equal(emulated(model).run(x)["y"], evaluate(model, x)["y"])


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_quantized_product_is_exact(transposed: int) -> None:
    rng = np.random.default_rng(transposed)
    w = rng.integers(-127, 128, (10, 24) if transposed else (24, 10)).astype(np.int8)
    model = model_of(
        f"""xr = DequantizeLinear(x, xs, xz)
            wr = DequantizeLinear(w, ws)
            c = Gemm<transB = {transposed}>(xr, wr, b)
            y = QuantizeLinear(c, ys, yz)""",
        "uint8[N,24] x", "uint8[N,10] y", w=w, b=rng.normal(size=10).astype(np.float32),
        xs=np.float32(0.02), xz=np.uint8(7), ws=np.float32(0.01), ys=np.float32(0.05), yz=np.uint8(120),
    )  # fmt: skip
    x = {"x": rng.integers(0, 256, (5, 24)).astype(np.uint8)}
    assert np.array_equal(emulated(model).run(x)["y"], evaluate(model, x)["y"])


def test_a_residual_sum_of_quantized_tensors_is_exact() -> None:
    """Every step rounds once: a fused multiply-add would not."""
    rng = np.random.default_rng(0)
    model = model_of(
        """ar = DequantizeLinear(a, s1, z1)
           br = DequantizeLinear(b, s2, z2)
           c = Add(ar, br)
           y = QuantizeLinear(c, s3, z3)""",
        "int8[1,4,50,50] a, int8[1,4,50,50] b", "int8[1,4,50,50] y",
        s1=np.float32(0.0123), s2=np.float32(0.0377), s3=np.float32(0.041),
        z1=np.int8(3), z2=np.int8(-8), z3=np.int8(1),
    )  # fmt: skip
    x = {name: rng.integers(-128, 128, (1, 4, 50, 50)).astype(np.int8) for name in "ab"}
    assert np.array_equal(emulated(model).run(x)["y"], evaluate(model, x)["y"])


_FLOATS = {
    "conv": ("y = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w, b)", "float[1,6,p,q] y"),
    "conv behind a transpose": ("t = Transpose<perm = [0,1,3,2]>(x)\n y = Conv(t, w, b)", "float[1,6,p,q] y"),
    "sum of two layouts": ("c = Conv<pads = [1,1,1,1]>(x, w4, b4)\n y = Add(c, x)", "float[1,4,8,6] y"),
    "product with a row per channel": ("c = Conv(x, w, b)\n y = Mul(c, r)", "float[1,6,p,q] y"),
    "concat of images": (
        "c = Conv<pads = [1,1,1,1]>(x, w4, b4)\n d = Relu(c)\n y = Concat<axis = 1>(c, d)", "float[1,8,8,6] y"
    ),
    "concat of other axes": (
        "c = Conv<pads = [1,1,1,1]>(x, w4, b4)\n d = Relu(c)\n y = Concat<axis = 2>(c, d)",
        "float[1,4,16,6] y",
    ),
    "flatten of an image": ("c = Conv(x, w, b)\n f = Flatten(c)\n y = Softmax(f)", "float[1,k] y"),
    "average pool": ("y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(x)", "float[1,4,8,6] y"),
    "average pool with pads": (
        "y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1>(x)",
        "float[1,4,8,6] y",
    ),
    "max pool": ('y = MaxPool<kernel_shape = [2,2], strides = [2,2], auto_pad = "SAME_UPPER">(x)',
                 "float[1,4,4,3] y"),
    "global average": ("y = GlobalAveragePool(x)", "float[1,4,1,1] y"),
    "hard swish": ("y = HardSwish(x)", "float[1,4,8,6] y"),
    "softplus": ("y = Softplus(x)", "float[1,4,8,6] y"),
    "gelu": ("y = Gelu(x)", "float[1,4,8,6] y"),
    "layer normalization": ("y = LayerNormalization(x, g, h)", "float[1,4,8,6] y"),
    "slice backwards": ("y = Slice(x, start, end, axes, steps)", "float[1,4,3,6] y"),
    "upsampling": (
        'y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
        "(x, , scales)", "float[1,4,16,12] y"
    ),
    "norm": ("y = ReduceL2<keepdims = 0>(x, axes)", "float[1,4,6] y"),
}  # fmt: skip


@pytest.mark.parametrize("name", _FLOATS)
def test_a_float_operator_stays_in_its_bound(name: str) -> None:
    body, output = _FLOATS[name]
    rng = np.random.default_rng(len(name))
    constants = {
        "w": rng.normal(size=(6, 4, 3, 3)), "b": rng.normal(size=6), "w4": rng.normal(size=(4, 4, 3, 3)),
        "b4": rng.normal(size=4), "r": rng.normal(size=(6, 1, 1)), "g": rng.normal(size=6),
        "h": rng.normal(size=6), "scales": np.array([1, 1, 2, 2]),
    }  # fmt: skip
    whole = {"start": [-1], "end": [-20], "axes": [2], "steps": [-3]}
    given = {k: v.astype(np.float32) for k, v in constants.items()}
    given |= {k: np.array(v, np.int64) for k, v in whole.items()}
    used = {
        k: v
        for k, v in given.items()
        if f"{k}" in body.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    model = model_of(body, "float[1,4,8,6] x", output, **used)
    x = {"x": rng.normal(size=(1, 4, 8, 6)).astype(np.float32)}
    want, bound = evaluate(model, x)["y"], derive_bound(model, [x], seed=0)["y"]
    got = emulated(model).run(x)["y"]
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= bound.atol + bound.rtol_of_max * np.abs(want).max()


def test_halves_are_accumulated_in_single() -> None:
    """4096 ones and a product of 2^-12 each: in float16 sums the small terms would vanish."""
    w = np.full((4096, 1), 2.0**-12, np.float16)
    w[0] = 1.0
    model = model_of("y = MatMul(x, w)", "float16[1,4096] x", "float16[1,1] y", w=w)
    got = emulated(model).run({"x": np.ones((1, 4096), np.float16)})["y"]
    assert got[0, 0] == np.float16(1.0 + 4095 / 4096)


def test_an_operator_without_a_kernel_is_refused_with_its_name() -> None:
    model = model_of("y = Det(x)", "float[3,3] x", "float y")
    model.graph[0].name = "volume"
    with pytest.raises(UnsupportedOp, match="volume"):
        emulated(model)


def test_open_sizes_other_than_the_batch_are_refused() -> None:
    with pytest.raises(UnsupportedOp, match="open sizes"):
        emulated(model_of("y = Relu(x)", "float[1,n] x", "float[1,n] y"))


def test_samples_of_a_batch_run_one_by_one_also_none_at_all() -> None:
    device = emulated(model_of("y = Relu(x)", "float[N,3] x", "float[N,3] y"))
    x = np.arange(-6, 6, dtype=np.float32).reshape(4, 3)
    assert np.array_equal(device.run({"x": x})["y"], np.maximum(x, 0))
    assert device.run({"x": x[:0]})["y"].shape == (0, 3)


def test_an_input_that_is_an_output_is_copied() -> None:
    model = model_of("z = Relu(x)\n y = Identity(x)", "float[2,3] x", "float[2,3] y, float[2,3] z")
    x = {"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}
    got = emulated(model).run(x)
    assert np.array_equal(got["y"], x["x"])
    assert np.array_equal(got["z"], np.maximum(x["x"], 0))


def test_a_value_that_is_two_outputs_is_written_twice() -> None:
    model = model_of("y = Relu(x)\n z = Identity(y)", "float[3] x", "float[3] y, float[3] z")
    got = emulated(model).run({"x": np.array([-1, 2, 3], np.float32)})
    assert got["y"].tolist() == got["z"].tolist() == [0, 2, 3]


def test_an_input_that_no_kernel_reads_is_taken() -> None:
    """`x * 0` of integers is 0 whatever x is: what is generated does not read it."""
    body = "m = Mul(x, z)\n f = Cast<to = 1>(m)\n y = Add(f, w)"
    model = model_of(body, "int64 x, float[3] w", "float[3] y", z=np.array(0))
    got = emulated(model).run({"x": np.array(5), "w": np.float32([1, 2, 3])})["y"]
    assert got.tolist() == [1, 2, 3]
