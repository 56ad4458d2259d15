"""What the driver may do to an executable: no memory, no device, lost contexts, threads and forks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fake_driver import HERE, WEIGHT_BYTES, Fake, affine, loaded, rows, teach, want

from pared.backends.gpu.driver import open_driver
from pared.backends.gpu.executable import GpuExecutable
from pared.compiler.cuda import cuda_devices
from pared.compiler.errors import ArtifactError, MissingTool, ParedError, TargetError


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_the_fake_has_the_prototypes_of_the_driver(tmp_path: Path) -> None:
    command = [
        "nvcc",
        "-DWITH_HEADER",
        "-Xcompiler",
        "-Wall,-Werror",
        "-c",
        HERE / "fake_cuda.c",
        "-o",
        "x.o",
    ]
    subprocess.run(command, check=True, cwd=tmp_path)


@pytest.mark.parametrize("batched", [True, False])
def test_a_program_runs_and_leaves_nothing(fake: Fake, batched: bool) -> None:
    model = loaded(fake, 1, batched=batched)
    x = rows(1)
    assert np.array_equal(model.run({"x": x})["y"], want(x))
    model.close()
    assert fake.live() == {}


def test_working_memory_is_taken_once(fake: Fake) -> None:
    model = loaded(fake, 1, 4)
    taken = fake.live()
    for count in (1, 3, 9):
        model.run({"x": rows(count)})
    assert {kind: fake.live()[kind] for kind in ("device", "host")} == {
        k: taken[k] for k in ("device", "host")
    }


def test_launches_are_recorded_when_they_come_again_and_replayed(fake: Fake) -> None:
    model = loaded(fake, 1)
    for seed in range(4):
        assert np.array_equal(model.run({"x": rows(1, seed)})["y"], want(rows(1, seed)))
    assert (fake.calls("cuLaunchKernel"), fake.calls("cuGraphLaunch")) == (4, 3)


# Whatever call fails while a model is loaded, it fails with a reason and nothing stays behind.
_LOADING = [
    ("cuMemAlloc_v2", nth) for nth in range(1, 7)
] + [("cuMemHostAlloc", nth) for nth in range(1, 5)] + [
    ("cuStreamCreate", 1), ("cuModuleLoadData", 1), ("cuModuleGetFunction", 2), ("cuMemcpyHtoDAsync_v2", 1),
    ("cuStreamSynchronize", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "nth"), _LOADING)
@pytest.mark.parametrize("code", [2, 999])
def test_loading_that_fails_leaks_nothing(fake: Fake, name: str, nth: int, code: int) -> None:
    open_driver().close()
    fake.fail(name, nth, code)
    with pytest.raises(ParedError, match=name) as caught:
        loaded(fake, 1, 4)
    assert caught.value.reason == ("cuda-out-of-memory" if code == 2 else "cuda-failed")
    assert caught.value.next_step
    assert fake.live() == {}


def test_every_allocation_of_loading_is_among_those_that_fail_above(fake: Fake) -> None:
    loaded(fake, 1, 4)
    counts = {name: fake.calls(name) for name in ("cuMemAlloc_v2", "cuMemHostAlloc")}
    assert counts == {"cuMemAlloc_v2": 6, "cuMemHostAlloc": 4}


def test_a_full_device_says_how_much_was_needed(fake: Fake) -> None:
    fake.memory(300)
    with pytest.raises(ParedError, match="for 384 bytes"):
        loaded(fake, 4)
    assert fake.live() == {}


def test_without_a_driver_the_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARED_CUDA_DRIVER", "/nowhere/libcuda.so.1")
    assert cuda_devices() == ()
    with pytest.raises(MissingTool, match="/nowhere/libcuda") as caught:
        open_driver()
    assert "PARED_CUDA_DEVICE=emulated" in caught.value.next_step


def test_a_driver_without_devices_says_so(fake: Fake) -> None:
    fake.devices()
    assert cuda_devices() == ()
    with pytest.raises(TargetError, match="NO_DEVICE") as caught:
        open_driver()
    assert caught.value.reason == "cuda-device-missing"


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_without_a_device_is_refused_with_the_count(fake: Fake, index: int) -> None:
    fake.devices("sm_90", "sm_80")
    with pytest.raises(TargetError, match=f"device {index} was asked for, 2 are here"):
        open_driver(index)
    assert cuda_devices() == ("sm_90", "sm_80")
    assert fake.live() == {}


@pytest.mark.parametrize(("code", "chip"), [("sm_90", "sm_80"), ("sm_80", "sm_90"), ("sm_89", "sm_80")])
def test_code_for_another_chip_is_refused_with_both_names(fake: Fake, code: str, chip: str) -> None:
    fake.devices(chip)
    with pytest.raises(TargetError, match=rf"compiled for {code}, this device is {chip}") as caught:
        GpuExecutable(affine(arch=code), b"", [b"", b""], open_driver())
    assert caught.value.reason == "gpu-arch-mismatch"
    assert fake.live() == {}


def test_code_for_an_older_chip_of_the_generation_runs(fake: Fake) -> None:
    fake.devices("sm_86")
    device = open_driver()
    model = GpuExecutable(affine(arch="sm_80"), bytes(256 + 32), [b"\x7fELF", b""], device)
    assert device.arch == "sm_86"
    model.close()


def test_a_driver_without_a_function_says_which(fake: Fake) -> None:
    device = open_driver()
    with pytest.raises(ParedError, match="has no cuNonsense"):
        device._call("cuNonsense")


# --- failures while running


@pytest.mark.parametrize("name", ["cuMemcpyHtoDAsync_v2", "cuGraphLaunch", "cuMemcpyDtoHAsync_v2"])
def test_a_run_that_fails_leaves_the_next_one_alone(fake: Fake, name: str) -> None:
    model = loaded(fake, 1, 2)
    model.run({"x": rows(9)})
    fake.fail(name, 3, 999)
    with pytest.raises(ParedError, match=name):
        model.run({"x": rows(9)})
    for count in (3, 9):
        assert np.array_equal(model.run({"x": rows(count, 5)})["y"], want(rows(count, 5)))


def test_a_fault_of_a_kernel_loses_the_device_and_not_the_process(fake: Fake) -> None:
    fake.devices("sm_90", "sm_90")
    model, other = loaded(fake, 1, device=open_driver(1)), loaded(fake, 1)
    fake.fail("cuStreamSynchronize", 1, 700)
    for _ in range(2):
        with pytest.raises(ParedError, match=r"device 1 is lost .*ILLEGAL_ADDRESS") as caught:
            model.run({"x": rows(1)})
        assert caught.value.reason == "cuda-context-lost"
        assert "new process" in caught.value.next_step
    with pytest.raises(ParedError, match="device 1 is lost"):
        open_driver(1)
    model.close()
    assert np.array_equal(other.run({"x": rows(1)})["y"], want(rows(1)))
    other.close()


@pytest.mark.parametrize(
    "name", ["cuStreamBeginCapture_v2", "cuLaunchKernel", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
)
def test_where_recording_fails_kernels_are_launched_one_by_one(fake: Fake, name: str) -> None:
    model = loaded(fake, 1)
    model.run({"x": rows(1)})
    fake.fail(name, 1, 901)
    for seed in range(2):
        assert np.array_equal(model.run({"x": rows(1, seed)})["y"], want(rows(1, seed)))
    assert fake.calls("cuGraphLaunch") == 0
    assert name in model.notes[0]
    model.close()
    assert fake.live() == {}


def test_recording_without_memory_is_refused(fake: Fake) -> None:
    model = loaded(fake, 1)
    model.run({"x": rows(1)})
    fake.fail("cuGraphInstantiateWithFlags", 1, 2)
    with pytest.raises(ParedError, match="OUT_OF_MEMORY"):
        model.run({"x": rows(1)})
    assert np.array_equal(model.run({"x": rows(1)})["y"], want(rows(1)))


def test_more_shared_memory_than_usual_is_asked_for_once(fake: Fake) -> None:
    teach(fake, 1)
    launches = tuple(step.model_copy(update={"shared_bytes": 60_000}) for step in affine().launches)
    program = affine().model_copy(update={"launches": launches})
    model = GpuExecutable(program, WEIGHT_BYTES, [b"\x7fELF", b""], open_driver())
    for seed in range(3):
        assert np.array_equal(model.run({"x": rows(1, seed)})["y"], want(rows(1, seed)))
    assert fake.calls("cuFuncSetAttribute") == 2


def test_machine_code_that_does_not_load_is_refused(fake: Fake) -> None:
    with pytest.raises(TargetError, match="cuModuleLoadData"):
        GpuExecutable(affine(), bytes(256 + 32), [b"\0", b""], open_driver())
    assert fake.live() == {}


def test_closing_twice_is_fine_and_running_then_is_refused(fake: Fake) -> None:
    model = loaded(fake, 1)
    model.close()
    model.close()
    with pytest.raises(ArtifactError, match="closed"):
        model.run({"x": rows(1)})
    assert fake.live() == {}


def test_closing_goes_on_where_freeing_fails(fake: Fake) -> None:
    model = loaded(fake, 1)
    model.run({"x": rows(1)})
    fake.fail("cuModuleUnload", 1, 999)
    model.close()
    assert fake.live() == {"modules": 1}


def test_the_context_of_another_library_stays_current(fake: Fake) -> None:
    """Torch works on the device whose context is current."""
    fake.devices("sm_90", "sm_90")
    torch = open_driver(1)
    torch.synchronize()
    assert fake.current() == 1
    model = loaded(fake, 1, device=open_driver(0))
    assert np.array_equal(model.run({"x": rows(1)})["y"], want(rows(1)))
    model.close()
    assert fake.current() == 1


def test_threads_take_turns(fake: Fake) -> None:
    model = loaded(fake, 1, 4)
    samples = [rows(1 + seed % 7, seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda x: model.run({"x": x})["y"], samples))
    assert all(np.array_equal(got, want(x)) for got, x in zip(results, samples, strict=True))


_FORKED = """
import os, sys, warnings
sys.path.insert(0, {here!r})
from fake_driver import Fake, loaded, rows
from pathlib import Path
fake = Fake(Path(os.environ["PARED_CUDA_DRIVER"]))
model = loaded(fake, 1)
warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    from pared.backends.gpu.driver import open_driver
    from pared.compiler.errors import ParedError
    reasons, said = [], ""
    for work in (lambda: model.run({{"x": rows(1)}}), open_driver):
        try:
            work()
        except ParedError as err:
            reasons.append(err.reason)
            said = said or err.message
    model.close()
    os._exit(7 if reasons == ["cuda-forked"] * 2 and "was loaded before" in said else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
model.run({{"x": rows(1)}})
model.close()
assert fake.live() == {{}}, fake.live()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_is_told_to_spawn_and_its_parent_goes_on(fake: Fake) -> None:
    """In a process of its own: forking one with threads is what Python warns of."""
    subprocess.run([sys.executable, "-c", _FORKED.format(here=str(HERE))], check=True)
