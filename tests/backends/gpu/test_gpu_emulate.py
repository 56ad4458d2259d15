"""The device that is none: functions of one kernel and of several, launched, recorded, in lanes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import ARCH, model_of

from pared.backends.gpu.emulate import EmulatedDevice, describe
from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.module import Calls, calls_of, relax_module
from pared.backends.gpu.place import make_programs
from pared.backends.gpu.program import DeviceFunction, Kernel, Program, Tensor
from pared.backends.gpu.sizes import calls_of_sizes
from pared.backends.reference import evaluate
from pared.compiler.ir.export import signature_of

_SCRATCH = Tensor("scratch", (64,), "float32")
# Products are two layers, so that programs have steps before and behind.
_BODY = "a = MatMul(x, w)\n b = Add(a, c)\n s = Softmax(b)\n y = Mul(s, x)"
_MODEL = model_of(
    _BODY, "float[N,6] x", "float[N,6] y", w=np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32),
    c=np.arange(6, dtype=np.float32),
)  # fmt: skip


def in_two(name: str, parameters: tuple[str, ...]) -> DeviceFunction:
    """Return a function as two kernels: the first takes its first input, the second takes the others."""
    ones = (1, 1, 1)
    kernels = (
        Kernel(f"{name}_sums", 0, ones, ones, 0, (parameters[0], "scratch")),
        Kernel(f"{name}_rest", 0, ones, ones, 0, ("scratch", *parameters[:0:-1])),
    )
    return DeviceFunction(parameters, kernels, {"scratch": _SCRATCH})


def split(sizes: tuple[int, ...]) -> tuple[tuple[Program, ...], bytes, str]:
    """Return programs whose functions all are two kernels."""
    calls, batched = calls_of_sizes(_MODEL, sizes)
    functions = {name: f for size in calls for name, f in size.functions.items()}
    found = {name: in_two(name, tuple(p.name for p in f.params)) for name, f in functions.items()}
    programs, weights = make_programs(calls, found, signature_of(_MODEL), ARCH, batched=batched)
    return programs, weights, describe(functions, found)


def test_functions_of_two_kernels_run_one_by_one_recorded_and_in_lanes() -> None:
    programs, weights, text = split((1, 4))
    executable = GpuExecutable(programs, weights, [b"", b""], EmulatedDevice(text, ARCH))
    rng = np.random.default_rng(1)
    for rows in (1, 9, 9, 9, 2):
        x = {"x": rng.normal(size=(rows, 6)).astype(np.float32)}
        np.testing.assert_allclose(executable.run(x)["y"], evaluate(_MODEL, x)["y"], rtol=1e-5, atol=1e-6)


def one_function() -> tuple[Calls, str, EmulatedDevice]:
    calls = calls_of(relax_module(model_of("y = Mul(a, b)", "float[8] a, float[8] b", "float[8] y")))
    ((name, function),) = calls.functions.items()
    found = {name: in_two(name, tuple(p.name for p in function.params))}
    return calls, name, EmulatedDevice(describe(calls.functions, found), ARCH)


def filled(device: EmulatedDevice, value: float) -> int:
    address = device.allocate(32)
    device.upload(address, np.full(8, value, np.float32).view(np.uint8))
    return address


def read(device: EmulatedDevice, address: int) -> list[float]:
    data = np.zeros(32, np.uint8)
    device.fetch(data, address)
    return list(data.view(np.float32))


def test_the_function_runs_at_its_last_kernel_and_leaves_scratch_alone() -> None:
    _, name, device = one_function()
    handles = device.functions(b"", [f"{name}_sums", f"{name}_rest"])
    a, b, y, scratch = (filled(device, value) for value in (2, 3, 0, 7))
    ones = (1, 1, 1)
    device.launch(handles[f"{name}_sums"], ones, ones, 0, [a, scratch])
    assert read(device, y) == [0] * 8
    device.launch(handles[f"{name}_rest"], ones, ones, 0, [scratch, y, b])
    assert read(device, y) == [6] * 8
    assert read(device, scratch) == [7] * 8


def test_a_record_of_two_kernels_can_be_replayed_between_other_launches() -> None:
    _, name, device = one_function()
    first, last = device.functions(b"", [f"{name}_sums", f"{name}_rest"]).values()
    a, b, other, y, z = (filled(device, value) for value in (2, 3, 5, 0, 0))
    ones = (1, 1, 1)
    device.begin_capture()
    device.launch(first, ones, ones, 0, [a, a])
    device.launch(last, ones, ones, 0, [a, y, b])
    graph = device.end_capture()
    assert read(device, y) == [0] * 8
    device.launch(first, ones, ones, 0, [other, a])
    device.launch(last, ones, ones, 0, [a, z, b])
    device.replay(graph)
    assert (read(device, y), read(device, z)) == ([6] * 8, [15] * 8)
