"""Products that cuBLASLt may do: which are found, timed beside schedules, kept, and run without it too."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from fake_driver import Fake
from fake_library import FakeLibrary
from gpu_models import ARCH, model_of

import pared.backends.gpu.choosing as choosing
from pared.backends.gpu.by_library import LibraryChoice, read_choice
from pared.backends.gpu.choosing import choose_on_device, note_of
from pared.backends.gpu.kernels import build
from pared.backends.gpu.loading import load
from pared.backends.gpu.lower import lower
from pared.backends.gpu.module import calls_of, relax_module
from pared.backends.gpu.schedules.dense import Dense, dense_of
from pared.backends.gpu.schedules.table import alternatives
from pared.compiler.timing_cache import TimingCache
from pared.targets import load_target

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(32, 48)).astype(np.float16)
NAMES = [f"cublaslt 13.10.0 algorithm {rank}" for rank in range(3)]


def plain() -> object:
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
    assert "1 are products by cuBLASLt 13.10.0 where it is installed" in note_of(choices, ARCH)
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
    assert "1 are products by cuBLASLt" in note_of(choices, ARCH)
    (kernel,) = build({"f": product}, ARCH, choices.wanted).functions["f"].kernels
    assert kernel.product is not None
    assert (kernel.product.version, kernel.product.rank) == (131000, 2)
    assert [kernel.parameters[n] for n in (kernel.product.a, kernel.product.b)] == ["input0", "param_0"]


def test_a_choice_is_read_back_from_its_name() -> None:
    choice = LibraryChoice(120804, 1)
    assert read_choice(choice.name) == choice
    assert [read_choice(name) for name in ("tensor-core", "cublaslt", f"{choice.name} ")] == [None] * 3


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
