"""Products that cuBLASLt may do: which are found, timed beside schedules, kept, and run without it too."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

import onnx_ir as ir
from fake_driver import Fake, floats
from fake_library import FakeLibrary
from gpu_models import ARCH, model_of
from tvm import te, tirx

import pared.backends.gpu.choosing as choosing
from pared.backends.gpu.by_library import LibraryChoice, read_choice
from pared.backends.gpu.choosing import choose_on_device, note_of
from pared.backends.gpu.emulate import EmulatedDevice, describe
from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.kernels import build
from pared.backends.gpu.loading import load
from pared.backends.gpu.lower import lower
from pared.backends.gpu.module import calls_of, relax_module
from pared.backends.gpu.place import make_program
from pared.backends.gpu.schedules.apart import halve
from pared.backends.gpu.schedules.dense import Dense, dense_of
from pared.backends.gpu.schedules.table import alternatives
from pared.backends.gpu.trial import _compiled as evaluate_here
from pared.backends.gpu.trial import tensors_of
from pared.backends.reference import evaluate
from pared.compiler.ir.export import signature_of
from pared.compiler.timing_cache import TimingCache
from pared.targets import load_target

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(32, 48)).astype(np.float16)
NAMES = [f"cublaslt 13.10.0 algorithm {rank}" for rank in range(3)]


def plain() -> ir.Model:
    """Return the model of one float16 product, its result rounded once."""
    return model_of("y = MatMul(x, w)", "float16[64,32] x", "float16[64,48] y", w=WEIGHTS)


@pytest.fixture(scope="module")
def product() -> object:
    (function,) = calls_of(relax_module(plain())).functions.values()
    return function


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TimingCache:
    """Kernels are not compiled: on the fake driver they compute nothing, so that schedules are all wrong."""
    monkeypatch.setattr(choosing, "compile_cubin", lambda source, arch, *, contract: b"\x7fELF")
    monkeypatch.setattr(choosing, "alternatives", lambda f, chip: islice(alternatives(f, chip), 1))
    return TimingCache(tmp_path / "times")


def test_the_librarys_algorithms_are_timed_and_one_is_taken(
    fake: Fake, library: FakeLibrary, product: object, cache: TimingCache
) -> None:
    choices = choose_on_device({"f": product}, ARCH, None, cache)
    assert list(choices.times["f"]) == NAMES
    assert choices.wanted == {"f": NAMES[0]}
    assert "products by cuBLASLt 13.10.0 where it is installed: 1" in note_of(choices, ARCH)
    assert (library.live(), fake.live()) == (0, {})


def test_an_algorithm_that_computes_something_else_is_left_out(
    library: FakeLibrary, product: object, cache: TimingCache
) -> None:
    library.wrong = {0, 2}
    choices = choose_on_device({"f": product}, ARCH, None, cache)
    assert list(choices.times["f"]) == [NAMES[1]]


@pytest.mark.parametrize("nth", [1, 2])
def test_an_algorithm_that_does_not_run_is_left_out(
    fake: Fake, library: FakeLibrary, product: object, cache: TimingCache, nth: int
) -> None:
    """Its first call fails, or the first one that is recorded."""
    library.fail("cublasLtMatmul", nth, 15)
    choices = choose_on_device({"f": product}, ARCH, None, cache)
    assert list(choices.times["f"]) == NAMES[1:]
    assert fake.live() == {}


def test_another_version_is_timed_anew(library: FakeLibrary, product: object, cache: TimingCache) -> None:
    choose_on_device({"f": product}, ARCH, None, cache)
    before = len(library.ran)
    choose_on_device({"f": product}, ARCH, None, cache)
    assert len(library.ran) == before
    library.version(130002)
    assert choose_on_device({"f": product}, ARCH, None, cache).wanted == {"f": "cublaslt 13.0.2 algorithm 0"}


def test_that_the_library_is_missing_is_said(fake: Fake, product: object, cache: TimingCache) -> None:
    assert "cuBLASLt is not installed" in note_of(choose_on_device({"f": product}, ARCH, None, cache), ARCH)


def test_a_rebuild_takes_the_library_without_having_it(fake: Fake, product: object) -> None:
    fake.devices("sm_80")
    recorded = {choosing.key_of(product): NAMES[2]}
    choices = choose_on_device({"f": product}, ARCH, recorded)
    assert choices.wanted == {"f": NAMES[2]}
    assert "products by cuBLASLt 13.10.0 where it is installed: 1" in note_of(choices, ARCH)
    (kernel,) = build({"f": product}, ARCH, choices.wanted).functions["f"].kernels
    assert kernel.product is not None
    assert (kernel.product.version, kernel.product.rank) == (131000, 2)
    assert [kernel.parameters[n] for n in (kernel.product.a, kernel.product.b)] == ["input0", "param_0"]


def test_a_choice_is_read_back_from_its_name() -> None:
    choice = LibraryChoice(120804, 1)
    assert read_choice(choice.name) == choice
    assert [read_choice(name) for name in ("tensor-core", "cublaslt", f"{choice.name} ")] == [None] * 3


def relued() -> ir.Model:
    """Return the model of a float32 product with something behind it."""
    return model_of(
        "h = MatMul(x, w) y = Relu(h)", "float[64,32] x", "float[64,48] y", w=WEIGHTS.astype(np.float32)
    )


def teach_relu(fake: Fake, *names: str) -> None:
    """Teach the driver the kernel behind the product of `relued`; its buffers come by name."""
    for name in names:
        fake.kernel(name, 2, lambda y, sums: np.maximum(floats(sums, 64 * 48), 0, out=floats(y, 64 * 48)))


def test_what_follows_a_product_is_a_kernel_behind_the_library(
    fake: Fake, library: FakeLibrary, cache: TimingCache
) -> None:
    (function,) = calls_of(relax_module(relued())).functions.values()
    teach_relu(fake, "around_kernel_1")
    choices = choose_on_device({"f": function}, ARCH, None, cache)
    assert list(choices.times["f"]) == NAMES
    first, second = build({"f": function}, ARCH, choices.wanted).functions["f"].kernels
    assert first.product is not None
    assert (first.product.result, second.product) == ("float32", None)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_an_artifact_hands_the_librarys_sums_to_the_kernel_behind(
    fake: Fake, library: FakeLibrary, cache: TimingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "TimingCache", lambda folder: cache)
    teach_relu(fake, "around_kernel_1", "fused_product_relu_kernel_1")
    lower(relued(), load_target("gpu-cuda-sm90")).move_to(tmp_path)
    x = RNG.integers(-3, 4, (64, 32)).astype(np.float32)
    model = load(tmp_path)
    want = np.maximum(x.astype(np.float64) @ WEIGHTS.astype(np.float64), 0)
    for _ in range(2):
        np.testing.assert_allclose(model.run({"x": x})["y"], want, rtol=1e-5, atol=1e-5)
    assert library.ran[-2:] == [0, 0]


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_without_the_library_the_same_artifact_runs_on_kernels(kind: str) -> None:
    """On the emulated device: an integer convolution of single pixels, to the bit."""
    w, scale = RNG.integers(-127, 128, (8, 16, 1, 1)).astype(np.int8), np.full(8, 0.01, np.float32)
    constants = {
        "w": w, "ws": scale, "xs": np.float32(0.02).reshape(()), "xz": np.array(5, kind),
        "ys": np.float32(0.1).reshape(()), "yz": np.array(3, kind),
    }  # fmt: skip
    body = """
        xr = DequantizeLinear(x, xs, xz)
        wr = DequantizeLinear<axis = 0>(w, ws)
        c = Conv(xr, wr)
        y = QuantizeLinear(c, ys, yz)
    """
    model = model_of(body, f"{kind}[1,16,6,6] x", f"{kind}[1,8,6,6] y", **constants)
    calls = calls_of(relax_module(model))
    wanted = dict.fromkeys(calls.functions, NAMES[1])
    kernels = build(calls.functions, ARCH, wanted)
    program, weights = make_program(calls, kernels.functions, signature_of(model), ARCH, batched=False)
    (product,) = [launch.product for launch in program.launches if launch.product is not None]
    assert (product.dtype, product.rows, product.columns, product.depth) == ("int8", 36, 8, 16)
    device = EmulatedDevice(describe(calls.functions, kernels.functions), ARCH)
    x = RNG.integers(0, 100, (1, 16, 6, 6)).astype(kind)
    got = GpuExecutable(program, weights, [b"", b""], device).run({"x": x})
    np.testing.assert_array_equal(got["y"], evaluate(model, {"x": x})["y"])


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_an_artifact_is_made_with_the_library_and_runs_with_it(
    fake: Fake, library: FakeLibrary, cache: TimingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "TimingCache", lambda folder: cache)
    payload = lower(plain(), load_target("gpu-cuda-sm90"))
    assert NAMES[0] in payload.attachments["gpu.json"]
    payload.move_to(tmp_path)
    x = RNG.integers(-3, 4, (64, 32)).astype(np.float16)
    before, model = fake.calls("cuLaunchKernel"), load(tmp_path)
    got = model.run({"x": x})["y"]
    assert model.notes == ()
    want = (x.astype(np.float64) @ WEIGHTS.astype(np.float64)).astype(np.float16)
    np.testing.assert_allclose(got, want, rtol=2**-10, atol=2**-10)
    assert (fake.calls("cuLaunchKernel"), library.ran[-1]) == (before, 0)


def found(body: str, inputs: str, outputs: str, **constants: np.ndarray) -> Dense | None:
    """Return what the one function with a product reads."""
    functions = calls_of(relax_module(model_of(body, inputs, outputs, **constants))).functions.values()
    products = [dense for function in functions if (dense := dense_of(function)) is not None]
    return products[0] if products else None


def halves(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float16)


def sizes(dense: Dense | None) -> tuple[int, int, int, bool]:
    assert dense is not None
    return dense.rows, dense.columns, dense.depth, dense.b_by_columns


def test_products_by_constants_and_by_data_are_found() -> None:
    one = found("y = MatMul(x, w)", "float16[4,64,32] x", "float16[4,64,48] y", w=halves(32, 48))
    assert sizes(one) == (256, 48, 32, True)
    other = found("y = MatMul(x, v)", "float[64,32] x, float[32,48] v", "float[64,48] y")
    assert sizes(other) == (64, 48, 32, False)


def test_a_convolution_of_single_pixels_is_a_product_and_others_are_none() -> None:
    pixel = found("y = Conv(x, w)", "float16[2,32,8,8] x", "float16[2,48,8,8] y", w=halves(48, 32, 1, 1))
    assert sizes(pixel) == (128, 48, 32, True)
    for more, side, kernel in (
        ("<strides = [2, 2]>", 4, 1), ("<pads = [1, 1, 1, 1]>", 8, 3), ("<pads = [1, 1, 1, 1]>", 10, 1),
    ):  # fmt: skip
        w, outputs = halves(48, 32, kernel, kernel), f"float16[2,48,{side},{side}] y"
        assert found(f"y = Conv{more}(x, w)", "float16[2,32,8,8] x", outputs, w=w) is None


_PIXELS = (
    "xr = DequantizeLinear(x, s) wr = DequantizeLinear(w, s) c = Conv(xr, wr) y = QuantizeLinear(c, s, z)"
)
_COMPUTED = {
    "rows of three sizes": ("y = MatMul(x, w)", "float16[4,6,32] x", "float16[4,6,8] y", (32, 8), "float16"),
    "weights by rows": ("y = Gemm<transB = 1>(x, w)", "float[6,32] x", "float[6,8] y", (8, 32), "float32"),
    "data by data": ("y = MatMul(x, v)", "float[6,32] x, float[32,8] v", "float[6,8] y", (), "float32"),
    "pixels": ("y = Conv(x, w)", "float16[2,16,5,3] x", "float16[2,8,5,3] y", (8, 16, 1, 1), "float16"),
    "pixels of int8": (_PIXELS, "int8[2,16,5,3] x", "int8[2,8,5,3] y", (8, 16, 1, 1), "int8"),
    "something behind": (
        "h = MatMul(x, w) y = Relu(h)", "float16[6,32] x", "float16[6,8] y", (32, 8), "float16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", _COMPUTED)
def test_what_the_library_is_told_is_what_the_function_computes(case: str) -> None:
    body, inputs, outputs, shape, dtype = _COMPUTED[case]
    w = RNG.integers(-3, 4, shape).astype(dtype)
    one = np.float32(1).reshape(())
    every = {"w": w, "s": one, "z": np.array(0, "int8")}
    used = {name: array for name, array in every.items() if f" {name}" in body.replace("(", " ")}
    functions = calls_of(relax_module(model_of(body, inputs, outputs, **used))).functions.values()
    (function,) = [f for f in functions if dense_of(f) is not None]
    dense = dense_of(function)
    assert dense is not None
    first = function if dense.c else halve(function, 1).product
    tensors = tensors_of(first)
    arrays = {t.name: RNG.integers(-3, 4, t.shape).astype(t.dtype) for t in tensors}
    evaluate_here(first)(*arrays.values())
    a = arrays[dense.a].reshape(dense.rows, dense.depth).astype(np.float64)
    b = arrays[dense.b].reshape((dense.columns, dense.depth) if dense.b_by_columns else (dense.depth, -1))
    want = a @ (b.T if dense.b_by_columns else b).astype(np.float64)
    got = arrays[tensors[-1].name]
    assert got.dtype.name == dense.result
    np.testing.assert_array_equal(got.reshape(dense.rows, dense.columns), want)


def summed(first: int, to: str) -> tirx.PrimFunc:
    """Return a function of int8 rows from `first` on, its sums converted."""
    a, b = te.placeholder((8 + first, 16), "int8", "a"), te.placeholder((4, 16), "int8", "b")
    k = te.reduce_axis((0, 16))
    c = te.compute(
        (8, 4), lambda i, j: te.sum(a[i + first, k].astype("int32") * b[j, k].astype("int32"), axis=k)
    )
    return te.create_prim_func([a, b, te.compute((8, 4), lambda i, j: c[i, j].astype(to))])


def test_sums_of_another_type_are_handed_on() -> None:
    """The library does not convert int32 to float32."""
    dense = dense_of(summed(0, "float32"))
    assert dense is not None
    assert (dense.result, dense.c) == ("int32", "")


def test_an_operand_that_begins_within_a_buffer_is_none() -> None:
    assert dense_of(summed(1, "float32")) is None


def test_several_products_in_one_function_are_none_for_the_library() -> None:
    assert found("y = MatMul(x, v)", "float[3,64,32] x, float[3,32,48] v", "float[3,64,48] y") is None


def test_results_rounded_once_are_the_librarys_and_others_are_not() -> None:
    once = found("y = MatMul(x, w)", "float16[64,32] x", "float16[64,48] y", w=halves(32, 48))
    assert once is not None
    assert (once.result, bool(once.c)) == ("float16", True)
    more = found(
        "h = MatMul(x, w) y = Add(h, b)", "float16[64,32] x", "float16[64,48] y",
        w=halves(32, 48), b=halves(48),
    )  # fmt: skip
    assert more is not None
    assert (more.result, more.c) == ("float32", "")
