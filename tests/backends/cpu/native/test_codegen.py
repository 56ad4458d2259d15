import ctypes
import re
import subprocess
import threading
from importlib.resources import files
from importlib.util import find_spec

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

import toy_kernels as toy

from pared.backends.cpu.native import codegen, engine
from pared.backends.cpu.native.cpu_check import missing_feature
from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.cpu.native.link import find_compiler, link
from pared.backends.cpu.native.planner import plan
from pared.compiler.errors import ArtifactError, DataError, MissingTool, TargetError

ISA = host_isa()
if not isinstance(ISA, Isa) or find_compiler(ISA.arch) is None:
    pytest.skip("needs a CPU with kernels and a C compiler", allow_module_level=True)

OUT = 'out "q"\n'
OPTIONS = {"isa": " ".join([ISA.arch, *ISA.features])}


@pytest.fixture(autouse=True)
def toy_family(monkeypatch):
    monkeypatch.setattr(codegen, "_family", lambda name: {"toy": toy.FAMILY}[name])


def built(program):
    return codegen.build(program, plan(program), ISA)


def written(folder, program):
    for name, data in built(program).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path, toy.chain())


@pytest.fixture
def x():
    return np.arange(64, dtype=np.float32).reshape(4, 16)


def test_the_steps_run_in_order_with_their_own_constants(folder, x):
    model = engine.load(folder, OPTIONS, 1)
    np.testing.assert_array_equal(model.run({"x": x})[OUT], toy.expected(x))


def test_names_of_any_characters_come_back(folder):
    assert [port.name for port in engine.load(folder, OPTIONS, 1).signature.outputs] == [OUT]


def test_results_go_to_the_callers_buffer(folder, x):
    out = np.zeros((4, 16), np.float32)
    result = engine.load(folder, OPTIONS, 1).run({"x": x}, {OUT: out})[OUT]
    assert result is out
    np.testing.assert_array_equal(out, toy.expected(x))


@pytest.mark.parametrize(
    "array", [np.zeros((4, 15), np.float32), np.zeros((4, 16)), np.zeros((16, 4), np.float32).T]
)
def test_an_output_buffer_that_does_not_fit_is_refused(folder, x, array):
    with pytest.raises(DataError, match="needs a contiguous, writable float32 array") as caught:
        engine.load(folder, OPTIONS, 1).run({"x": x}, {OUT: array})
    assert caught.value.reason == "output-buffer"


def test_samples_of_a_batch_are_run_one_by_one(tmp_path):
    written(tmp_path, toy.chain(rows=1))
    model = engine.load(tmp_path, {**OPTIONS, "batched": True}, 1)
    x = np.random.default_rng(0).integers(-9, 9, (4, 16)).astype(np.float32)
    assert model.signature.inputs[0].shape == ("batch", 16)
    np.testing.assert_array_equal(model.run({"x": x})[OUT], toy.expected(x))


def test_an_unknown_output_is_refused(folder, x):
    with pytest.raises(DataError, match="no output 'y'"):
        engine.load(folder, OPTIONS, 1).run({"x": x}, {"y": x})


def test_the_input_is_not_written(folder, x):
    x.flags.writeable = False
    engine.load(folder, OPTIONS, 1).run({"x": x})
    np.testing.assert_array_equal(x.ravel(), np.arange(64))


def test_runs_from_many_threads_do_not_meet(folder):
    model = engine.load(folder, OPTIONS, 2)
    wrong = []

    def work(seed):
        x = np.random.default_rng(seed).standard_normal((4, 16)).astype(np.float32)
        want = model.run({"x": x})[OUT]
        wrong.extend(i for i in range(300) if not np.array_equal(model.run({"x": x})[OUT], want))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_shared_steps_give_the_same_result(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(codegen, "PARALLEL_WORK", 0)
    program = toy.chain(rows=37)
    model = engine.load(written(tmp_path, program), OPTIONS, threads)
    x = np.random.default_rng(0).standard_normal((37, 16)).astype(np.float32)
    want = model.run({"x": x})[OUT]
    alone = engine.load(tmp_path, OPTIONS, 1).run({"x": x})[OUT]
    np.testing.assert_array_equal(want, alone)
    for _ in range(500):
        np.testing.assert_array_equal(model.run({"x": x})[OUT], alone)
    model.close()


def test_small_steps_are_not_shared():
    source = codegen._Build(toy.chain(), plan(toy.chain()), ISA).source()
    assert "pool_share" not in source


def test_large_steps_are_shared():
    program = toy.chain(rows=20000)
    assert "pool_share" in codegen._Build(program, plan(program), ISA).source()


def test_equal_programs_give_equal_bytes():
    assert built(toy.chain()) == built(toy.chain())


def test_no_path_of_this_machine_is_in_the_library(folder):
    data = (folder / "model.so").read_bytes()
    assert not re.search(rb"/tmp/|/home/|/usr/src|pared-native", data)


def test_only_the_interface_is_visible(folder):
    ran = subprocess.run(
        ["nm", "-D", "--defined-only", "model.so"], cwd=folder, capture_output=True, text=True
    )
    if ran.returncode:
        pytest.skip("nm cannot read the library")
    assert {line.split()[-1] for line in ran.stdout.splitlines()} == {
        "pared_model_info", "pared_arena_bytes", "pared_missing_feature", "pared_run", "pared_run_on",
        "pared_pool_create", "pared_pool_destroy",
    }  # fmt: skip


def test_equal_constants_are_stored_once():
    constants = toy.chain(factors=(1.0, 2.0)).constants
    twin = (*constants, type(constants[0]).of("twin", constants[1].array))
    offsets, total = codegen._offsets(twin)
    assert offsets["twin"] == offsets["c1"]
    assert total == 128


def test_a_cpu_that_lacks_a_feature_is_told_which(folder):
    with pytest.raises(TargetError, match="needs avx1024, which") as caught:
        engine.load(folder, {"isa": OPTIONS["isa"] + " avx1024"}, 1)
    assert caught.value.reason == "cpu-feature-missing"


def test_another_architecture_is_refused(folder):
    with pytest.raises(TargetError, match="needs riscv64"):
        engine.load(folder, {"isa": "riscv64"}, 1)


def test_a_folder_without_payload_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"no model\.so"):
        engine.load(tmp_path, OPTIONS, 1)


