"""Kernels for float layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from . import layers as L
from .kernels import conv_f32, gemm_f32
from .kernels.after_f32 import After
from .kernels.conv_f32 import ConvF32Spec
from .kernels.gemm_f32 import GemmF32Spec
from .kernels.window import Window
from .layers import Floats
from .place import Builder, Held, View, fits


def window_of(tensor: L.Tensor, window: L.Window) -> Window:
    """Return the kernels' form of a window over an image."""
    n, _, h, w = tensor.image
    return Window(n, h, w, window.kernel, window.strides, window.pads, window.dilations)


def after(low: float, high: float, bias: bool = False, residual: bool = False) -> After:
    """Return an epilogue with clipping; infinite limits are none."""
    return After(bias, residual, low=None if low == -np.inf else low, high=None if high == np.inf else high)


def _layer(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, L.FloatLayer), "the table says so"
    x = layer.inputs[0]
    pointwise = layer.window == L.Window((1, 1)) and layer.group == 1
    if len(x.shape) == 2 or pointwise:
        _gemm(builder, layer)
    else:
        _conv(builder, layer)


def _residual(builder: Builder, layer: L.FloatLayer) -> tuple[list[str], int | None]:
    """Return the buffer that is added and its index among the inputs: the output may take its place."""
    if len(layer.inputs) == 1:
        return [], None
    return [builder.image_of(layer.inputs[1]).buffer], 1


def _gemm(builder: Builder, layer: L.FloatLayer) -> None:
    held = builder.held(layer.inputs[0])
    i = held.image
    weight = layer.weight[:, :, 0, 0].T
    flat = (i.channels, i.height, i.width) != layer.inputs[0].image[1:]
    rows = i.batch if flat else i.batch * i.height * i.width
    depth = i.height * i.width * i.pitch if flat else i.channels
    second, in_place = _residual(builder, layer)
    epilogue = after(layer.low, layer.high, True, bool(second))
    spec = GemmF32Spec(rows, depth, layer.output.channels, epilogue)
    fits(gemm_f32.supports(spec, builder.isa))
    made = builder.floats_for(layer.output)
    constants = builder.constants(
        layer.output.name,
        lambda: gemm_f32.pack(spec, _by_lanes(weight, held) if flat else weight, layer.bias),
    )
    builder.step("gemm_f32", spec, [held.buffer, *second], constants, made.buffer, layer.covers, in_place)


def _by_lanes(weight: Floats, held: Held) -> Floats:
    """Return weights [C * H * W, M] of a flattened image in the order of memory, [H * W * pitch, M]."""
    i = held.image
    image = weight.reshape(i.channels, i.height, i.width, -1).transpose(1, 2, 0, 3)
    wide = np.zeros((i.height, i.width, i.pitch, weight.shape[1]), np.float32)
    wide[:, :, : i.channels] = image
    return wide.reshape(-1, weight.shape[1])


def _conv(builder: Builder, layer: L.FloatLayer) -> None:
    x = layer.inputs[0]
    where = builder.where[x.name]
    nchw = isinstance(where, View) and where.contiguous and len(where.shape) == 4
    source = where if nchw else builder.image_of(x)
    second, in_place = _residual(builder, layer)
    spec = ConvF32Spec(
        window_of(x, layer.window), x.channels, layer.output.channels, layer.group,
        after(layer.low, layer.high, True, bool(second)), nchw,
    )  # fmt: skip
    fits(conv_f32.supports(spec, builder.isa))
    made = builder.floats_for(layer.output)
    constants = builder.constants(layer.output.name, lambda: conv_f32.pack(spec, layer.weight, layer.bias))
    builder.step("conv_f32", spec, [source.buffer, *second], constants, made.buffer, layer.covers, in_place)


FLOAT_RULES: Mapping[type[L.Layer], Callable[[Builder, L.Layer], None]] = {L.FloatLayer: _layer}
