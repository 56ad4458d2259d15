"""What is measured side by side: one inference at a time, on the device and from host to host."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.generic]


class Candidate(Protocol):
    """A compiled workload with its input in place."""

    def times_ms(self, runs: int) -> list[float]:
        """Return the device's time of each of `runs` inferences queued one behind the other."""
        ...

    def queue(self) -> None:
        """Queue one inference."""
        ...

    def host(self) -> Array:
        """Take the input from host memory, run, and return the output in host memory."""
        ...


def on_gpu() -> bool:
    """Tell whether torch sees a GPU; dry runs measure this CPU instead."""
    return torch.cuda.is_available()


def device() -> str:
    """Return torch's name of where everything runs."""
    return "cuda" if on_gpu() else "cpu"


def synchronize() -> None:
    """Wait for everything queued on the device, by whichever library."""
    if on_gpu():
        torch.cuda.synchronize()


def event_times_ms(queue: Callable[[], object], runs: int) -> list[float]:
    """Return the time between CUDA events around each of `runs` calls; wall time where there is no GPU."""
    if not on_gpu():
        return wall_times_ms(queue, runs)
    pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(runs)]
    for first, last in pairs:
        first.record()
        queue()
        last.record()
    torch.cuda.synchronize()
    return [float(first.elapsed_time(last)) for first, last in pairs]


def wall_times_ms(run: Callable[[], object], runs: int) -> list[float]:
    """Return the wall time of each of `runs` calls."""
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e3)
    return times


class TorchCandidate:
    """A function of tensors, with fixed memory for its input and page-locked memory for host copies.

    Args:
        run: the function.
        x: input on the device.
        compiled: it may hold recorded graphs, which must know where an inference begins.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], x: Tensor, *, compiled: bool = False) -> None:
        self._run, self._x, self._compiled = run, x, compiled
        self._source = x.detach().cpu().clone()
        self._staged = torch.empty_like(self._source, pin_memory=on_gpu())
        self._result: Tensor | None = None

    def queue(self) -> None:
        """Queue one inference."""
        self._once()

    def _once(self) -> Tensor:
        if self._compiled:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            return self._run(self._x)

    def times_ms(self, runs: int) -> list[float]:
        """Return the device's time of each inference."""
        return event_times_ms(self.queue, runs)

    def host(self) -> Array:
        """Copy in through page-locked memory, run, copy out."""
        self._staged.copy_(self._source)
        self._x.copy_(self._staged, non_blocking=True)
        y = self._once()
        if self._result is None:
            self._result = torch.empty(y.shape, dtype=y.dtype, pin_memory=on_gpu())
        self._result.copy_(y, non_blocking=True)
        synchronize()
        plain = self._result.float() if self._result.dtype == torch.bfloat16 else self._result
        return np.array(plain.numpy())
