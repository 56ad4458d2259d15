"""What hls4ml's streams cannot: its C++ asserts most of these, so they are refused before."""

from __future__ import annotations

from ....compiler.errors import UnsupportedOp
from .plan import Plan, Step
from .settings import Tool
from .tables import KIND


def check_streams(plan: Plan, road: Tool) -> None:
    """Refuse what io_stream has not.

    Raises:
        UnsupportedOp: `fpga-hls-layer`, naming the node.
    """
    for step in plan.steps:
        finding = _finding(step, road)
        if finding is not None:
            raise UnsupportedOp(
                "fpga-hls-layer",
                f"node {step.source!r}: {finding}, which io_stream has not",
                "--engine-option io=io_parallel",
            )


def _finding(step: Step, road: Tool) -> str | None:
    if step.kind == KIND and not road.streams:
        return f"a table of thresholds for {road.backend}"
    of = step.attributes
    if "Pooling" in step.kind:
        if any(of.get(f"pad_{side}") for side in ("top", "bottom", "left", "right")):
            return "padded pooling"
        if any(of.get(f"pool_{side}") != of.get(f"stride_{side}") for side in ("height", "width")):
            return "pooling windows that overlap or leave gaps"
    if step.kind.endswith("Conv2D") and of["filt_height"] != of["filt_width"]:
        return f"a {of['filt_height']}x{of['filt_width']} window"
    return None
