"""Products by cuBLASLt: what it is told, by a stand-in that checks every argument; and where it is not."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fake_driver import HERE, Fake, floats
from fake_library import VERSION, FakeLibrary, loaded_product, operands, product, program_of

from pared.backends.gpu import cublaslt
from pared.backends.gpu.cublaslt import Header, HeuristicResult, lt_api, version_text
from pared.backends.gpu.driver import open_driver
from pared.backends.gpu.library import open_library, refusal, use_library
from pared.backends.gpu.program import MatrixProduct
from pared.compiler.errors import ParedError


def run(one: MatrixProduct, *more: MatrixProduct) -> tuple[np.ndarray, np.ndarray]:
    """Return what a program gives twice in a row, the second time recorded."""
    a, _ = operands(one)
    model = loaded_product(one, *more)
    got = [model.run({"x": a})["y"] for _ in range(2)]
    model.close()
    return got[0], got[1]


@pytest.mark.parametrize(
    "one",
    [
        product(),
        product(by_columns=False),
        product("float16", "float32"),
        product("float16", "float16", by_columns=False),
        product("int8", "int32"),
        product("float32", "float32", rows=1, columns=3, depth=5),
    ],
    ids=lambda one: f"{one.dtype}-{one.result}-{one.rows}x{one.columns}x{one.depth}-{one.b_by_columns}",
)
def test_the_library_does_a_product_and_leaves_nothing(
    fake: Fake, library: FakeLibrary, one: MatrixProduct
) -> None:
    a, b = operands(one)
    want = (a.astype(np.float32) @ b.astype(np.float32)).astype(one.result)
    for got in run(one):
        np.testing.assert_array_equal(got, want)
    assert fake.calls("cuLaunchKernel") == 0
    assert (library.live(), fake.live()) == (0, {})


def test_bfloat16_is_taken(fake: Fake, library: FakeLibrary) -> None:
    device = open_driver()
    found, _ = open_library(device)
    assert found is not None
    assert len(found.algorithms(product("bfloat16", "bfloat16"), 2)) == 2
    assert len(found.algorithms(product("bfloat16", "float32"), 2)) == 2


def test_a_product_is_recorded_with_the_kernels_and_replayed(fake: Fake, library: FakeLibrary) -> None:
    model = loaded_product(product())
    for _ in range(4):
        model.run({"x": operands(product())[0]})
    assert (library.calls("cublasLtMatmul"), fake.calls("cuGraphLaunch"), len(library.ran)) == (2, 3, 4)
    assert (model.notes, model.library_products) == ((), 1)


def test_where_recording_a_product_fails_everything_is_launched_one_by_one(
    fake: Fake, library: FakeLibrary
) -> None:
    a, b = operands(product())
    model = loaded_product(product())
    model.run({"x": a})
    library.fail("cublasLtMatmul", 1, 15)
    for _ in range(2):
        np.testing.assert_array_equal(model.run({"x": a})["y"], a @ b)
    assert fake.calls("cuGraphLaunch") == 0
    assert "cublasLtMatmul: CUBLAS_STATUS_NOT_SUPPORTED" in model.notes[0]


def test_the_algorithm_that_was_timed_is_taken(library: FakeLibrary) -> None:
    run(product(rank=2))
    assert library.ran == [2, 2]


def test_tensors_of_the_caller_need_no_more_than_16_bytes(fake: Fake, library: FakeLibrary) -> None:
    a, b = operands(product())
    device = open_driver()
    model = loaded_product(product(), device=device)
    room = device.lend(4096)
    x, y = room + 16, room + 2064
    device.upload(x, a.reshape(-1).view(np.uint8))
    model.run_on_device([x], [y])
    device.synchronize()
    np.testing.assert_array_equal(floats(y, 48).reshape(6, 8), a @ b)


def test_the_largest_workspace_is_shared(fake: Fake, library: FakeLibrary) -> None:
    a, b = operands(product())
    model = loaded_product(product(rank=1), product(rank=3))
    np.testing.assert_array_equal(model.run({"x": a})["y"], a @ b)
    assert library.ran == [1, 3]


def test_another_version_takes_its_own_first_algorithm_and_a_note_says_so(
    fake: Fake, library: FakeLibrary
) -> None:
    library.version(120804)
    model = loaded_product(product(rank=2))
    model.run({"x": operands(product())[0]})
    assert library.ran == [0]
    assert "timed with cuBLASLt 13.10.0, this is cuBLASLt 12.8.4" in model.notes[0]


def test_fewer_proposals_than_the_rank_give_the_first(library: FakeLibrary) -> None:
    library.proposals(2)
    run(product(rank=3))
    assert library.ran == [0, 0]


def taught(fake: Fake, one: MatrixProduct) -> list[int]:
    """Teach the driver the program's own kernel; returns what it notes when it runs."""
    ran: list[int] = []
    fake.kernel("own", 3, lambda a, b, c: ran.append(1))
    return ran


