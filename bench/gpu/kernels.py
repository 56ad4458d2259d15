"""Time inside kernels alone, without the gaps between them, by torch's profiler (CUPTI)."""

from __future__ import annotations

from collections.abc import Callable

from .candidate import on_gpu, synchronize

_RUNS = 10


def kernel_times(queue: Callable[[], object]) -> dict[str, object]:
    """Return kernels and their time per inference, or null and why; CUPTI sees every library's kernels."""
    if not on_gpu():
        return {"kernel_ms": None, "reason": "dry run"}
    from torch.profiler import ProfilerActivity, profile

    queue()
    synchronize()
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(_RUNS):
                queue()
            synchronize()
        spent = [event for event in seen.events() if str(event.device_type).endswith("CUDA")]
    except Exception as err:  # whatever the profiler has; the other figures are there already
        return {"kernel_ms": None, "reason": f"the profiler failed: {str(err)[:200]}"}
    total = sum(float(event.time_range.elapsed_us()) for event in spent) / 1e3
    if not total:
        return {"kernel_ms": None, "reason": "the profiler saw no kernel"}
    return {"kernel_ms": total / _RUNS, "count": len(spent) / _RUNS, "reason": "CUPTI through torch"}
