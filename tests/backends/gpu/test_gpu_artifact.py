"""An artifact from file to run, batches and measurement: emulated, and on a driver that is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")
if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on the PATH", allow_module_level=True)

import onnx
from fake_driver import Fake

import pared
from pared.backends.gpu.executable import GpuExecutable
from pared.compiler.cuda import cuda_devices
from pared.compiler.driver import batched
from pared.compiler.errors import ParedError, TargetError
from pared.compiler.records import Origin
from pared.compiler.run_file import run_file

W = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)


def compiled(folder: Path) -> Path:
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[n,16] x) => (float[n,8] y) { y = MatMul(x, w) }'
    )
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    onnx.save(proto, folder / "m.onnx")
    pared.compile(
        folder / "m.onnx", target="gpu-cuda-sm90", engine="tvm", output=folder / "out",
        engine_options={"batches": "1,4"},
    )  # fmt: skip
    return folder / "out"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("gpu"))


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 16)).astype(np.float32)


def test_batches_of_any_size_run_emulated(artifact: Path) -> None:
    with pared.load(artifact, device="emulated") as model:
        assert model.best_rows == 4
        for count in (1, 3, 9):
            np.testing.assert_allclose(model.run({"x": rows(count)})["y"], rows(count) @ W, rtol=0, atol=1e-5)


@pytest.mark.skipif(bool(cuda_devices()), reason="a CUDA device is here")
def test_files_run_in_batches(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = GpuExecutable.run

    def noted(self: GpuExecutable, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(len(inputs["x"]))
        return run(self, inputs)

    monkeypatch.setattr(GpuExecutable, "run", noted)
    np.savez(tmp_path / "x.npz", x=rows(6))
    run_file(artifact, tmp_path / "x.npz", tmp_path / "y.npz", threads=1, progress=lambda *_: None)
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["y"], rows(6) @ W, rtol=0, atol=1e-5)
    assert sizes == [4, 2]


def test_the_artifact_says_what_has_not_run(artifact: Path) -> None:
    report = json.loads((artifact / "reports" / "gpu.json").read_text())
    assert any("checked by emulation" in note for note in report["notes"])
    assert any("static choice for sm_90; no device timed them" in note for note in report["notes"])
    assert set(report["launches"]) == {"1", "4"}
    assert report["schedules"]


@pytest.mark.skipif(bool(cuda_devices()), reason="a CUDA device is here")
def test_a_batch_that_computes_something_else_is_not_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = GpuExecutable.run

    def wrong(self: GpuExecutable, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = run(self, inputs)
        if len(inputs["x"]) == 4:
            found["y"][3] += 1  # one row only
        return found

    monkeypatch.setattr(GpuExecutable, "run", wrong)
    with pytest.raises(ParedError, match="fails verification in batches of 4"):
        compiled(tmp_path)


@pytest.mark.skipif(bool(cuda_devices()), reason="a CUDA device is here")
def test_batches_too_large_to_check_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "MAX_MACS", 4 * W.size - 1)
    report = json.loads((compiled(tmp_path) / "reports" / "measured.json").read_text())
    assert any("batches of 4 have not run" in note for note in report["notes"])


def test_bench_tells_time_energy_and_roofs_of_the_device(fake: Fake, artifact: Path) -> None:
    fake.event_ms(2.0)
    report = pared.bench(
        artifact, iterations=10, warmup=1, energy_seconds=0.0, footprint=False, peers=[], batch=4
    )
    (own,) = report.candidates
    found = {metric.name: metric for metric in own.metrics}
    assert found["device_time_median"].value == 2.0
    assert found["memory_roof_share"].value
    assert found["compute_roof_share"].value is None
    assert "float" in found["compute_roof_share"].how
    assert all(metric.how and metric.origin is Origin.MEASURED for metric in own.metrics)
    assert report.machine.gpus == ("sm_90",)


@pytest.mark.skipif(bool(cuda_devices()), reason="a CUDA device is here")
def test_bench_refuses_without_the_device(artifact: Path) -> None:
    with pytest.raises(TargetError, match="simulation"):
        pared.bench(artifact)


def test_bench_refuses_on_another_chip(fake: Fake, artifact: Path) -> None:
    fake.devices("sm_80")
    with pytest.raises(TargetError, match=r"sm_90, this machine is .*sm_80"):
        pared.bench(artifact)
    with pytest.raises(TargetError, match="sm_80"):
        pared.load(artifact)