def test_without_the_library_the_kernel_runs_and_a_note_says_so(fake: Fake) -> None:
    ran = taught(fake, product())
    model = loaded_product(product())
    model.run({"x": operands(product())[0]})
    assert (ran, model.library_products) == ([1], 0)
    assert model.notes == ("cuBLASLt is not installed: products that it was faster at (1) run as kernels",)
    model.close()
    assert fake.live() == {}


def test_a_library_that_does_not_start_is_none(fake: Fake, library: FakeLibrary) -> None:
    library.fail("cublasLtCreate", 1, 1)
    ran = taught(fake, product())
    model = loaded_product(product())
    model.run({"x": operands(product())[0]})
    assert ran == [1]
    assert "cuBLASLt 13.10.0 does not run here: cublasLtCreate" in model.notes[0]
    model.close()
    assert (library.live(), fake.live()) == (0, {})


def test_a_product_that_the_library_does_not_take_is_the_kernels(fake: Fake, library: FakeLibrary) -> None:
    library.proposals(0)
    ran = taught(fake, product())
    model = loaded_product(product())
    model.run({"x": operands(product())[0]})
    assert (ran, library.ran) == ([1], [])
    assert "takes 0 of 1 products" in model.notes[0]


@pytest.mark.parametrize(
    "name", ["cublasLtMatmulPreferenceCreate", "cublasLtMatmulDescCreate", "cublasLtMatrixLayoutCreate"]
)
def test_no_memory_for_the_library_is_refused_and_leaves_nothing(
    fake: Fake, library: FakeLibrary, name: str
) -> None:
    library.fail(name, 1, 3)
    with pytest.raises(ParedError) as caught:
        loaded_product(product())
    assert caught.value.reason == "cuda-out-of-memory"
    assert (library.live(), fake.live()) == (0, {})


def test_a_product_that_fails_is_an_error_that_names_the_call(fake: Fake, library: FakeLibrary) -> None:
    library.fail("cublasLtMatmul", 1, 14)
    model = loaded_product(product())
    with pytest.raises(ParedError, match=r"cublasLtMatmul: .*PARED_CUBLASLT=off") as caught:
        model.run({"x": operands(product())[0]})
    assert caught.value.reason == "cublaslt-failed"


def test_a_lost_device_is_not_asked_again(fake: Fake, library: FakeLibrary) -> None:
    model = loaded_product(product())
    fake.fail("cuStreamSynchronize", 1, 700)
    with pytest.raises(ParedError) as caught:
        model.run({"x": operands(product())[0]})
    assert caught.value.reason == "cuda-context-lost"
    model.close()
    assert library.calls("cublasLtDestroy") == 0


