"""Schedules of one function on a device: each checked against the function itself, then timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...compiler.backend import Array
from ...compiler.errors import ParedError
from .cublaslt import FAILED
from .driver import CudaDevice
from .library import Queue, queued
from .program import DeviceFunction, MatrixProduct, Tensor

if TYPE_CHECKING:
    from tvm import tirx

_ROUNDS, _RUNS, _REPEATS = 5, 4, 10
# Sums in another order, as a share of the greatest value; integers have to be equal.
_TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}
_SEED = 0


@dataclass(frozen=True)
class Trial:
    """A function with its schedules ready to run.

    Attributes:
        function: unscheduled.
        options: name of a schedule -> how its kernels are launched, the function's outputs last.
        handles: of all kernels, by name.
        products: what a library does instead of kernels.
    """

    function: tirx.PrimFunc
    options: Mapping[str, DeviceFunction]
    handles: Mapping[str, int]
    products: Mapping[MatrixProduct, Queue] = field(default_factory=dict)


def run_trial(
    trial: Trial, device: CudaDevice, evaluate: Callable[..., None] | None = None
) -> dict[str, float]:
    """Return the seconds of every schedule that computes what the function does, medians of rounds in turn.

    Args:
        trial: what to run.
        device: where.
        evaluate: computes the function in place on arrays in its order; None compiles it for this CPU.

    Raises:
        ParedError: what the driver says.
    """
    arrays = [_random(tensor) for tensor in tensors_of(trial.function)]
    wanted = [array.copy() for array in arrays]
    (evaluate or _compiled(trial.function))(*wanted)
    with ExitStack() as stack:
        buffers = [_lent(device, array.nbytes, stack) for array in arrays]
        graphs: dict[str, int] = {}
        for name, option in trial.options.items():
            _upload(device, buffers, arrays)
            addresses = _addresses(device, option, buffers, stack)
            try:
                _launch(device, trial, option, addresses)
                if _agrees(device, buffers, wanted):
                    graphs[name] = _recorded(device, trial, option, addresses, stack)
            except ParedError as err:
                if err.reason != FAILED:  # an algorithm that its library does not run is left out
                    raise
        return _timed(device, graphs)


def tensors_of(function: tirx.PrimFunc) -> list[Tensor]:
    """Return a function's buffers in the order of its parameters."""
    return [Tensor(p.name, tuple(int(size) for size in p.ty.shape), str(p.ty.dtype)) for p in function.params]


def _random(tensor: Tensor) -> Array:
    """Return random numbers; whole ones stay small enough for sums."""
    import ml_dtypes  # noqa: F401  (gives NumPy the name bfloat16)

    kind, rng = np.dtype(tensor.dtype), np.random.default_rng(_SEED)
    if kind.kind in "iu" and kind.itemsize == 1:
        limits = np.iinfo(kind)
        return rng.integers(limits.min, limits.max + 1, tensor.shape).astype(kind)
    if kind.kind in "iu":
        return rng.integers(0, 100, tensor.shape).astype(kind)
    if kind.kind == "b":
        return rng.integers(0, 2, tensor.shape).astype(kind)
    return rng.uniform(-1, 1, tensor.shape).astype(kind)


def _compiled(function: tirx.PrimFunc) -> Callable[..., None]:
    import tvm

    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    built = tvm.compile(module, "llvm")["main"]

    def evaluate(*arrays: Array) -> None:
        tensors = [tvm.runtime.tensor(array) for array in arrays]
        built(*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            array[...] = tensor.numpy()

    return evaluate


def _lent(device: CudaDevice, count: int, stack: ExitStack) -> int:
    address = device.lend(count)
    stack.callback(device.take_back, address)
    return address


def _upload(device: CudaDevice, buffers: Sequence[int], arrays: Sequence[Array]) -> None:
    for address, array in zip(buffers, arrays, strict=True):
        device.upload(address, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    device.synchronize()


def _addresses(
    device: CudaDevice, option: DeviceFunction, buffers: Sequence[int], stack: ExitStack
) -> dict[str, int]:
    found = dict(zip(option.parameters, buffers, strict=True))
    return found | {name: _lent(device, tensor.bytes, stack) for name, tensor in option.scratch.items()}


def _launch(device: CudaDevice, trial: Trial, option: DeviceFunction, addresses: Mapping[str, int]) -> None:
    for kernel in option.kernels:
        given = [addresses[parameter] for parameter in kernel.parameters]
        if not queued(trial.products, kernel.product, given):
            handle = trial.handles[kernel.name]
            device.launch(handle, kernel.grid, kernel.block, kernel.shared_bytes, given)


def _recorded(
    device: CudaDevice, trial: Trial, option: DeviceFunction, addresses: Mapping[str, int], stack: ExitStack
) -> int:
    """Return a graph of some runs in a row: one of a few microseconds would drown in its launch."""
    try:
        device.begin_capture()
        for _ in range(_REPEATS):
            _launch(device, trial, option, addresses)
        graph = device.end_capture()
    except BaseException:
        device.drop_capture()
        raise
    stack.callback(device.forget, graph)
    return graph


def _agrees(device: CudaDevice, buffers: Sequence[int], wanted: Sequence[Array]) -> bool:
    device.synchronize()
    for address, want in zip(buffers, wanted, strict=True):
        got = np.empty_like(want)
        device.fetch(got.reshape(-1).view(np.uint8), address)
        if not _same(got, want):
            return False
    return True


def _same(got: Array, want: Array) -> bool:
    tolerance = _TOLERANCE.get(want.dtype.name)
    if tolerance is None:
        return bool(np.array_equal(got, want))
    wide = want.astype(np.float64)
    room = tolerance * float(np.abs(wide).max(initial=0.0))
    return bool((np.abs(got.astype(np.float64) - wide) <= room).all())


def _timed(device: CudaDevice, graphs: Mapping[str, int]) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(_ROUNDS):
        for name in list(graphs) if turn % 2 == 0 else list(graphs)[::-1]:
            device.replay(graphs[name])  # brings code and data back to the caches
            found[name] += device.times_ms(lambda graph=graphs[name]: device.replay(graph), _RUNS)  # type: ignore[misc]
    return {name: statistics.median(times) / 1e3 / _REPEATS for name, times in found.items()}
