"""Fits the layers behind cut channels: the original's outputs, channels that went left out, are the goal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ...compiler.ir import walk
from ...compiler.pass_api import Context, PassStats
from .channels_graph import Mask
from .reconstruct import Reconstruct


def fit(
    model: ir.Model, original: ir.Model, changed: Mapping[str, tuple[Mask | None, ...]], ctx: Context
) -> PassStats:
    """Fit weights and biases of `model` in place.

    Args:
        model: cut, with values under the names of the original.
        original: before.
        changed: entries that stayed, for values that lost some.
        ctx: with calibration data.
    """
    return Reconstruct().apply(model, replace(ctx, original=_narrowed(original, changed)))


def _narrowed(original: ir.Model, changed: Mapping[str, tuple[Mask | None, ...]]) -> ir.Model:
    """Return a copy that has, under each name, only the entries that stayed."""
    twin = original.clone()
    by_name = {value.name: value for node in twin.graph for value in node.outputs}
    for name, stays in changed.items():
        value = by_name.get(name)
        if value is not None and value.shape is not None and len(value.shape) == len(stays):
            _narrow(twin, value, stays)
    return twin


def _narrow(twin: ir.Model, value: ir.Value, stays: tuple[Mask | None, ...]) -> None:
    name = str(value.name)
    walk.rename(value, walk.unique_name(twin, f"{name}_whole"))
    current = value
    for axis, stay in enumerate(stays):
        if stay is None or stay.all():
            continue
        at = walk.add_initializer(twin.graph, walk.unique_name(twin, f"{name}_kept"), np.flatnonzero(stay))
        node = ir.node("Gather", [current, at], {"axis": axis}, name=walk.unique_name(twin, f"{name}_gather"))
        node.outputs[0].type = value.type
        assert current.shape is not None, current
        sizes = [int(stay.sum()) if i == axis else dim for i, dim in enumerate(current.shape)]
        node.outputs[0].shape = ir.Shape(sizes)
        node.outputs[0].name = walk.unique_name(twin, f"{name}_narrow")
        twin.graph.append(node)
        current = node.outputs[0]
    walk.rename(current, name)
