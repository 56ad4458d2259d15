"""Time and energy of a model on a device of its own, and how close it comes to the device's roofs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from ..compiler.metering import DeviceMeter, Roofs
from ..compiler.records import Metric, Origin
from .nvml import energy_metrics, state_metrics

_BLOCK = 20
_STABLE = 0.02
_MOST_BLOCKS = 50


@dataclass(frozen=True)
class Work:
    """What one run computes.

    Attributes:
        macs: multiply-accumulates; None where they cannot be counted.
        kind: of number that its products take: a key of `Roofs.ops_per_s`, else no roof is known.
    """

    macs: int | None
    kind: str


def device_metrics(meter: DeviceMeter, work: Work, *, runs: int, seconds: float) -> tuple[Metric, ...]:
    """Measure a loaded model.

    Args:
        meter: of the model.
        work: of one run.
        runs: to time, after as many as it takes until times are stable.
        seconds: for the energy counter.
    """
    warm, stable = warm_up(meter)
    times = meter.times_ms(runs)
    settled = "stable" if stable else "times had not settled"
    how = f"CUDA events on {meter.device}, {runs} runs, each by itself, after {warm} warm-up runs ({settled})"
    state = state_metrics(meter.bus_id, "right after the timed runs")
    energy = energy_metrics(meter.bus_id, lambda: len(meter.times_ms(_BLOCK)), seconds=seconds)
    roofs = meter.roofs()
    median = statistics.median(times)
    return (
        _metric("device_time_median", median, "ms", how),
        _metric("device_time_min", min(times), "ms", how),
        _metric("device_time_std", statistics.stdev(times) if len(times) > 1 else 0.0, "ms", how),
        _metric("device_memory", meter.memory_bytes, "bytes", "what the model allocated on the device"),
        *energy,
        *state,
        *_shares(meter, work, median / 1e3, roofs),
    )


def warm_up(meter: DeviceMeter) -> tuple[int, bool]:
    """Run until medians of blocks in a row differ by less than 2 %; return the runs, and whether they did."""
    last = statistics.median(meter.times_ms(_BLOCK))
    for block in range(2, _MOST_BLOCKS + 1):
        now = statistics.median(meter.times_ms(_BLOCK))
        if abs(now - last) <= _STABLE * last:
            return block * _BLOCK, True
        last = now
    return _MOST_BLOCKS * _BLOCK, False


def _shares(meter: DeviceMeter, work: Work, seconds: float, roofs: Roofs) -> tuple[Metric, ...]:
    moved = meter.least_bytes()
    rates = [
        _metric(f"{kind}_rate", rate / 1e12, "Tops/s", roofs.how) for kind, rate in roofs.ops_per_s.items()
    ]
    rates += [_metric(f"{kind}_rate", None, "Tops/s", why) for kind, why in roofs.missing.items()]
    memory = moved / seconds / roofs.bytes_per_s if seconds else None
    how = f"{moved} bytes (constants, inputs and outputs once each) over time and copy bandwidth"
    return (
        _metric("copy_bandwidth", roofs.bytes_per_s / 1e9, "GB/s", roofs.how),
        *rates,
        _metric("memory_roof_share", memory, "x", how),
        _compute_share(work, seconds, roofs),
    )


def _compute_share(work: Work, seconds: float, roofs: Roofs) -> Metric:
    name = "compute_roof_share"
    rate = roofs.ops_per_s.get(work.kind)
    if work.macs is None:
        return _metric(name, None, "x", "the model's multiply-accumulates cannot be counted")
    if rate is None or not seconds:
        why = roofs.missing.get(work.kind, f"products of {work.kind} numbers have no roof measured here")
        return _metric(name, None, "x", why)
    how = f"2 x {work.macs} multiply-accumulates over time and the measured {work.kind} rate"
    return _metric(name, 2 * work.macs / seconds / rate, "x", how)


def _metric(name: str, value: float | None, unit: str, how: str) -> Metric:
    return Metric(name, value, unit, Origin.MEASURED, how)
