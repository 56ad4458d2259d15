"""Kernel geometry read from Conv and pooling nodes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute, ints_attribute
from .layers import Window
from .reader import Refused


def window_of(node: ir.Node, kernel: Sequence[int], size: Sequence[int]) -> Window:
    """Return the window of a node over an image of `size` (height, width); refuses what is not 2-D."""
    if len(kernel) != 2 or len(size) != 2:
        raise Refused(node, f"{len(kernel)} spatial axes; the kernels have 2")
    strides = ints_attribute(node, "strides", (1, 1))
    dilations = ints_attribute(node, "dilations", (1, 1))
    found = Window(
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        _pads(node, kernel, size, strides, dilations),
        (dilations[0], dilations[1]),
    )
    if int_attribute(node, "ceil_mode", 0):
        return _rounded_up(node, found, size)
    return found


def _pads(
    node: ir.Node,
    kernel: Sequence[int],
    size: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, int, int, int]:
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode == "VALID":
        return 0, 0, 0, 0
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        ends = [_same(*args) for args in zip(kernel, size, strides, dilations, strict=True)]
        first = [(total + (mode == "SAME_LOWER")) // 2 for total in ends]
        return first[0], first[1], ends[0] - first[0], ends[1] - first[1]
    pads = ints_attribute(node, "pads", (0, 0, 0, 0))
    return pads[0], pads[1], pads[2], pads[3]


def _same(kernel: int, size: int, stride: int, dilation: int) -> int:
    """Return the padding of one axis that makes ceil(size / stride) outputs."""
    steps = -(-size // stride)
    return max(0, (steps - 1) * stride + (kernel - 1) * dilation + 1 - size)


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
