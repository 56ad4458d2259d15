"""The way from a graph to its kernels on devices that are none: its own loops, and thread by thread."""

from __future__ import annotations

import shutil

import onnx_ir as ir
from gpu_models import ARCH, compiled

from pared.backends.gpu.emulate import EmulatedDevice
from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.simulate import SimulatedDevice, images


def devices(model: ir.Model) -> tuple[list[str], list[GpuExecutable]]:
    """Return a model's functions, and it on an emulated and, where g++ is, a simulated device."""
    program, weights, kernels, emulation = compiled(model)
    found = [GpuExecutable(program, weights, [b"", b""], EmulatedDevice(emulation, ARCH))]
    if shutil.which("g++"):
        found.append(GpuExecutable(program, weights, images(kernels.sources), SimulatedDevice(ARCH)))
    return list(kernels.functions), found