def test_another_devices_context_stays_current(fake: Fake, library: FakeLibrary) -> None:
    fake.devices("sm_90", "sm_90")
    other = open_driver(1)
    other.synchronize()
    assert fake.current() == 1
    run(product())
    assert fake.current() == 1


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (product("int8", "int32"), ""),
        (product("int8", "int32", by_columns=False), "along k"),
        (product("int8", "int32", depth=14), "words"),
        (product("int8", "int32", columns=6), "words"),
        (product("int8", "float32"), "int8 to float32"),
        (product("uint8", "int32"), "uint8 to int32"),
        (product("float16", "float16", columns=3, depth=5), ""),
    ],
)
def test_what_the_library_cannot_do_is_not_asked_of_it(
    library: FakeLibrary, one: MatrixProduct, why: str
) -> None:
    assert why in refusal(one)
    assert bool(refusal(one)) == bool(why)
    found, _ = open_library(open_driver())
    assert found is not None
    assert bool(found.algorithms(one, 1)) == (not why)


def test_devices_that_are_none_run_kernels(library: FakeLibrary) -> None:
    from pared.backends.gpu.emulate import EmulatedDevice

    assert use_library(EmulatedDevice("{}", "sm_90"), [program_of(product())]) == ({}, "")


def test_a_file_that_is_no_library_is_passed_over(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARED_CUBLASLT", str(fake.path))
    assert lt_api() is None


def test_the_library_of_a_wheel_is_found(
    library: FakeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pip installs them; `nvidia` is a folder that many packages share."""
    folder = tmp_path / "site" / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    shutil.copy(tmp_path / "libcublasLt-fake.so", folder / "libcublasLt.so.13")
    monkeypatch.setenv("PARED_CUBLASLT", "")
    monkeypatch.setattr(cublaslt, "_USUAL", ())
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    cublaslt._loaded.cache_clear()
    found = lt_api()
    cublaslt._loaded.cache_clear()
    assert found is not None
    assert found.version == VERSION


def test_versions_are_written_as_people_do() -> None:
    assert [version_text(number) for number in (131000, 120804, 130002)] == ["13.10.0", "12.8.4", "13.0.2"]


_LAYOUT = """
_Static_assert(sizeof(cublasLtMatmulHeuristicResult_t) == {size}, "size");
_Static_assert(offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize) == {workspace}, "workspaceSize");
_Static_assert(offsetof(cublasLtMatmulHeuristicResult_t, state) == {state}, "state");
"""


def test_numbers_and_prototypes_are_those_of_the_header(tmp_path: Path) -> None:
    """Where NVIDIA's header is beside nvcc's own or on the compiler's path (CPATH)."""
    probe = tmp_path / "probe.c"
    probe.write_text("#include <cublasLt.h>\n")
    if shutil.which("nvcc") is None or subprocess.run(["nvcc", "-E", probe], capture_output=True).returncode:
        pytest.skip("nvcc and cublasLt.h are not on their paths")
    numbers = {name: value for name, value in vars(Header).items() if name.startswith("CU")}
    facts = [f'_Static_assert((int)({name}) == {value}, "{name}");' for name, value in numbers.items()]
    result = HeuristicResult
    layout = _LAYOUT.format(
        size=ctypes.sizeof(result), workspace=result.workspaceSize.offset, state=result.state.offset
    )
    probe.write_text("\n".join(["#include <stddef.h>", "#include <cublasLt.h>", *facts, layout]))
    strict = ["-Xcompiler", "-Wall,-Werror,-Wno-enum-compare", "-DWITH_HEADER", "-c", "-o", tmp_path / "x.o"]
    for source in (probe, HERE / "fake_cublaslt.c"):
        subprocess.run(["nvcc", *strict, source], check=True)
    assert len(numbers) == 20


def test_the_real_library_takes_our_descriptors() -> None:
    """Where it is installed; descriptors need no device."""
    api = lt_api()
    if api is None:
        pytest.skip("cuBLASLt is not installed")
    handle, turned = ctypes.c_void_p(), ctypes.c_int32(Header.CUBLAS_OP_T)
    api("cublasLtMatmulDescCreate", ctypes.byref(handle), Header.CUBLAS_COMPUTE_32I, Header.CUDA_R_32I)
    api("cublasLtMatmulDescSetAttribute", handle, Header.CUBLASLT_MATMUL_DESC_TRANSA, ctypes.byref(turned), 4)
    api("cublasLtMatmulDescDestroy", handle)
    assert api.version >= 120000
