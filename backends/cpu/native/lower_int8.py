"""Kernels for quantized layers, and the borders and pitches of the images between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from . import layers as L
from .kernels import add_int8, conv_int8, depthwise_int8, gemm_int8, pool_int8, winograd_int8
from .kernels.add_formula import AddFormula, add_formula
from .kernels.add_int8 import AddInt8Spec
from .kernels.average_formula import average_formula
from .kernels.conv_int8 import ConvInt8Spec
from .kernels.depthwise_int8 import DepthwiseInt8Spec
from .kernels.gemm_int8 import GemmInt8Spec
from .kernels.int8_tiles import NO_BORDER, Border, Image, is_small, registers_of
from .kernels.pool_int8 import PoolInt8Spec
from .kernels.winograd_int8 import WinogradInt8Spec
from .place import Builder, Held, Unfit, fits
from .quantized import limits
from .real_product import RealProduct

# An image of few channels that only convolutions read is stored without padding lanes.
FEW_CHANNELS = 8

Bytes: TypeAlias = npt.NDArray[np.int8]


def borders(layers: Sequence[L.Layer]) -> dict[str, Border]:
    """Return the border of every quantized image: the most padding that any of its readers needs."""
    found: dict[str, Border] = {}
    for layer in layers:
        if not isinstance(layer, L.IntLayer):
            continue
        name = layer.inputs[0].name
        have, need = found.get(name, NO_BORDER), layer.window.pads
        found[name] = (
            max(have[0], need[0]), max(have[1], need[1]), max(have[2], need[2]), max(have[3], need[3])
        )  # fmt: skip
    return found


def pitches(layers: Sequence[L.Layer], outputs: Sequence[L.Tensor]) -> dict[str, int]:
    """Return the pitch of images without padding lanes: moves write them, only convolutions read them."""
    made = {layer.output.name for layer in layers if isinstance(layer, L.Convert | L.Reshape | L.Transpose)}
    written = {layer.output.name for layer in layers} - made
    barred = {x.name for x in outputs} | written
    found: dict[str, int] = {}
    for layer in layers:
        dense = isinstance(layer, L.IntLayer) and layer.group == 1
        for index, x in enumerate(layer.inputs):
            if dense and index == 0 and len(x.shape) == 4 and x.channels <= FEW_CHANNELS:
                found[x.name] = x.channels
            elif x.quant is not None and not isinstance(layer, L.Reshape | L.Transpose):
                barred.add(x.name)
    return {name: pitch for name, pitch in found.items() if name not in barred}


def _layer(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, L.IntLayer), "the table says so"
    x = builder.held(layer.inputs[0])
    flat = (x.image.channels, x.image.height, x.image.width) != layer.inputs[0].image[1:]
    alone = layer.residual is None and x.image.border == NO_BORDER
    pixel = x.image.height * x.image.width == 1 and layer.window.kernel == (1, 1)
    if alone and layer.group == 1 and (flat or pixel):
        _gemm(builder, layer, x)
    elif layer.residual is None and 1 < layer.group == x.image.channels == layer.output.channels:
        _depthwise(builder, layer, x)
    else:
        _conv(builder, layer, x)


def _quants(layer: L.IntLayer) -> tuple[L.Quant, L.Quant]:
    """Return the parameters of the input and of the layer's own result, before a residual."""
    own = layer.residual.inner if layer.residual is not None else layer.output.quant
    given = layer.inputs[0].quant
    assert own is not None, "a quantized layer gives bytes"
    assert given is not None, "a quantized layer reads bytes"
    return given, own


def _gemm(builder: Builder, layer: L.IntLayer, x: Held) -> None:
    given, own = _quants(layer)
    i = x.image
    terms = i.channels if i.height * i.width == 1 else i.height * i.width * i.pitch
    spec = GemmInt8Spec(
        i.batch,
        terms,
        layer.output.channels,
        own.zero,
        layer.low,
        layer.high,
        i.plane,
        is_small(layer.factor),
        registers=registers_of(builder.isa),
    )
    fits(gemm_int8.supports(spec, builder.isa))
    made = builder.bytes_for(layer.output)
    constants = builder.constants(
        layer.output.name,
        lambda: gemm_int8.pack(spec, _by_lanes(layer.weight, i), layer.bias, layer.factor, given.zero),
    )
    builder.step("gemm_int8", spec, [x.buffer], constants, made.buffer, layer.covers)


def _by_lanes(weight: Bytes, i: Image) -> Bytes:
    """Return [M, K] with K in the order of an image's memory, zeros for its border and padding lanes."""
    if i.plane == i.pitch:
        return weight.reshape(weight.shape[0], -1)
    wide = np.zeros((weight.shape[0], *i.shape[1:]), np.int8)
    top, left = i.border[:2]
    inner = wide[:, top : top + i.height, left : left + i.width, : i.channels]
    inner[:] = weight.reshape(-1, i.channels, i.height, i.width).transpose(0, 2, 3, 1)
    return wide.reshape(weight.shape[0], -1)


def _real_product(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, RealProduct), "the table says so"
    x, given = builder.held(layer.inputs[0]), layer.inputs[0].quant
    assert given is not None, "a quantized product reads bytes"
    i = x.image
    terms = i.channels if i.plane == i.pitch else i.plane
    spec = GemmInt8Spec(i.batch, terms, layer.output.channels, pitch=i.plane, real=(layer.low, layer.high))
    fits(gemm_int8.supports(spec, builder.isa))
    made = builder.floats_for(layer.output)
    none = np.zeros(layer.output.channels, np.int32)
    constants = builder.constants(
        layer.output.name,
        lambda: gemm_int8.pack(spec, _by_lanes(layer.weight, i), none, layer.unit, given.zero, layer.bias),
    )
    builder.step("gemm_int8", spec, [x.buffer], constants, made.buffer, layer.covers)


