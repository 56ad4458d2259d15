"""The way from a graph to its kernels on devices that are none: its own loops, and thread by thread."""

from __future__ import annotations

import shutil

import numpy as np
import onnx_ir as ir
import pytest
from gpu_models import ARCH, compiled

from pared.backends.gpu.emulate import EmulatedDevice
from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.simulate import SimulatedDevice, images
from pared.backends.reference import derive_bound, evaluate
from pared.compiler.backend import Arrays

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")


def devices(model: ir.Model) -> tuple[list[str], list[GpuExecutable]]:
    """Return a model's functions, and it on an emulated and, where g++ is, a simulated device."""
    program, weights, kernels, emulation = compiled(model)
    found = [GpuExecutable(program, weights, [b"", b""], EmulatedDevice(emulation, ARCH))]
    if shutil.which("g++"):
        found.append(GpuExecutable(program, weights, images(kernels.sources), SimulatedDevice(ARCH)))
    return list(kernels.functions), found


def functions_within_bound(model: ir.Model, x: Arrays) -> list[str]:
    """Return a model's functions; what they compute is within the reference's bound on every device."""
    names, found = devices(model)
    want, bounds = evaluate(model, x), derive_bound(model, [x], seed=0)
    for device in found:
        got = device.run(x)
        for name, bound in bounds.items():
            assert bound.accepts(got[name], want[name]), (name, device)
    return names


def exact_functions(model: ir.Model, x: Arrays) -> list[str]:
    """Return a model's functions; what they compute is what the reference does on every device."""
    names, found = devices(model)
    want = evaluate(model, x)
    for device in found:
        got = device.run(x)
        for name, array in want.items():
            assert np.array_equal(got[name], array), (name, device)
    return names
