"""The way from a graph to kernels that run thread by thread on this CPU."""

from __future__ import annotations

import onnx_ir as ir
from gpu_models import ARCH, compiled

from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.simulate import SimulatedDevice, images


def simulated(model: ir.Model) -> GpuExecutable:
    """Return a model whose generated CUDA C++ runs on a simulated device."""
    program, weights, kernels, _ = compiled(model)
    return GpuExecutable(program, weights, images(kernels.sources), SimulatedDevice(ARCH))
