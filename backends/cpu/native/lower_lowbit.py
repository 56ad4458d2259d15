"""Products with weights of few bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import layers as L
from .dense import as_rows, reshaped, view_of
from .kernels import lowbit_f32, lowbit_gemv, quantize_blocks
from .kernels.after_f32 import After
from .kernels.lowbit_f32 import LowbitF32Spec
from .kernels.lowbit_gemv import LowbitGemvSpec
from .kernels.quantize_blocks import QuantizeBlocksSpec
from .layers_lowbit import LowbitBlocks, LowbitDense
from .place import Builder, View, fits
from .program import padded


def _lowbit(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, LowbitDense), "the table says so"
    (x,), name = layer.inputs, layer.output.name
    data = as_rows(builder, view_of(builder, x), f"{name}_x")
    rows, (outputs, depth) = data.shape[0], layer.codes.shape
    same = isinstance(layer.zero, int)
    spec = LowbitF32Spec(
        rows, depth, outputs, layer.bits, layer.block, int(layer.zero) if same else None, layer.bipolar,
        After(bias=layer.bias is not None),
    )  # fmt: skip
    fits(lowbit_f32.supports(spec, builder.isa))
    buffer = _rows_for(builder, layer.output, rows, outputs)
    table = lowbit_f32.uses_table(spec, builder.isa)
    zero = None if isinstance(layer.zero, int) else layer.zero
    constants = builder.constants(
        name, lambda: lowbit_f32.pack(spec, layer.codes, layer.scale, zero, layer.bias, table=table)
    )
    builder.step("lowbit_f32", spec, [data.buffer], constants, buffer, layer.covers)


def _lowbit_blocks(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, LowbitBlocks), "the table says so"
    (x,), name = layer.inputs, layer.output.name
    data = as_rows(builder, view_of(builder, x), f"{name}_x")
    rows, (outputs, depth) = data.shape[0], layer.weight.shape
    biased = layer.bias is not None
    spec = LowbitGemvSpec(rows, depth, outputs, layer.bits, layer.block, layer.zero, biased)
    fits(lowbit_gemv.supports(spec, builder.isa))
    parts = _quantized_rows(builder, x.name, data, QuantizeBlocksSpec(rows, depth, layer.block, layer.zero))
    buffer = _rows_for(builder, layer.output, rows, outputs)
    constants = builder.constants(name, lambda: lowbit_gemv.pack(spec, layer.weight, layer.scale, layer.bias))
    builder.step("lowbit_gemv", spec, parts, constants, buffer, layer.covers)


def _quantized_rows(builder: Builder, name: str, data: View, spec: QuantizeBlocksSpec) -> list[str]:
    """Return the buffers of a tensor's rows in blocks: integers, scales, corrections; made once per form."""
    fits(quantize_blocks.supports(spec, builder.isa))
    forms = {
        f"{name}_{part}{spec.block}z{spec.zero}": (dtype, (spec.rows, width))
        for part, dtype, width in (
            ("q", "int8", spec.depth), ("scale", "float32", spec.blocks), ("sum", "int32", spec.blocks),
        )
    }  # fmt: skip
    if all(form in builder.where for form in forms):
        return [builder.where[form].buffer for form in forms]
    made = []
    for form, (dtype, shape) in forms.items():
        buffer = builder.dense(form, dtype, shape)
        builder.where[form] = View(buffer, dtype, shape[0] * shape[1], shape, (shape[1], 1))
        made.append(buffer)
    builder.step("quantize_blocks", spec, [data.buffer], (), made[0], (), more=made[1:])
    return made


def _rows_for(builder: Builder, output: L.Tensor, rows: int, columns: int) -> str:
    """Make the buffer of a result whose rows begin on whole vectors."""
    buffer = builder.dense(output.name, "float32", (rows, padded(columns)))
    whole = View(buffer, "float32", rows * padded(columns), (rows, columns), (padded(columns), 1))
    made = reshaped(whole, output.shape)
    assert made is not None, "rows of any outer shape"
    builder.where[output.name] = made
    return buffer


LOWBIT_RULES: Mapping[type[L.Layer], Callable[[Builder, L.Layer], None]] = {
    LowbitBlocks: _lowbit_blocks,
    LowbitDense: _lowbit,
}
