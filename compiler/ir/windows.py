"""Padding of Conv and pooling nodes, for everybody but the reference, which stays independent."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .walk import attribute, ints_attribute


def pads_of(
    node: ir.Node,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    size: Sequence[int],
) -> tuple[int, ...]:
    """Return the pads at the beginning of every spatial axis, then those at the end.

    `auto_pad` is resolved for an input of `size`: SAME makes ceil(size / stride) outputs, and an odd number
    of pads has one more at the end (SAME_UPPER) or at the beginning (SAME_LOWER).
    """
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode == "VALID":
        return (0,) * (2 * len(kernel))
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return ints_attribute(node, "pads") or (0,) * (2 * len(kernel))
    totals = [
        max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        for k, n, s, d in zip(kernel, size, strides, dilations, strict=True)
    ]
    begin = [(total + (mode == "SAME_LOWER")) // 2 for total in totals]
    return (*begin, *(total - first for total, first in zip(totals, begin, strict=True)))
