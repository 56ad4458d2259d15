"""Products with weights of few bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import layers as L
from .dense import as_rows, reshaped, view_of
from .kernels import lowbit_f32
from .kernels.after_f32 import After
from .kernels.lowbit_f32 import LowbitF32Spec
from .layers_lowbit import LowbitDense
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
    buffer = builder.dense(name, "float32", (rows, padded(outputs)))
    whole = View(buffer, "float32", rows * padded(outputs), (rows, outputs), (padded(outputs), 1))
    made = reshaped(whole, layer.output.shape)
    assert made is not None, "rows of any outer shape"
    builder.where[name] = made
    table = lowbit_f32.uses_table(spec, builder.isa)
    zero = None if isinstance(layer.zero, int) else layer.zero
    constants = builder.constants(
        name, lambda: lowbit_f32.pack(spec, layer.codes, layer.scale, zero, layer.bias, table=table)
    )
    builder.step("lowbit_f32", spec, [data.buffer], constants, buffer, layer.covers)


LOWBIT_RULES: Mapping[type[L.Layer], Callable[[Builder, L.Layer], None]] = {LowbitDense: _lowbit}
