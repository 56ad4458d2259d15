"""The branches of the benchmark that only a GPU takes, run through on a fake driver and a fake `torch.cuda`.

Nothing is computed on such a device, so every result is called right; that a wrong one is not measured is
tested in tests/bench.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")
pytest.importorskip("torch", reason="torch is not installed")

import torch
from fake_driver import Fake
from fake_library import FakeLibrary

from pared.bench.gpu import candidate, check, kernels, machine, own, peers, power, step
from pared.bench.gpu.build import build
from pared.bench.gpu.workloads import WORKLOADS

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH"),
    # Of torch's own compiler, on its import.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return 2.0


class Graph:
    def replay(self) -> None:
        pass


@contextlib.contextmanager
def nothing(*args: object) -> Iterator[None]:
    yield


def on_cpu(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*args: object, **more: object) -> torch.Tensor:
        more.pop("pin_memory", None)
        if more.get("device") == "cuda":
            del more["device"]
        return make(*args, **more)

    return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> Fake:
    """Let torch see a device that is this CPU."""
    fake.devices("sm_90")
    fake.event_ms(0.5)
    cuda = {
        "synchronize": lambda: None, "Event": Event, "CUDAGraph": Graph, "stream": nothing, "graph": nothing,
        "Stream": lambda: SimpleNamespace(cuda_stream=0),
    }  # fmt: skip
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for module in (candidate, check, peers):
        monkeypatch.setattr(module, "device", lambda: "cpu")
    for module in (candidate, kernels, own, peers, step):
        monkeypatch.setattr(module, "on_gpu", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, on_cpu(getattr(torch, name)))
    compile_ = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda module, mode, fullgraph: compile_(module, backend="eager", fullgraph=fullgraph),
    )
    monkeypatch.setattr(step, "lock_timing", lambda file: True)
    monkeypatch.setattr(step, "judge", lambda what, got, want, kept: check.Check(0.0, 1.0, "nothing"))
    return fake


def run(name: str, batch: int, folder: Path) -> dict[str, dict[str, object]]:
    record = step.Record(folder / "step.json")
    step.run_step(WORKLOADS[name], batch, step.Options(folder, folder, {}, tiny=True), record)
    record.note("done")
    return json.loads((folder / "step.json").read_text())["candidates"]


def program(name: str, precision: str, batch: int, folder: Path, fake: Fake) -> Path:
    made = build(WORKLOADS[name], precision, batch, "sm_90", folder, tiny=True)
    for one in json.loads((made / "model.json").read_text())["programs"]:
        for launch in one["launches"]:
            fake.kernel(launch["kernel"], len(launch["buffers"]), lambda *addresses: None)
    return made


def test_a_program_is_replayed_timed_and_compared(gpu: Fake, tmp_path: Path) -> None:
    program("gemm", "int8", 1, tmp_path, gpu)
    found = run("gemm", 1, tmp_path)
    assert found["pared int8"]["state"] == "measured"
    assert found["pared int8"]["device_ms"] == pytest.approx(0.5)
    assert found["torch.compile"]["state"] == "measured", found["torch.compile"]
    assert found["torch.compile"]["device_ms"] == 2.0
    assert found["torch.compile"]["over"]["pared int8"]["device"] == pytest.approx(4.0)
    assert found["torch.compile"]["mode"] == "max-autotune"
    assert gpu.calls("cuGraphLaunch") > 10


def test_the_machine_says_which_library_it_has(library: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.describe()["versions"]["cuBLASLt"] == "13.10.0"
    monkeypatch.setenv("PARED_CUBLASLT", "off")
    assert "cuBLASLt" not in machine.describe()["versions"]


def test_what_a_network_is_compared_with_is_named_when_missing(gpu: Fake, tmp_path: Path) -> None:
    found = run("resnet50", 2, tmp_path)
    assert "CUDAExecutionProvider" in str(found["onnxruntime CUDA"]["reason"])
    assert "tensorrt" in str(found["TensorRT"]["reason"])
    assert "it was not compiled here" in str(found["pared fp16"]["reason"])
    assert found["torch eager"]["state"] == "measured"


def test_energy_and_kernels_that_cannot_be_had_are_null_with_a_reason(
    gpu: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARED_NVML", "libno-such-thing.so")
    place = power.bus_id()
    assert place.count(":") == 2
    assert "libno-such-thing" in str(power.measure_energy(place, lambda: 0, lambda: 0, 1.0, 0.6)["reason"])
    assert kernels.kernel_times(lambda: np.zeros(1))["kernel_ms"] is None
