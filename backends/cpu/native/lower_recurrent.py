"""Recurrent layers: one product of all inputs, then the kernel that walks through time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from . import layers as L
from .dense import as_rows, view_of
from .kernels import gemm_f32, recurrent_f32
from .kernels.after_f32 import After
from .kernels.gemm_f32 import GemmF32Spec
from .kernels.recurrent_f32 import CellArrays, RecurrentF32Spec
from .layers_recurrent import Cell, Recurrent
from .place import Builder, View, fits, row_major
from .program import padded


def _recurrent(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, Recurrent), "the table says so"
    spec = _spec(layer)
    fits(recurrent_f32.supports(spec, builder.isa))
    name = layer.output.name
    inputs = [_inputs(builder, layer, spec)]
    for x in layer.inputs[1:]:
        view = view_of(builder, x)
        inputs.append(as_rows(builder, view, f"{name}_{x.name}").buffer)
    buffer = builder.dense(name, "float32", spec.out_shape)
    size = int(np.prod(spec.out_shape))
    builder.where[name] = View(buffer, "float32", size, layer.output.shape, row_major(layer.output.shape))
    constants = builder.constants(
        name, lambda: recurrent_f32.pack(spec, [_arrays(cell, spec) for cell in layer.cells])
    )
    shape = spec.scratch_shape
    scratch = [] if shape is None else [builder.scratch(name, "float32", shape)]
    builder.step("recurrent_f32", spec, inputs, constants, buffer, layer.covers, scratch=scratch)


def _spec(layer: Recurrent) -> RecurrentF32Spec:
    cell = layer.cells[0]
    steps, batch, _ = layer.inputs[0].shape
    return RecurrentF32Spec(
        layer.kind,
        steps,
        batch,
        cell.hidden,
        cell.result,
        layer.reverse,
        layer.reset_after,
        layer.relu,
        cell.peepholes is not None,
        cell.projection is not None,
        layer.initial,
        "float32" if cell.scale is None else "int8",
    )


def _inputs(builder: Builder, layer: Recurrent, spec: RecurrentF32Spec) -> str:
    """Write the product of all inputs with the weights of all gates, each gate padded to whole vectors."""
    name, x = f"{layer.output.name}_gates", layer.inputs[0]
    data = as_rows(builder, view_of(builder, x), name)
    rows, depth = data.shape
    gemm = GemmF32Spec(rows, depth, spec.x_shape[1], After(bias=True))
    fits(gemm_f32.supports(gemm, builder.isa))
    buffer = builder.dense(name, "float32", spec.x_shape)
    constants = builder.constants(name, lambda: gemm_f32.pack(gemm, *_input_arrays(layer, spec)))
    builder.step("gemm_f32", gemm, [data.buffer], constants, buffer, layer.covers)
    return buffer


def _input_arrays(layer: Recurrent, spec: RecurrentF32Spec) -> tuple[L.Floats, L.Floats]:
    """Return weights [I, D * gates * Hp] and bias; what a GRU adds inside its reset stays out of the bias."""
    spare = padded(spec.hidden) - spec.hidden
    weights, biases = [], []
    for cell in layer.cells:
        bias = cell.input_bias + cell.recurrent_bias
        if spec.reset_after:
            bias[2] = cell.input_bias[2]
        weights.append(np.pad(cell.input, ((0, 0), (0, spare), (0, 0))).reshape(-1, cell.input.shape[2]))
        biases.append(np.pad(bias, ((0, 0), (0, spare))).reshape(-1))
    return np.ascontiguousarray(np.concatenate(weights).T), np.concatenate(biases)


def _arrays(cell: Cell, spec: RecurrentF32Spec) -> CellArrays:
    inner = cell.recurrent_bias[2] if spec.reset_after else None
    return CellArrays(cell.recurrent, cell.scale, inner, cell.peepholes, cell.projection)


RECURRENT_RULES: Mapping[type[L.Layer], Callable[[Builder, L.Layer], None]] = {Recurrent: _recurrent}
