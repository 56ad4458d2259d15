"""Whole programs on a simulated device: what the generated code computes when threads run it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import ARCH, compiled, model_of, quantized_conv

from pared.backends.gpu.emulate import EmulatedDevice
from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.kernels import Kernels
from pared.backends.gpu.program import Program
from pared.backends.gpu.simulate import SimulatedDevice, SimulationError, images
from pared.backends.reference import derive_bound, evaluate
from pared.compiler.backend import Arrays
from pared.compiler.inputs import DTYPES

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on the PATH")


def on_threads(program: Program, weights: bytes, kernels: Kernels) -> GpuExecutable:
    """Return a program on a device whose threads all run."""
    return GpuExecutable(program, weights, images(kernels.sources), SimulatedDevice(ARCH))


def dense(k: int, n: int) -> ir.Model:
    """Return a quantized product with a row of the batch per sample."""
    rng = np.random.default_rng(k)
    return model_of(
        """xr = DequantizeLinear(x, xs, xz)
           wr = DequantizeLinear(w, ws)
           c = Gemm(xr, wr, b)
           y = QuantizeLinear(c, ys, yz)""",
        f"uint8[4,{k}] x", f"uint8[4,{n}] y", w=rng.integers(-127, 128, (k, n)).astype(np.int8),
        b=rng.normal(size=n).astype(np.float32), xs=np.float32(0.02), xz=np.uint8(7), ws=np.float32(0.01),
        ys=np.float32(0.05), yz=np.uint8(120),
    )  # fmt: skip


def simulated(model: ir.Model) -> GpuExecutable:
    """Return a model on a device whose threads all run."""
    program, weights, kernels, _ = compiled(model)
    return on_threads(program, weights, kernels)


def many_channels(c: int, m: int) -> ir.Model:
    """Return a quantized convolution with channels enough for tensor cores."""
    rng = np.random.default_rng(c)
    return model_of(
        """xr = DequantizeLinear(x, xs, xz)
           wr = DequantizeLinear<axis = 0>(w, ws)
           c = Conv<pads = [1,1,1,1], strides = [2,1]>(xr, wr)
           y = QuantizeLinear(c, ys, yz)""",
        f"int8[1,{c},9,7] x", f"int8[1,{m},p,q] y", w=rng.integers(-127, 128, (m, c, 3, 3)).astype(np.int8),
        ws=rng.uniform(0.001, 0.01, m).astype(np.float32), xs=np.float32(0.02), xz=np.int8(-5),
        ys=np.float32(0.3), yz=np.int8(4),
    )  # fmt: skip


_INTEGERS = {
    "convolution": lambda: quantized_conv(np.random.default_rng(0), 131),
    "depthwise convolution": lambda: quantized_conv(np.random.default_rng(1), -7, group=4, kind="int8"),
    "convolution of whole tiles": lambda: many_channels(32, 48),
    "dense layer": lambda: dense(24, 10),
    "dense layer of whole tiles": lambda: dense(64, 64),
}


@pytest.mark.parametrize("name", _INTEGERS)
def test_integer_layers_are_exact_on_threads(name: str) -> None:
    model = _INTEGERS[name]()
    program, weights, kernels, emulation = compiled(model)
    port = program.inputs[0]
    dtype = DTYPES[port.dtype]
    limits = np.iinfo(dtype)
    x = {port.name: np.random.default_rng(2).integers(limits.min, limits.max + 1, port.shape).astype(dtype)}
    got = on_threads(program, weights, kernels).run(x)["y"]
    assert np.array_equal(got, evaluate(model, x)["y"])
    emulated = GpuExecutable(program, weights, [b"", b""], EmulatedDevice(emulation, ARCH))
    assert np.array_equal(got, emulated.run(x)["y"])


_SHAPES = {"w": (6, 4, 3, 3), "b": (6,), "d": (4, 1, 3, 3), "m": (48, 64), "n": (64, 10), "g": (64,)}
_FLOATS = {
    "convolution and softmax": (
        "c = Conv<pads = [1,1,1,1]>(x, w, b)\n r = Relu(c)\n f = Flatten(r)\n y = Softmax(f)",
        (1, 4, 8, 6), "float[1,k] y", "wb",
    ),
    "depthwise convolution": ("y = Conv<group = 4>(x, d)", (1, 4, 8, 6), "float[1,4,p,q] y", "d"),
    "dense layers": ("h = MatMul(x, m)\n r = Relu(h)\n y = MatMul(r, n)", (16, 48), "float[16,q] y", "mn"),
    "layer normalization": ("y = LayerNormalization(x, g, g)", (2, 40, 64), "float[2,40,64] y", "g"),
    "average": ("y = GlobalAveragePool(x)", (1, 4, 9, 7), "float[1,4,1,1] y", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", _FLOATS)
def test_float_layers_stay_in_their_bound_on_threads(name: str) -> None:
    body, shape, outputs, used = _FLOATS[name]
    rng = np.random.default_rng(len(name))
    constants = {key: rng.normal(size=_SHAPES[key]).astype(np.float32) for key in used}
    model = model_of(body, f"float{list(shape)} x", outputs, **constants)
    x = {"x": rng.normal(size=shape).astype(np.float32)}
    want, bound = evaluate(model, x)["y"], derive_bound(model, [x], seed=0)["y"]
    got = simulated(model).run(x)["y"]
    assert np.abs(got - want).max() <= bound.atol + bound.rtol_of_max * np.abs(want).max()


def test_halves_multiply_on_threads() -> None:
    """Sums are in float32: small integers are exact."""
    rng = np.random.default_rng(0)
    w = rng.integers(-3, 4, (64, 64)).astype(np.float16)
    model = model_of("y = MatMul(x, w)", "float16[64,64] x", "float16[64,64] y", w=w)
    x = {"x": rng.integers(-3, 4, (64, 64)).astype(np.float16)}
    assert np.array_equal(simulated(model).run(x)["y"], (x["x"].astype(np.float32) @ w).astype(np.float16))


# --- errors that a schedule can make ----------------------------------------------------------------


@pytest.fixture(scope="module")
def convolution() -> tuple[Program, bytes, Kernels, Arrays, Arrays]:
    model = quantized_conv(np.random.default_rng(0), 3)
    program, weights, kernels, _ = compiled(model)
    x = {"x": np.random.default_rng(1).integers(0, 256, (1, 4, 9, 7)).astype(np.uint8)}
    return program, weights, kernels, x, evaluate(model, x)


def _main(program: Program) -> int:
    """Return the launch with most blocks or, of several, the last one with shared memory."""
    return max(range(len(program.launches)), key=lambda i: ("conv" in program.launches[i].kernel, i))


@pytest.mark.parametrize("field", ["grid", "block"])
def test_a_launch_of_too_few_threads_is_seen(
    convolution: tuple[Program, bytes, Kernels, Arrays, Arrays], field: str
) -> None:
    program, weights, kernels, x, want = convolution
    launches = list(program.launches)
    at = _main(program)
    sizes = getattr(launches[at], field)
    axis = max(range(3), key=lambda i: sizes[i])
    fewer = tuple(n // 2 if i == axis else n for i, n in enumerate(sizes))
    launches[at] = launches[at].model_copy(update={field: fewer})
    changed = program.model_copy(update={"launches": tuple(launches)})
    assert _wrong(changed, weights, kernels, x, want)


def test_missing_barriers_are_seen(convolution: tuple[Program, bytes, Kernels, Arrays, Arrays]) -> None:
    program, weights, kernels, x, want = convolution
    text = kernels.sources[1].replace("__syncthreads();", "")
    assert text != kernels.sources[1]
    assert _wrong(program, weights, replace(kernels, sources=(kernels.sources[0], text)), x, want)


def test_changed_indices_are_seen(convolution: tuple[Program, bytes, Kernels, Arrays, Arrays]) -> None:
    """Half of them at least: some belong to reads that a condition masks, or to values nobody uses."""
    program, weights, kernels, x, want = convolution
    source = kernels.sources[1]
    places = [found.start() for found in re.finditer(r"threadIdx\.[xy]\)", source)]
    seen = 0
    for place in places[:: len(places) // 4][:4]:
        text = source[:place] + source[place:].replace("threadIdx.", "1 ^ threadIdx.", 1)
        seen += _wrong(program, weights, replace(kernels, sources=(kernels.sources[0], text)), x, want)
    assert seen >= 2


def _wrong(program: Program, weights: bytes, kernels: Kernels, x: Arrays, want: Arrays) -> bool:
    try:
        got = on_threads(program, weights, kernels).run(x)
    except SimulationError:
        return True
    return not np.array_equal(got["y"], want["y"])
