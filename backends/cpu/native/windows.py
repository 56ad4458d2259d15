"""Kernel geometry read from Conv and pooling nodes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, ints_attribute
from ....compiler.ir.windows import pads_of
from .layers import Window
from .reader import Refused


def window_of(node: ir.Node, kernel: Sequence[int], size: Sequence[int]) -> Window:
    """Return the window of a node over an image of `size` (height, width); refuses what is not 2-D."""
    if len(kernel) != 2 or len(size) != 2:
        raise Refused(node, f"{len(kernel)} spatial axes; the kernels have 2")
    strides = ints_attribute(node, "strides", (1, 1))
    dilations = ints_attribute(node, "dilations", (1, 1))
    top, left, bottom, right = pads_of(node, kernel, strides, dilations, size)
    found = Window(
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (top, left, bottom, right),
        (dilations[0], dilations[1]),
    )
    if int_attribute(node, "ceil_mode", 0):
        return _rounded_up(node, found, size)
    return found


def _rounded_up(node: ir.Node, window: Window, size: Sequence[int]) -> Window:
    """Return a window padded at the end so that floor gives what ceil_mode asks for."""
    pads = list(window.pads)
    for axis in (0, 1):
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        span = size[axis] + pads[axis] + pads[axis + 2] - reach
        steps = -(-span // window.strides[axis])
        if steps * window.strides[axis] >= size[axis] + pads[axis]:
            steps -= 1  # a window that starts beyond the data is left out
        more = max(0, steps * window.strides[axis] - span)
        if more and node.op_type == "AveragePool" and int_attribute(node, "count_include_pad", 0):
            raise Refused(node, "ceil_mode with count_include_pad")
        pads[axis + 2] += more
    return Window(window.kernel, window.strides, (pads[0], pads[1], pads[2], pads[3]), window.dilations)
