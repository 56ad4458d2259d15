"""`pared doctor`: clean here, and loud when versions do not fit together."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from cli_runner import Run

from pared.compiler import doctor
from pared.compiler.onnx_support import OnnxSupport


def test_a_sound_installation_exits_0(pared: Run) -> None:
    done = pared("doctor", "--json")
    assert (done.code, done.json["clashes"], done.json["ok"]) == (0, [], True)


def test_the_probe_finds_what_onnxruntime_loads() -> None:
    report = doctor.examine()
    assert report.onnx_support is not None
    loaded, newest = report.onnx_support.onnxruntime_ir_version, report.onnx_support.onnx_ir_version
    assert loaded is not None
    assert loaded >= 10
    assert report.onnx_support.written_ir_version == min(loaded, newest)


def test_a_core_package_of_a_wrong_version_is_a_clash(monkeypatch: pytest.MonkeyPatch, pared: Run) -> None:
    real = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda n: "1.26.4" if n == "numpy" else real(n))
    done = pared("doctor")
    assert done.code == 1
    assert "[version-clash] pared needs numpy" in done.out
    assert "numpy 1.26.4 is installed" in done.out.replace("\n", " ")


def test_a_missing_core_package_is_a_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda n: None if n == "pyyaml" else real(n))
    assert [c.reason for c in doctor.examine().clashes] == ["package-missing"]


def test_every_extra_is_named_with_all_that_it_installs() -> None:
    root = Path(__file__).parents[3]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name: set(packages) for name, (_, packages) in doctor._EXTRAS.items()}
    assert named.keys() == extras.keys(), "compiler/doctor.py tells what each extra adds"
    for name in extras.keys() - {"dev"}:
        assert named[name] == {re.match(r"[\w.-]+", need)[0] for need in extras[name]}, name


def test_a_missing_extra_is_no_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda n: None if n == "openvino" else real(n))
    report = doctor.examine()
    assert report.ok
    assert [e.installed for e in report.extras if e.name == "openvino"] == [False]


def test_a_package_that_cannot_be_imported_is_a_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        if name == "onnxruntime":
            raise ImportError("numpy.core.multiarray failed to import")
        return None

    monkeypatch.setattr(doctor.importlib, "import_module", refuse)
    report = doctor.examine()
    assert [c.reason for c in report.clashes] == ["import-fails"]
    assert report.onnx_support is None


@pytest.mark.parametrize(
    ("support", "reason"),
    [
        (OnnxSupport(14, 9, 9, 28, 26), "ir-version-clash"),
        (OnnxSupport(14, 13, 13, 28, 19), "opset-clash"),
        (OnnxSupport(14, None, None, 28, 26), "ir-version-clash"),
    ],
)
def test_an_onnxruntime_too_old_for_our_files_is_a_clash(
    support: OnnxSupport, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "probe_onnx_support", lambda: support)
    assert [c.reason for c in doctor.examine().clashes] == [reason]


def test_what_gpu_targets_need_is_told_too(pared: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pared.compiler.machine.cuda_devices", lambda: ())
    monkeypatch.setenv("PATH", "/nowhere")
    shown = " ".join(pared("doctor").out.split())
    assert "GPUs none that a CUDA driver shows; compiling for GPUs needs none" in shown
    assert "nvcc not on the PATH; targets gpu-cuda-* are compiled with it" in shown


def test_gpus_and_nvcc_that_are_here_are_named(
    pared: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "nvcc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setattr("pared.compiler.machine.cuda_devices", lambda: ("sm_90", "sm_80"))
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = pared("doctor", "--json").json["machine"]
    assert isinstance(machine, dict)
    assert (machine["gpus"], machine["cuda_compiler"]) == (["sm_90", "sm_80"], str(compiler))