def test_a_file_that_is_no_library_is_refused(tmp_path):
    (tmp_path / "model.so").write_bytes(b"not a library")
    with pytest.raises(ArtifactError, match="cannot load"):
        engine.load(tmp_path, OPTIONS, 1)


def test_a_closed_model_refuses_to_run(folder, x):
    model = engine.load(folder, OPTIONS, 2)
    model.close()
    with pytest.raises(ArtifactError, match="was closed"):
        model.run({"x": x})


def test_a_replaced_file_is_loaded_anew_while_the_old_one_runs(folder, x):
    old = engine.load(folder, OPTIONS, 1)
    (folder / "model.so").unlink()
    written(folder, toy.chain(factors=(7.0, 1.0)))
    new = engine.load(folder, OPTIONS, 1)
    np.testing.assert_array_equal(old.run({"x": x})[OUT], toy.expected(x))
    np.testing.assert_array_equal(new.run({"x": x})[OUT], toy.expected(x, (7.0, 1.0)))


def test_a_file_loaded_twice_does_not_outlive_its_last_user_under_its_name(tmp_path, x):
    folders = []
    for index, factors in enumerate([(7.0, 1.0), (3.0, 1.0)]):
        folders.append(tmp_path / str(index))
        folders[-1].mkdir()
        written(folders[-1], toy.chain(factors=factors))
    first, second = (engine.load(folders[0], OPTIONS, 1) for _ in range(2))
    first.close()
    other = engine.load(folders[1], OPTIONS, 1)
    np.testing.assert_array_equal(other.run({"x": x})[OUT], toy.expected(x, (3.0, 1.0)))
    np.testing.assert_array_equal(second.run({"x": x})[OUT], toy.expected(x, (7.0, 1.0)))


def test_without_a_linker_both_ways_out_are_named(monkeypatch):
    monkeypatch.setattr("pared.backends.cpu.native.link.find_compiler", lambda arch: None)
    with pytest.raises(MissingTool, match=r"neither cc .* nor the package ziglang"):
        built(toy.chain())


@pytest.mark.parametrize("feature", [name for name in ("f16c", "movbe", "avx512_bf16") if ISA.has(name)])
def test_the_library_itself_finds_every_feature_of_this_cpu(folder, feature):
    library = ctypes.CDLL(str(folder / "model.so"))
    library.pared_missing_feature.restype = ctypes.c_char_p
    assert library.pared_missing_feature() is None
    assert f'return "{feature}";' in missing_feature(ISA)


def test_the_library_itself_names_what_the_cpu_lacks(tmp_path):
    if ISA.arch != "x86_64" or ISA.has("avx_vnni"):
        pytest.skip("needs an x86 CPU without avx_vnni")
    (tmp_path / "cpu_x86.h").write_bytes(files(codegen.__package__).joinpath("c/cpu_x86.h").read_bytes())
    (tmp_path / "check.c").write_text(missing_feature(Isa("x86_64", ("avx2", "avx_vnni"))))
    link([tmp_path / "check.c"], tmp_path / "check.so", ISA)
    library = ctypes.CDLL(str(tmp_path / "check.so"))
    library.pared_missing_feature.restype = ctypes.c_char_p
    assert library.pared_missing_feature() == b"avx_vnni"


@pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")
def test_without_a_system_compiler_ziglang_links(tmp_path, x, monkeypatch):
    monkeypatch.setattr("pared.backends.cpu.native.link.shutil.which", lambda name: None)
    model = engine.load(written(tmp_path, toy.chain()), OPTIONS, 2)
    np.testing.assert_array_equal(model.run({"x": x})[OUT], toy.expected(x))


def test_a_misaligned_arena_is_refused_by_its_number(folder, x):
    library = ctypes.CDLL(str(folder / "model.so"))
    arena, out = np.zeros(library.pared_arena_bytes() + 128, np.uint8), np.zeros_like(x)
    start = arena.ctypes.data + -arena.ctypes.data % 64
    ports = [(ctypes.c_void_p * 1)(array.ctypes.data) for array in (x, out)]
    assert library.pared_run(*ports, ctypes.c_void_p(start + 4)) == 2
    assert library.pared_run(*ports, None) == 1
    assert library.pared_run(*ports, ctypes.c_void_p(start)) == 0
