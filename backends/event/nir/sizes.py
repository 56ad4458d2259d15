"""Shapes of what NIR nodes send, without the batch."""

from __future__ import annotations

import math

import numpy as np

from .read import malformed
from .records import KINDS, Node

Shape = tuple[int, ...]

_LARGEST = 2**28


def size_out(node: Node, shape: Shape, where: str) -> Shape:
    """Return the shape that a node sends when `shape` arrives.

    Raises:
        ModelError: `nir-malformed`, what arrives does not fit.
    """
    if node.kind in ("Affine", "Linear"):
        return _dense(node, shape, where)
    if node.kind in ("Conv1d", "Conv2d"):
        return _convolved(node, shape, where)
    if node.kind in ("SumPool2d", "AvgPool2d"):
        return _pooled(node, shape, where)
    if node.kind == "Flatten":
        start, end = flat_axes(node, shape, where)
        return (*shape[:start], int(np.prod(shape[start : end + 1])), *shape[end + 1 :])
    for name in KINDS.get(node.kind, {}):
        if node.kind in ("Input", "Output") or name not in node.values:
            continue
        if not _spreads(node.array(name).shape, shape):
            raise malformed(where, f"{name} of shape {node.array(name).shape} cannot meet {shape}")
    return shape


def _spreads(given: Shape, shape: Shape) -> bool:
    """Tell whether a parameter holds for every neuron of a shape."""
    return len(given) <= len(shape) and all(
        a in (1, b) for a, b in zip(given[::-1], shape[::-1], strict=False)
    )


def _dense(node: Node, shape: Shape, where: str) -> Shape:
    outputs, inputs = node.array("weight").shape
    if shape[-1:] != (inputs,) or len(shape) != 1:
        raise malformed(where, f"weights of shape {(outputs, inputs)} cannot take {shape}")
    if "bias" in node.values and node.array("bias").shape != (outputs,):
        raise malformed(where, f"bias of shape {node.array('bias').shape} for {outputs} outputs")
    return (outputs,)


def _convolved(node: Node, shape: Shape, where: str) -> Shape:
    weight, groups = node.array("weight"), int(node.values["groups"])
    rank = weight.ndim - 2
    if (
        len(shape) != rank + 1
        or groups < 1
        or shape[0] != weight.shape[1] * groups
        or weight.shape[0] % groups
    ):
        raise malformed(where, f"weights of shape {weight.shape} in {groups} groups cannot take {shape}")
    if node.array("bias").shape != weight.shape[:1]:
        raise malformed(where, f"bias of shape {node.array('bias').shape} for {weight.shape[0]} channels")
    strides, dilations, pads = windows(node, rank, where)
    sizes = []
    for axis, size in enumerate(shape[1:]):
        reach = dilations[axis] * (weight.shape[2 + axis] - 1) + 1
        sizes.append((size + sum(pads[axis]) - reach) // strides[axis] + 1)
    return _checked((weight.shape[0], *sizes), where)


def windows(
    node: Node, rank: int, where: str
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return strides, dilations and pads (before, after) per axis of a convolution."""
    strides, dilations = _sizes(node, "stride", rank, where), _sizes(node, "dilation", rank, where)
    if min((*strides, *dilations)) < 1:
        raise malformed(where, f"stride {strides}, dilation {dilations}")
    padding = node.values["padding"]
    if isinstance(padding, str) and padding == "valid":
        return strides, dilations, ((0, 0),) * rank
    if isinstance(padding, str):
        extra = [d * (k - 1) for d, k in zip(dilations, node.array("weight").shape[2:], strict=True)]
        return strides, dilations, tuple((e // 2, e - e // 2) for e in extra)
    pads = _sizes(node, "padding", rank, where)
    if min(pads) < 0:
        raise malformed(where, f"padding {pads}")
    return strides, dilations, tuple((p, p) for p in pads)


def _sizes(node: Node, name: str, rank: int, where: str) -> tuple[int, ...]:
    found = node.array(name).reshape(-1).tolist()
    if len(found) == 1:
        found = found * rank
    if len(found) != rank or max(found, default=0) >= 2**31:
        raise malformed(where, f"{name} {found} for {rank} axes")
    return tuple(int(size) for size in found)


def pool_window(node: Node, where: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return kernel, strides and pads of a pooling node."""
    kernel, strides = _sizes(node, "kernel_size", 2, where), _sizes(node, "stride", 2, where)
    pads = _sizes(node, "padding", 2, where)
    if min((*kernel, *strides)) < 1 or min(pads) < 0:
        raise malformed(where, f"kernel {kernel}, stride {strides}, padding {pads}")
    return kernel, strides, pads


def _pooled(node: Node, shape: Shape, where: str) -> Shape:
    kernel, strides, pads = pool_window(node, where)
    if len(shape) != 3:
        raise malformed(where, f"pooling takes images, not {shape}")
    sizes = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(shape[1:], pads, kernel, strides, strict=True)]
    return _checked((shape[0], *sizes), where)


def _checked(shape: Shape, where: str) -> Shape:
    if min(shape) < 1:
        raise malformed(where, f"nothing is left: its output has shape {shape}")
    if math.prod(shape) > _LARGEST:
        raise malformed(where, f"its output has shape {shape}, at most {_LARGEST} elements are taken")
    return shape


def flat_axes(node: Node, shape: Shape, where: str) -> tuple[int, int]:
    """Return the first and the last axis that are joined."""
    start, end = (int(node.values[key]) % max(1, len(shape)) for key in ("start_dim", "end_dim"))
    given = [int(node.values[key]) for key in ("start_dim", "end_dim")]
    if start > end or any(not -len(shape) <= axis < len(shape) for axis in given):
        raise malformed(where, f"axes {given} of {shape}")
    return start, end