def _depthwise(builder: Builder, layer: L.IntLayer, x: Held) -> None:
    given, own = _quants(layer)
    made, window = builder.bytes_for(layer.output), layer.window
    spec = DepthwiseInt8Spec(
        x.image, made.image, window.kernel, window.strides, window.dilations, window.pads[:2], own.zero,
        layer.low, layer.high, is_small(layer.factor),
    )  # fmt: skip
    fits(depthwise_int8.supports(spec, builder.isa))
    constants = builder.constants(
        layer.output.name,
        lambda: depthwise_int8.pack(spec, layer.weight, layer.bias, layer.factor, given.zero),
    )
    builder.step("depthwise_int8", spec, [x.buffer], constants, made.buffer, layer.covers)


def _conv(builder: Builder, layer: L.IntLayer, x: Held) -> None:
    given, own = _quants(layer)
    window, weight = _unflattened(layer, x.image)
    second = builder.image_of(layer.inputs[1]) if layer.residual is not None else None
    made = builder.bytes_for(layer.output)
    low, high = layer.low, layer.high
    if layer.residual is not None:
        low, high = layer.residual.inner_low, layer.residual.inner_high
    spec = ConvInt8Spec(
        x.image, made.image, window.kernel, window.strides, window.dilations, window.pads[:2], own.zero, low,
        high, layer.group, second.image if second else None, _formula(layer),
        is_small(layer.factor), registers_of(builder.isa),
    )  # fmt: skip
    fits(conv_int8.supports(spec, builder.isa))
    inputs = [held.buffer for held in (x, second) if held is not None]
    tiled = WinogradInt8Spec(spec)
    if (
        winograd_int8.supports(tiled, builder.isa).ok
        and winograd_int8.pays(tiled)
        and winograd_int8.fits(weight)
    ):
        constants = builder.constants(
            layer.output.name, lambda: winograd_int8.pack(tiled, weight, layer.bias, layer.factor, given.zero)
        )
        builder.step("winograd_int8", tiled, inputs, constants, made.buffer, layer.covers)
        return
    constants = builder.constants(
        layer.output.name, lambda: conv_int8.pack(spec, weight, layer.bias, layer.factor, given.zero)
    )
    builder.step("conv_int8", spec, inputs, constants, made.buffer, layer.covers)


def _unflattened(layer: L.IntLayer, i: Image) -> tuple[L.Window, Bytes]:
    """Return the layer as a convolution over the image; one behind a Flatten has a window of its size."""
    if (i.channels, i.height, i.width) == layer.inputs[0].image[1:]:
        return layer.window, layer.weight
    size = i.height, i.width
    return L.Window(size), layer.weight.reshape(layer.weight.shape[0], i.channels, *size)


def _formula(layer: L.IntLayer) -> AddFormula | None:
    if layer.residual is None:
        return None
    inner, other, out = layer.residual.inner, layer.inputs[1].quant, layer.output.quant
    assert other is not None, "a residual is quantized"
    assert out is not None, "a sum is quantized"
    return add_formula(
        (inner.scale, other.scale, out.scale), (inner.zero, other.zero, out.zero), layer.low, layer.high
    )


def _pool(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, L.Pool), "the table says so"
    x, window = builder.image_of(layer.inputs[0]), layer.window
    given, own = layer.inputs[0].quant, layer.output.quant
    if given is None or own is None or window.dilations != (1, 1):
        raise Unfit(f"quantized pooling with dilations {window.dilations}")
    made = builder.bytes_for(layer.output)
    spec = PoolInt8Spec(
        x.image, made.image, window.kernel, window.strides, window.pads[:2], None, layer.count_pads, own.zero
    )
    if layer.kind == "average":
        size = window.kernel[0] * window.kernel[1]
        count = size if spec.inside else 0
        average = average_formula(given.scale, given.zero, own.scale, own.zero, count)
        spec = replace(spec, average=average)
    fits(pool_int8.supports(spec, builder.isa))
    builder.step("pool_int8", spec, [x.buffer], (), made.buffer, layer.covers)


def _add(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, L.Add), "the table says so"
    a, b = (builder.image_of(x) for x in layer.inputs)
    quants = [x.quant for x in (*layer.inputs, layer.output)]
    first, second, own = quants
    if first is None or second is None or own is None:
        raise Unfit("adds a quantized and a float tensor")
    low, high = limits(layer.low, layer.high, own)
    formula = add_formula(
        (first.scale, second.scale, own.scale), (first.zero, second.zero, own.zero), low, high
    )
    made = builder.bytes_for(layer.output)
    spec = AddInt8Spec(a.image, b.image, made.image, formula)
    fits(add_int8.supports(spec, builder.isa))
    in_place = next((i for i, held in enumerate((a, b)) if held.image == made.image), None)
    builder.step("add_int8", spec, [a.buffer, b.buffer], (), made.buffer, layer.covers, in_place)


INT8_RULES: Mapping[type[L.Layer], Callable[[Builder, L.Layer], None]] = {
    L.Add: _add,
    L.IntLayer: _layer,
    L.Pool: _pool,
    RealProduct: _real_product,
}
