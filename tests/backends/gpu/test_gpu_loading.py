"""Which device runs an artifact: chosen by index, by what fits, or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_driver import IMAGE, WEIGHT_BYTES, Fake, affine, rows, teach, want

import pared.backends.gpu.loading as loading
from pared.backends.gpu.backend import GpuBackend
from pared.backends.gpu.driver import CudaDevice
from pared.backends.gpu.program import CODE, PROGRAM, Programs
from pared.backends.gpu.program import WEIGHTS as WEIGHT_FILE
from pared.compiler.cuda import cuda_devices
from pared.compiler.errors import ArtifactError, MissingTool, ParedError, PipelineError, TargetError
from pared.compiler.machine import find_machine
from pared.targets import load_target


@pytest.fixture
def folder(fake: Fake, tmp_path: Path) -> Path:
    teach(fake, 1)
    place = tmp_path / "payload"
    place.mkdir()
    (place / PROGRAM).write_text(Programs(programs=(affine(),)).model_dump_json())
    (place / WEIGHT_FILE).write_bytes(WEIGHT_BYTES)
    (place / CODE[0]).write_bytes(IMAGE)
    return place


def index_of(model: loading.GpuExecutable) -> int:
    assert isinstance(model._device, CudaDevice)
    return model._device.index


def test_a_payload_runs_on_the_first_device_that_takes_its_code(fake: Fake, folder: Path) -> None:
    fake.devices("sm_80", "sm_90", "sm_90")
    model = loading.load(folder)
    assert index_of(model) == 1
    assert np.array_equal(model.run({"x": rows(1)})["y"], want(rows(1)))


def test_the_device_is_chosen_by_argument_then_by_variable(
    fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.devices("sm_90", "sm_90", "sm_90")
    monkeypatch.setenv("PARED_CUDA_DEVICE", "2")
    assert index_of(loading.load(folder)) == 2
    assert index_of(loading.load(folder, 1)) == 1
    assert index_of(loading.load(folder, "1")) == 1


def test_no_device_that_fits_is_refused_with_both_names(fake: Fake, folder: Path) -> None:
    fake.devices("sm_80", "sm_89")
    with pytest.raises(TargetError, match="compiled for sm_90, this device is sm_80"):
        loading.load(folder)
    with pytest.raises(TargetError, match="compiled for sm_90, this device is sm_89"):
        loading.load(folder, 1)
    assert fake.live() == {}


@pytest.mark.parametrize("text", ["first", "-1", "1.0"])
def test_what_is_no_index_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(PipelineError, match="no index"):
        loading.load(folder, text)


def test_a_driver_that_fails_is_not_passed_over(fake: Fake, folder: Path) -> None:
    fake.fail("cuInit", 1, 999)
    fake.fail("cuInit", 1, 999)
    fake.fail("cuInit", 1, 999)
    with pytest.raises(ParedError, match="cuInit"):
        loading.load(folder)


def test_without_any_device_an_emulation_is_asked_for(
    fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    fake.devices()
    monkeypatch.setattr(loading, "emulated", _stop)
    with pytest.raises(InterruptedError, match="sm_90"):
        loading.load(folder)


def _stop(folder: Path, arch: str) -> None:
    raise InterruptedError(arch)


def test_an_emulation_can_be_asked_for_beside_a_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    monkeypatch.setattr(loading, "emulated", _stop)
    with pytest.raises(InterruptedError):
        loading.load(folder, "emulated")


def test_an_emulation_without_tvm_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingTool, match="pip install"):
        loading.load(folder, "emulated")


def test_what_was_compiled_for_another_chip_is_checked_by_emulation(
    fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact for sm_90 can be made on a machine with an sm_80; who only loads it there is refused."""
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    fake.devices("sm_80")
    monkeypatch.setattr(loading, "emulated", _stop)
    backend = GpuBackend()
    with pytest.raises(TargetError, match="sm_80"):
        backend.load(folder, "tvm", {"arch": "sm_90"}, None)
    backend._compiled.add("sm_90")
    with pytest.raises(InterruptedError):
        backend.load(folder, "tvm", {"arch": "sm_90"}, None)


@pytest.mark.parametrize("text", ["{", '{"version": 2, "programs": []}', '{"version": 99, "programs": [P]}'])
def test_damaged_programs_are_refused(folder: Path, text: str) -> None:
    (folder / PROGRAM).write_text(text.replace("P", affine().model_dump_json()))
    with pytest.raises(ArtifactError) as caught:
        loading.load(folder)
    assert caught.value.reason == "gpu-payload"
    assert "\n" not in caught.value.message


def test_weights_that_are_cut_short_are_refused(folder: Path) -> None:
    (folder / WEIGHT_FILE).write_bytes(WEIGHT_BYTES[:-1])
    with pytest.raises(ArtifactError, match=r"holds \d+ bytes, the program reads \d+") as caught:
        loading.load(folder)
    assert caught.value.reason == "gpu-payload"


def test_a_program_of_the_format_before_runs(folder: Path) -> None:
    text = (folder / PROGRAM).read_text().replace('"version":3', '"version":2').replace(',"product":null', "")
    assert '"version":2' in text
    assert "product" not in text
    (folder / PROGRAM).write_text(text)
    assert np.array_equal(loading.load(folder).run({"x": rows(1)})["y"], want(rows(1)))


@pytest.mark.parametrize("version", [1, 4])
def test_another_format_is_named_whatever_it_holds(folder: Path, version: int) -> None:
    (folder / PROGRAM).write_text(f'{{"version": {version}, "launches": []}}')
    with pytest.raises(ArtifactError, match=f"format {version}, this is 3"):
        loading.load(folder)


_LIGHT = """
import sys
from pathlib import Path
import numpy as np
from pared.backends.gpu.backend import GpuBackend
model = GpuBackend().load(Path({folder!r}), "tvm", {{"arch": "sm_90"}}, None)
model.run({{"x": np.ones((3, 8), np.float32)}})
model.run_dlpack({{"x": np.ones((3, 8), np.float32)}})
heavy = [name for name in ("tvm", "onnx", "onnx_ir", "onnxruntime", "torch") if name in sys.modules]
assert not heavy, heavy
"""


def test_running_needs_numpy_pydantic_and_the_driver_alone(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", _LIGHT.format(folder=str(folder))], check=True)


def test_devices_are_asked_for_once(fake: Fake) -> None:
    fake.devices("sm_90", "sm_86")
    assert [cuda_devices() for _ in range(3)] == [("sm_90", "sm_86")] * 3
    assert fake.calls("cuDeviceGetCount") == 1
    assert find_machine().gpus == ("sm_90", "sm_86")


def test_a_target_runs_where_a_device_takes_its_code(fake: Fake) -> None:
    fake.devices("sm_86")
    machine = find_machine()
    found = {
        name: load_target(name).runs_here(machine).ok for name in ("gpu-cuda-sm80", "gpu-cuda-sm90", "cpu")
    }
    assert found == {"gpu-cuda-sm80": True, "gpu-cuda-sm90": False, "cpu": True}
    assert load_target("gpu-cuda-sm80").is_for(machine)
    assert not load_target("gpu-cuda-sm90").is_for(machine)


def test_a_driver_that_is_named_and_missing_is_not_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARED_CUDA_DRIVER", "/nowhere/libcuda.so.1")
    with pytest.raises(MissingTool, match=r"/nowhere/libcuda\.so\.1"):
        loading.load(folder)
