"""Device code: what nvcc makes of it, how it is launched, and what an artifact refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import ARCH, compiled, model_of, quantized_conv

from pared.backends.gpu.driver import open_driver
from pared.backends.gpu.emulate import EmulatedDevice
from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.loading import load
from pared.backends.gpu.nvcc import compile_cubin, compile_ptx
from pared.compiler.cuda import cuda_devices
from pared.compiler.errors import ArtifactError, MissingTool, ParedError, TargetError

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")


def residual() -> object:
    return model_of(
        "ar = DequantizeLinear(a, s)\n br = DequantizeLinear(b, s)\n y = Add(ar, br)",
        "int8[1,64] a, int8[1,64] b", "float[1,64] y", s=np.float32(0.3),
    )  # fmt: skip


@needs_nvcc
def test_products_and_sums_behind_quantized_layers_are_not_contracted() -> None:
    """Image 1 holds what must round as the model says, and is compiled so."""
    _, _, kernels, _ = compiled(residual())
    assert not kernels.sources[0]
    source = 'extern "C" __global__ void f(float *x) { x[0] = x[1] * x[2] + x[3]; }'
    assert "fma.rn.f32" in compile_ptx(source, ARCH, contract=True)
    assert "fma.rn.f32" not in compile_ptx(source, ARCH, contract=False)


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
def test_machine_code_is_made_for_every_chip(arch: str) -> None:
    _, _, kernels, _ = compiled(quantized_conv(np.random.default_rng(0), 3))
    assert compile_cubin(kernels.sources[1], arch, contract=False).startswith(b"\x7fELF")


@needs_nvcc
def test_what_nvcc_says_reaches_the_user() -> None:
    with pytest.raises(ParedError, match="nonsense") as caught:
        compile_cubin("nonsense;", ARCH, contract=True)
    assert caught.value.reason == "nvcc-failed"


def test_without_nvcc_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingTool, match="CUDA"):
        compile_cubin("", ARCH, contract=True)


def test_every_buffer_of_a_launch_has_a_place_and_none_overlaps() -> None:
    program, weights, _, _ = compiled(quantized_conv(np.random.default_rng(0), 3))
    assert program.weight_bytes == len(weights)
    assert all(index < len(program.places) for launch in program.launches for index in launch.buffers)
    assert {p.where for p in program.places} == {"input", "output", "arena", "weights"}


def test_code_for_another_generation_is_refused_with_both_names() -> None:
    program, weights, _, emulation = compiled(residual())
    with pytest.raises(TargetError, match=r"sm_90.*sm_80"):
        GpuExecutable(program, weights, [b"", b""], EmulatedDevice(emulation, "sm_80"))


def test_a_damaged_payload_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"version": 2, "programs": [{}]}')
    with pytest.raises(ArtifactError, match="arch"):
        load(tmp_path)


@pytest.mark.skipif(bool(cuda_devices()), reason="a CUDA device is here")
def test_without_a_device_the_driver_says_so() -> None:
    with pytest.raises((MissingTool, TargetError, ParedError)):
        open_driver()
