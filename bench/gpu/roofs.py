"""Roofs of this device, measured: memory, float16 and int8 tensor cores.

By torch, whose library takes the instructions of the chip (`wgmma` on sm_90). `backends/gpu/roofs.py`, which
`pared bench` uses, needs the driver alone and does `mma.sync`: another roof.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict

import torch

from .candidate import device, event_times_ms, on_gpu
from .sheets import Roof


def measure_roofs(*, tiny: bool) -> dict[str, object]:
    """Measure copy, sum, float16 and int8 products by torch; `tiny` in dry runs."""
    size, matrix, runs = (1 << 14, 64, 3) if tiny else (1 << 31, 8192, 20)
    copy, read = _memory_rates(size, runs)
    fp16, int8 = (max(_rate(kind, n, runs) for n in (matrix, matrix // 2)) for kind in ("fp16", "int8"))
    roof = Roof(max(copy, read), fp16, int8, "measured in the same run" if on_gpu() else "dry run")
    detail = {"copy_bytes_per_s": copy, "sum_bytes_per_s": read, "copied_bytes": size, "matrix": matrix}
    return asdict(roof) | detail


def _memory_rates(size: int, runs: int) -> tuple[float, float]:
    """Return bytes per second of a copy, read and written, and of a sum, read."""
    source = torch.randn(size // 4, device=device())
    target = torch.empty_like(source)
    copy = _seconds(lambda: target.copy_(source), runs)
    return 2 * size / copy, size / _seconds(source.sum, runs)


def _seconds(run: Callable[[], object], runs: int) -> float:
    event_times_ms(run, 3)
    return statistics.median(event_times_ms(run, runs)) / 1e3


def _rate(kind: str, size: int, runs: int) -> float:
    """Return operations per second of a square product on random numbers, the right operand by columns."""
    if kind == "fp16":
        a, b = (torch.randn(size, size, device=device()).half() for _ in range(2))
        return 2 * size**3 / _seconds(lambda: a @ b.t(), runs)
    a, b = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device()) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: torch._int_mm(a, b.t()), runs)
