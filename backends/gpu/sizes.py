"""One model for several batch sizes: the calls of each, with names of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from ...compiler.errors import UnsupportedOp
from .lower import one_sample
from .module import Calls, calls_of, relax_module


def calls_of_sizes(model: ir.Model, sizes: Sequence[int]) -> tuple[list[Calls], bool]:
    """Return the calls for each batch size, and whether the model's first size is open; else there is one.

    Raises:
        UnsupportedOp: as `relax_module`; `gpu-batches`, an output whose first size is not the batch.
    """
    found: list[Calls] = []
    for size in sizes:
        fixed, batched = one_sample(model, size)
        calls = calls_of(relax_module(fixed))
        if not batched:
            return [calls], False
        if size > 1:
            _check_outputs(model, calls, size)
        found.append(_renamed(calls, f"_x{size}") if size != sizes[0] else calls)
    return found, True


def _check_outputs(model: ir.Model, calls: Calls, size: int) -> None:
    for output, name in zip(model.graph.outputs, calls.outputs, strict=True):
        shape = calls.tensors[name].shape
        if not shape or shape[0] != size:
            raise UnsupportedOp(
                "gpu-batches",
                f"output {output.name!r} of {size} samples has shape {list(shape)}: not one row per sample",
                "leave out --engine-option batches, or fix the size with --shape",
            )


def _renamed(calls: Calls, suffix: str) -> Calls:
    functions = {name + suffix: function for name, function in calls.functions.items()}
    steps = tuple(dataclasses.replace(step, function=step.function + suffix) for step in calls.steps)
    return dataclasses.replace(calls, functions=functions, steps=steps)
