"""k split over blocks: when, what the two kernels compute thread by thread, what they look like."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import ARCH, model_of
from test_gpu_schedules import in_halves, integers, quantized, stays_in_bound

from pared.backends.gpu.emulate import EmulatedDevice, describe
from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.kernels import build, generate
from pared.backends.gpu.module import calls_of, relax_module
from pared.backends.gpu.nvcc import compile_ptx
from pared.backends.gpu.place import make_program
from pared.backends.gpu.schedules.apart import part_length
from pared.backends.gpu.schedules.base import chip_of
from pared.backends.gpu.schedules.gemm_form import Product, product_of
from pared.backends.gpu.schedules.split import apart
from pared.backends.gpu.schedules.table import alternatives, choose
from pared.backends.gpu.simulate import SimulatedDevice, images, simulate
from pared.backends.gpu.trial import tensors_of
from pared.backends.reference import evaluate
from pared.compiler.backend import Arrays
from pared.compiler.ir.export import signature_of

if TYPE_CHECKING:
    from tvm import tirx

_ONNX = {"float16": "float16", "float32": "float"}

needs_threads = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on the PATH")


def run(model: ir.Model, inputs: Arrays) -> Arrays:
    """Return what a model computes thread by thread, its products split: run as launches and as a graph.

    The emulated device gets the same launches.
    """
    calls = calls_of(relax_module(model))
    kernels = build(calls.functions, ARCH, {name: "split" for name in calls.functions})
    assert "split" in kernels.choices.values(), kernels.choices
    program, weights = make_program(calls, kernels.functions, signature_of(model), ARCH, batched=False)
    threads = GpuExecutable(program, weights, images(kernels.sources), SimulatedDevice(ARCH))
    found, again = threads.run(inputs), threads.run(inputs)
    emulation = EmulatedDevice(describe(calls.functions, kernels.functions), ARCH)
    want = GpuExecutable(program, weights, [b"", b""], emulation).run(inputs)
    for name, array in found.items():
        assert np.array_equal(array, again[name])
        assert np.allclose(array, want[name], rtol=1e-2, atol=1e-2)
    return found


# Input [N, C, H, W], output channels, kernel, stride, pads.
_CONVS = {
    "whole tiles": ((1, 128, 7, 7), 64, 3, 1, 1),
    "rows and columns that divide nothing": ((1, 192, 8, 6), 37, 3, 2, 1),
    "one tap": ((1, 1088, 4, 4), 40, 1, 1, 0),
    "two pictures": ((2, 256, 3, 3), 24, 3, 1, 1),
}


@needs_threads
@pytest.mark.parametrize("name", _CONVS)
def test_a_split_quantized_convolution_is_exact(name: str) -> None:
    shape, m, k, stride, pad = _CONVS[name]
    rng = np.random.default_rng(m)
    layer = f"Conv<pads = [{pad},{pad},{pad},{pad}], strides = [{stride},{stride}]>"
    model = quantized(layer, ",".join(map(str, shape)), integers(rng, m, shape[1], k, k), rng)
    x = {"x": integers(rng, *shape)}
    assert np.array_equal(run(model, x)["y"], evaluate(model, x)["y"])


@needs_threads
@pytest.mark.parametrize(("rows", "k", "n"), [(16, 2048, 32), (13, 1999, 41), (50, 1100, 9)])
def test_a_split_quantized_product_is_exact(rows: int, k: int, n: int) -> None:
    rng = np.random.default_rng(k)
    model = quantized("Gemm", f"{rows},{k}", integers(rng, k, n), rng)
    x = {"x": integers(rng, rows, k)}
    assert np.array_equal(run(model, x)["y"], evaluate(model, x)["y"])


@needs_threads
def test_a_residual_and_an_activation_are_in_the_second_kernel() -> None:
    rng = np.random.default_rng(5)
    model = model_of(
        """xr = DequantizeLinear(x, s, z)
           wr = DequantizeLinear<axis = 0>(w, ws)
           c = Conv<pads = [1,1,1,1]>(xr, wr)
           q = QuantizeLinear(c, s, z)
           d = DequantizeLinear(q, s, z)
           a = Add(d, xr)
           r = Relu(a)
           y = QuantizeLinear(r, s, z)""",
        "int8[1,128,6,6] x", "int8[1,128,6,6] y", w=integers(rng, 128, 128, 3, 3),
        ws=np.full(128, 0.002, np.float32), s=np.float32(0.05), z=np.int8(-7),
    )  # fmt: skip
    x = {"x": integers(rng, 1, 128, 6, 6)}
    assert np.array_equal(run(model, x)["y"], evaluate(model, x)["y"])


# Body, shape of x, shape of w.
_HALVES = {
    "convolution": ("y = Conv<pads = [1,1,1,1]>(x, w)", (1, 64, 5, 6), (24, 64, 3, 3)),
    "product": ("y = MatMul(x, w)", (33, 730), (730, 24)),
    "batches": ("t = Transpose<perm = [0,2,1]>(x)\n y = MatMul(x, t)", (2, 16, 600), None),
    "another layout behind it": (
        "m = MatMul(x, w)\n t = Constant<value_ints = [20,4,10]>()\n r = Reshape(m, t)\n"
        "y = Transpose<perm = [1,2,0]>(r)",
        (20, 600),
        (600, 40),
    ),
    "gated": ("m = MatMul(x, w)\n s = Sigmoid(m)\n y = Mul(m, s)", (20, 600), (600, 40)),
}


@needs_threads
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", _HALVES)
def test_split_halves_stay_in_their_bound(name: str, kind: str) -> None:
    if kind == "bfloat16" and name != "product":
        pytest.skip("the same way as float16; opset 21 has no Conv of bfloat16")
    body, shape, weights = _HALVES[name]
    model, x = in_halves(body, shape, weights, kind, seed=len(name), spread=0.1)
    stays_in_bound(model, x, run(model, x))


# --- one part: the product alone, as a library would do it


def in_one_part(body: str, kind: str, shape: tuple[int, int], **constants: np.ndarray) -> Arrays:
    """Return random x, the sums that the first kernel leaves, and y.

    Args:
        body: of the model.
        kind: of x, y and the constants.
        shape: of the sums.
        constants: w is the matrix, the only constant that is kept turned round; shapes tell them apart.
    """
    (rows, n), k = shape, constants["w"].shape[0]
    io = (f"{_ONNX[kind]}[{rows},{k}] x", f"{_ONNX[kind]}[{rows},{n}] y")
    functions = calls_of(relax_module(model_of(body, *io, **constants))).functions
    ((name, function),) = [(name, f) for name, f in functions.items() if product_of(f) is not None]
    scheduled = apart(function.with_attr("global_symbol", name), chip_of(ARCH), 1)
    sources, found = generate({name: scheduled}, ARCH, [name])
    ((scratch, partial),) = found[name].scratch.items()
    assert (partial.shape, partial.dtype) == (shape, "float32")
    x = np.random.default_rng(rows).normal(size=(rows, k)).astype(kind)
    given = {"x": x, "sums": np.zeros(shape, np.float32), "y": np.zeros(shape, kind)}
    # What another function made of x is x here.
    arrays = [x, *(np.ascontiguousarray(a.T) if own == "w" else a for own, a in constants.items())]
    by_shape = {array.shape: array for array in arrays}
    *read, last = tensors_of(function)
    places = {tensor.name: by_shape[tensor.shape] for tensor in read}
    places |= {last.name: given["y"], scratch: given["sums"]}
    for kernel in found[name].kernels:
        buffers = [places[parameter] for parameter in kernel.parameters]
        sizes = (kernel.grid, kernel.block, kernel.shared_bytes)
        simulate(sources[0], kernel.name, *sizes, buffers, contract=True)
    return given


@needs_threads
@pytest.mark.parametrize(
    ("kind", "rows"),
    [("float16", 20), ("float32", 20), ("float16", 1)],
    ids=["tensor cores", "float32", "one row"],
)
def test_in_one_part_the_first_kernel_is_the_plain_product(kind: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    w, bias = rng.normal(size=(48, 24)).astype(kind), rng.normal(size=24).astype(kind)
    got = in_one_part("m = MatMul(x, w)\n b = Add(m, c)\n y = Relu(b)", kind, (rows, 24), w=w, c=bias)
    x, sums = got["x"], got["sums"]
    exact = x.astype(np.float64) @ w.astype(np.float64)
    assert np.abs(sums - exact).max() <= 48 * np.finfo(np.float32).eps * (np.abs(x) @ np.abs(w)).max()
    assert np.array_equal(got["y"], np.maximum(sums.astype(kind) + bias, 0).astype(kind))


@needs_threads
def test_a_branch_that_is_computed_before_the_sums_are_read_is_in_the_second_kernel() -> None:
    w = np.random.default_rng(1).normal(size=(48, 48)).astype(np.float16)
    got = in_one_part("r = Relu(x)\n d = Abs(x)\n m = MatMul(d, w)\n y = Sub(r, m)", "float16", (20, 48), w=w)
    assert np.array_equal(got["y"], np.maximum(got["x"], 0) - got["sums"].astype(np.float16))


# --- the rule


def form(model: ir.Model) -> tuple[tirx.PrimFunc, Product]:
    """Return the function of a model with a product, and the product."""
    functions = calls_of(relax_module(model)).functions.values()
    ((function, product),) = [(f, p) for f in functions if (p := product_of(f)) is not None]
    return function, product


def offered(layer: str, x: str, *w: int) -> list[str]:
    """Return the schedules of a quantized layer, the static choice first."""
    rng = np.random.default_rng(0)
    function, _ = form(quantized(layer, x, integers(rng, *w), rng))
    names = [name for name, _ in alternatives(function, chip_of(ARCH))]
    assert names[0] == choose(function, chip_of(ARCH))[0]
    return names


def test_few_tiles_and_many_terms_are_split_by_rule() -> None:
    """The last stage of a ResNet-50, batch 1."""
    names = offered("Conv<pads = [1,1,1,1]>", "1,512,7,7", 512, 512, 3, 3)
    assert names[:3] == ["split", "split 4", "split 2"]
    assert "tensor-core" in names


def test_what_would_hardly_be_faster_is_left_to_a_device() -> None:
    names = offered("Gemm", "49,2048", 2048, 512)
    assert names[0] == "tensor-core"
    assert {"split", "split 4", "split 16"} <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("x", "w"), [("4096,1024", (1024, 1024)), ("16,960", (960, 64))], ids=["many tiles", "few terms"]
)
def test_others_are_not_split_at_all(x: str, w: tuple[int, ...]) -> None:
    assert not any("split" in name for name in offered("Gemm", x, *w))


def test_grouped_convolutions_are_never_split() -> None:
    rng = np.random.default_rng(0)
    model = quantized("Conv<pads = [1,1,1,1], group = 2>", "1,1024,7,7", integers(rng, 64, 512, 3, 3), rng)
    functions = calls_of(relax_module(model)).functions
    found = {name for f in functions.values() for name, _ in alternatives(f, chip_of(ARCH))}
    assert found
    assert not any("split" in name for name in found)


@pytest.mark.parametrize(
    ("k", "parts", "length"), [(4096, 8, 512), (1999, 4, 512), (4096, 24, None), (192, 3, 64)]
)
def test_a_plain_k_is_cut_after_whole_steps(k: int, parts: int, length: int | None) -> None:
    rng = np.random.default_rng(0)
    _, product = form(quantized("Gemm", f"16,{k}", integers(rng, k, 16), rng))
    assert part_length(product, parts) == length


@pytest.mark.parametrize(
    ("channels", "parts", "length"), [(512, 8, 576), (512, 16, None), (96, 4, None), (20, 5, None)]
)
def test_a_convolution_is_cut_along_its_channels(channels: int, parts: int, length: int | None) -> None:
    rng = np.random.default_rng(0)
    _, product = form(quantized("Conv", f"1,{channels},7,7", integers(rng, 16, channels, 3, 3), rng))
    assert part_length(product, parts) == length


# --- what nvcc makes of it


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
@pytest.mark.skipif(shutil.which("ptxas") is None, reason="ptxas is not on the PATH")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_split_kernels_multiply_on_tensor_cores_load_vectors_and_do_not_spill(
    arch: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    model = quantized("Conv<pads = [1,1,1,1]>", "1,512,7,7", integers(rng, 512, 512, 3, 3), rng)
    kernels = build(calls_of(relax_module(model)).functions, arch)
    assert "split" in kernels.choices.values()
    ptx = compile_ptx(kernels.sources[1], arch, contract=False)
    entries = {found[1]: found[0] for found in re.finditer(r"\.entry (\w+)\(.*?\n}", ptx, re.DOTALL)}
    product, epilogue = (next(text for name, text in entries.items() if name.endswith(end)) for end in _ENDS)
    assert re.search(r"mma\.sync\.aligned\S*s32\.s8\.s8\.s32", product)
    assert re.search(r"st\.global\.v4", product)
    assert re.search(r"ld\.global\.(nc\.)?v4", epilogue)
    assert re.search(r"st\.global\.(u32|b32|v4\.u8)", epilogue)
    assert not re.search(r"\.local ", product + epilogue)
    (tmp_path / "kernels.ptx").write_text(ptx)
    command = ["ptxas", "-v", f"-arch={arch}", "-o", str(tmp_path / "k.cubin"), str(tmp_path / "kernels.ptx")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stderr
    assert re.findall(r"(\d+) bytes spill stores", said).count("0") == said.count("spill stores") > 0


_ENDS = ("conv_requantize_kernel", "conv_requantize_kernel_1")
